"""mergekit's YAML: parameters by place, depth and name, slices of layers, dtypes, and what is refused."""
# ruff: noqa: E501  # the table of bad input reads best with a case on a line

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from edits.mergekit_models import LAYERS, PARTS, SHAPES, STATES, check, document, merge, run
from taskvec.edits.mergekit.values import Parameter, join, parse_scope
from taskvec.edits.parameters import value_at
from taskvec.errors import InputError
from taskvec.weights import open_weights, save_weights
from taskvec.weights.picked import Picked

# Parameters


def test_the_most_specific_place_wins(here: Path) -> None:
    made = merge("""
        merge_method: task_arithmetic
        base_model: base
        slices:
          - sources:
              - {model: base, layer_range: [0, 2]}
              - {model: a, layer_range: [0, 2], parameters: {weight: [{filter: mlp, value: 0.1}]}}
            parameters: {weight: [{filter: q_proj, value: 0.2}]}
          - sources:
              - {model: base, layer_range: [2, 4]}
              - {model: a, layer_range: [2, 4]}
            parameters: {lambda: 2}
        parameters: {weight: 0.4}
    """)
    for name in SHAPES:
        late = any(f"layers.{layer}." in name for layer in (2, 3)) or name in (
            "model.norm.weight",
            "lm_head.weight",
        )
        early = 0.1 if "mlp" in name else 0.2 if "q_proj" in name else 0.4
        factor = 2 * 0.4 if late else early
        expected = STATES["base"][name] + factor * (STATES["a"][name] - STATES["base"][name])
        torch.testing.assert_close(made.weights[name], expected)


def test_the_form_that_mergekit_writes_into_model_cards_is_read(here: Path) -> None:
    made = merge("""
        name: first
        base_model: base
        merge_method: task_arithmetic
        modules:
          default:
            slices:
              - sources:
                  - {layer_range: [0, 4], model: a, parameters: {weight: [0.5, 0.5]}}
                  - {layer_range: [0, 4], model: b}
                  - {layer_range: [0, 4], model: base}
            parameters: {weight: 0.25}
        parameters: {lambda: 1.0, normalize: 0.0, int8_mask: 1.0, weight: 9}
    """)
    check(made, lambda base, deltas: base + 0.5 * deltas[0] + 0.25 * deltas[1])


def test_gradients_run_over_depth_and_start_outside_the_layers(here: Path) -> None:
    made = merge("""
        merge_method: task_arithmetic
        base_model: base
        models: [{model: a}]
        parameters: {weight: [{filter: mlp, value: [1, 0, 4]}, {value: [0.25, 1]}]}
    """)
    for name in SHAPES:
        depth = int(name.split(".")[2]) / (LAYERS - 1) if "layers" in name else 0.0
        weight = (
            np.interp(depth, [0, 0.5, 1], [1, 0, 4]) if "mlp" in name else np.interp(depth, [0, 1], [0.25, 1])
        )
        expected = STATES["base"][name] + float(weight) * (STATES["a"][name] - STATES["base"][name])
        torch.testing.assert_close(made.weights[name], expected)


@given(
    anchors=st.lists(st.floats(-5, 5, allow_nan=False), min_size=2, max_size=6),
    depth=st.floats(0, 1, allow_nan=False),
)
def test_a_gradient_is_the_line_through_its_anchors(anchors: list[float], depth: float) -> None:
    known = {"weight": Parameter(float)}
    scope = parse_scope("here", {"weight": anchors}, known, method="m")
    places = np.linspace(0, 1, len(anchors))
    found = value_at(join([scope], "weight", None), "name", depth)
    assert found == pytest.approx(np.interp(depth, places, anchors), abs=1e-9)


def test_a_truth_value_along_depth_is_that_of_its_stretch(here: Path) -> None:
    known = {"normalize": Parameter(bool, False)}
    scope = parse_scope("here", {"normalize": [True, False]}, known, method="m")
    normalize = join([scope], "normalize", False)
    values = [value_at(normalize, "name", depth) for depth in (0, 0.9, 1)]
    assert values == [True, True, False]


def test_an_idle_filter_is_named(here: Path) -> None:
    made = document("ties", density=[{"filter": "slef_attn", "value": 0.5}, {"value": 1}], weight=True)
    assert any("'slef_attn'" in note for note in made.notes)


def test_parameters_of_the_base_are_said_to_do_nothing(here: Path) -> None:
    made = merge("""
        merge_method: task_arithmetic
        base_model: base
        models:
          - {model: base, parameters: {weight: 3}}
          - {model: a, parameters: {weight: 1}}
    """)
    check(made, lambda base, deltas: base + deltas[0], "a")
    assert any("models[0]" in note and "base model do nothing" in note for note in made.notes)


# Dtypes


def test_out_dtype_rounds_once(here: Path) -> None:
    made = merge("""
        merge_method: task_arithmetic
        base_model: base
        models: [{model: a, parameters: {weight: 0.3}}]
        dtype: float32
        out_dtype: bfloat16
    """)
    for name in SHAPES:
        base, own = (STATES[model][name].double() for model in ("base", "a"))
        found, exact = made.weights[name], base + 0.3 * (own - base)
        assert found.dtype == torch.bfloat16
        assert ((found.double() - exact).abs() <= 0.501 * 2.0**-7 * exact.abs()).all()
    assert json.loads(made.files["config.json"])["dtype"] == "bfloat16"


def test_models_of_different_dtypes_meet_in_the_wider(here: Path) -> None:
    made = merge("{merge_method: linear, models: [{model: half}, {model: a}], parameters: {weight: 1}}")
    for name in SHAPES:
        expected = (STATES["b"][name].to(torch.bfloat16).float() + STATES["a"][name]) / 2
        assert made.weights[name].dtype == torch.float32
        torch.testing.assert_close(made.weights[name], expected)


# Slices


STACKED = """
    merge_method: passthrough
    slices:
      - sources: [{model: a, layer_range: [0, 3]}]
      - sources: [{model: b, layer_range: [1, 4]}]
"""


def test_slices_stack_layers_of_several_models(here: Path) -> None:
    made = merge(STACKED)
    origin = [("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3)]
    for layer, (model, number) in enumerate(origin):
        for part in PARTS:
            found = made.weights[f"model.layers.{layer}.{part}"]
            assert torch.equal(found, STATES[model][f"model.layers.{number}.{part}"])
    assert torch.equal(made.weights["model.embed_tokens.weight"], STATES["a"]["model.embed_tokens.weight"])
    for name in ("model.norm.weight", "lm_head.weight"):
        assert torch.equal(made.weights[name], STATES["b"][name])
    assert len(made.weights) == 3 + len(origin) * len(PARTS)


def test_the_config_has_as_many_layers_as_the_slices(here: Path) -> None:
    config = json.loads(merge(STACKED).files["config.json"])
    assert config["num_hidden_layers"] == 6
    assert config["layer_types"] == list("wxyxyz")
    assert config["eos_token_id"] == [1, 2]


def test_slices_merge_layers_of_different_number(here: Path) -> None:
    made = merge("""
        merge_method: linear
        slices:
          - sources:
              - {model: a, layer_range: [0, 2], parameters: {weight: [0, 1]}}
              - {model: b, layer_range: [2, 4], parameters: {weight: 1}}
          - sources: [{model: c, layer_range: [3, 4], parameters: {weight: 1}}]
    """)
    for layer, weight in enumerate((0.0, 1.0)):
        for part in PARTS:
            one = STATES["a"][f"model.layers.{layer}.{part}"]
            other = STATES["b"][f"model.layers.{layer + 2}.{part}"]
            expected = (weight * one + other) / (weight + 1)
            torch.testing.assert_close(made.weights[f"model.layers.{layer}.{part}"], expected)
    assert torch.equal(made.weights["lm_head.weight"], STATES["c"]["lm_head.weight"])


def test_layers_of_one_model_may_be_merged(here: Path) -> None:
    made = merge("""
        merge_method: linear
        slices:
          - sources:
              - {model: a, layer_range: [0, 1]}
              - {model: a, layer_range: [3, 4]}
        parameters: {weight: 1}
    """)
    for part in PARTS:
        expected = (STATES["a"][f"model.layers.0.{part}"] + STATES["a"][f"model.layers.3.{part}"]) / 2
        torch.testing.assert_close(made.weights[f"model.layers.0.{part}"], expected)


def test_a_base_may_differ_from_slice_to_slice(here: Path) -> None:
    made = merge("""
        merge_method: task_arithmetic
        base_model: base
        slices:
          - sources: [{model: base, layer_range: [0, 1]}, {model: a, layer_range: [0, 1]}]
          - sources: [{model: b, layer_range: [1, 2]}, {model: a, layer_range: [1, 2]}]
            base_model: b
        parameters: {weight: 0.5}
    """)
    for layer, start in enumerate(("base", "b")):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        torch.testing.assert_close(made.weights[name], (STATES[start][name] + STATES["a"][name]) / 2)


def test_stacked_models_load_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=20,
    )  # fmt: skip
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(name, max_shard_size="3KB")
    Path("stack.yaml").write_text("""
        merge_method: passthrough
        dtype: bfloat16
        slices:
          - sources: [{model: a, layer_range: [0, 2]}]
          - sources: [{model: b, layer_range: [0, 3]}]
    """)
    run("merge", "stack.yaml", "-o", "out", "--quiet")
    model = LlamaForCausalLM.from_pretrained("out")
    assert model.dtype == torch.bfloat16
    assert len(model.model.layers) == 5
    second = LlamaForCausalLM.from_pretrained("b").model.layers[2].mlp.up_proj.weight
    assert torch.equal(model.model.layers[4].mlp.up_proj.weight, second.to(torch.bfloat16))
    assert model(torch.arange(5)[None]).logits.isfinite().all()


def test_a_view_of_picked_tensors_reads_rows_and_names_its_model(here: Path) -> None:
    view = Picked(open_weights("a"), {"x": "lm_head.weight"}, {"x": torch.float64})
    assert list(view) == ["x"]
    assert torch.equal(view.read("x", slice(2, 4)), STATES["a"]["lm_head.weight"][2:4].double())
    assert view.ref == "a"


# Side files and provenance


def test_written_output_has_config_manifest_and_card(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.yaml").write_text(STACKED)
    run("merge", tmp_path / "m.yaml", "-o", tmp_path / "out", "--quiet")
    assert json.loads((tmp_path / "out/config.json").read_text())["num_hidden_layers"] == 6
    manifest = json.loads((tmp_path / "out/taskvec.json").read_text())
    assert manifest["recipe"]["merge_method"] == "passthrough"
    assert manifest["inputs"]["b"]["fingerprint"] == open_weights("b").fingerprint()
    written = open_weights(tmp_path / "out")
    assert torch.equal(
        written["model.layers.5.mlp.up_proj.weight"], STATES["b"]["model.layers.3.mlp.up_proj.weight"]
    )


def test_differences_are_said_on_standard_error(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.yaml").write_text(
        "{merge_method: dare_ties, base_model: base, dtype: bfloat16, models: [{model: a}], parameters: {weight: 1, density: 0.5}}"
    )
    run("merge", tmp_path / "m.yaml", "-o", tmp_path / "out")
    said = capsys.readouterr().err
    assert "matches the L1 norm" in said
    assert "arithmetic is in float32" in said


def with_tokens(folder: Path, seed: int, tokens: str) -> Path:
    """A model with a row for each of the tokens, named by letters."""
    whole = STATES["abc"[seed]]
    rows = torch.tensor(["abcdefghijkl".index(token) for token in tokens])
    vocabular = ("model.embed_tokens.weight", "lm_head.weight")
    save_weights({name: value[rows] if name in vocabular else value for name, value in whole.items()}, folder)
    vocabulary = {token: row for row, token in enumerate(tokens)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    (folder / "config.json").write_text(json.dumps({"vocab_size": len(tokens), "num_hidden_layers": LAYERS}))
    return folder


@pytest.mark.parametrize(("source", "tokens"), [("base", "abcdef"), ("union", "fghabcde")])
def test_tokens_are_matched_by_name(tmp_path: Path, source: str, tokens: str) -> None:
    one, two = with_tokens(tmp_path / "one", 0, "abcdef"), with_tokens(tmp_path / "two", 1, "fghabcde")
    made = merge(f"""
        merge_method: task_arithmetic
        base_model: {one}
        models: [{{model: {two}}}]
        parameters: {{weight: 0.5}}
        tokenizer_source: {source}
    """)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        first, second = STATES["a"][name], STATES["b"][name]
        for row, token in enumerate(tokens):
            at = "abcdefghijkl".index(token)
            expected = (first[at] + second[at]) / 2 if token in "abcdef" else second[at]
            torch.testing.assert_close(made.weights[name][row], expected)
    assert json.loads((made.like.folder or tmp_path).joinpath("config.json").read_text())[
        "vocab_size"
    ] == len(tokens)


def test_slices_of_models_with_other_tokens_are_refused(tmp_path: Path) -> None:
    one, two = with_tokens(tmp_path / "one", 0, "abcdef"), with_tokens(tmp_path / "two", 1, "abcdfe")
    with pytest.raises(InputError, match="tokenizer differs"):
        merge(f"""
            merge_method: passthrough
            base_model: {one}
            tokenizer_source: base
            slices:
              - sources: [{{model: {one}, layer_range: [0, 2]}}]
              - sources: [{{model: {two}, layer_range: [2, 4]}}]
        """)


ROW_BY_ROW = {
    "linear": "merge_method: linear\nmodels: [{model: one}, {model: two}]\nparameters: {weight: 0.5}",
    "linear with a base": (
        "merge_method: linear\nbase_model: one\nmodels: [{model: one}, {model: two}]\nparameters: {weight: 0.5}"
    ),
    "slerp": "merge_method: slerp\nbase_model: one\nmodels: [{model: two}]\nparameters: {t: 0.5}",
    "task_arithmetic": (
        "merge_method: task_arithmetic\nbase_model: one\nmodels: [{model: two}]\nparameters: {weight: 0.5}"
    ),
}
SLICES = {
    "a foreign head": [("one", 0, 2), ("two", 2, 4)],
    "foreign embeddings, under the tokenizer of the base": [("two", 0, 2), ("one", 2, 4)],
}


@pytest.mark.parametrize("case", ROW_BY_ROW)
def test_rows_of_other_tokens_are_not_averaged(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with_tokens(Path("one"), 0, "abcdefg")
    with_tokens(Path("two"), 1, "abcdegf")
    if "base" in ROW_BY_ROW[case]:
        merge(ROW_BY_ROW[case] + "\ntokenizer_source: union")
    base = "" if "base" in ROW_BY_ROW[case] else " and base_model"
    said = rf"two: token 'g' has row 5, expected 6 as in one \(1 more\); .* tokenizer_source: union \(or base\){base}$"
    with pytest.raises(InputError, match=said):
        merge(ROW_BY_ROW[case])


@pytest.mark.parametrize("case", SLICES)
def test_rows_of_other_tokens_do_not_come_with_a_slice(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with_tokens(Path("one"), 0, "abcdefg")
    with_tokens(Path("two"), 1, "abcdegf")
    with pytest.raises(InputError, match=r"two: token 'g' has row 5.*one vocabulary first, with a recipe"):
        merge(sliced(*SLICES[case]))


def test_layers_alone_may_come_from_a_model_of_other_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with_tokens(Path("one"), 0, "abcdefg")
    two = with_tokens(Path("two"), 1, "abcdegf")
    made = merge(sliced(("one", 0, 1), ("two", 1, 3), ("one", 3, 4)))
    name = "model.layers.2.mlp.up_proj.weight"
    torch.testing.assert_close(made.weights[name], open_weights(two)[name], rtol=0, atol=0)


def sliced(*slices: tuple[str, int, int]) -> str:
    entries = "".join(
        f"  - sources: [{{model: {name}, layer_range: [{first}, {end}]}}]\n" for name, first, end in slices
    )
    return f"merge_method: passthrough\nbase_model: one\nslices:\n{entries}"


# Chat templates


@pytest.mark.parametrize(
    ("given", "found"), [("auto", "{{ most }}"), ("{{ own }}", "{{ own }}"), (None, None)]
)
def test_a_chat_template_is_written_where_it_is_not_the_copied_one(
    tmp_path: Path, given: str | None, found: str | None
) -> None:
    for seed, (name, template) in enumerate(
        [("one", "{{ few }}"), ("two", "{{ most }}"), ("three", "{{ most }}")]
    ):
        save_weights(STATES["abc"[seed]], tmp_path / name)
        if name == "two":
            (tmp_path / name / "chat_template.jinja").write_text(template + "\n")
        else:
            (tmp_path / name / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    models = ", ".join(f"{{model: {tmp_path / name}}}" for name in ("one", "two", "three"))
    template = "" if given is None else f"chat_template: '{given}'"
    made = merge(f"merge_method: karcher\nmodels: [{models}]\n{template}")
    assert made.files.get("chat_template.jinja") == found


def test_the_common_chat_template_needs_no_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_weights(STATES["a" if name == "one" else "b"], tmp_path / name)
    (tmp_path / "one/chat_template.jinja").write_text("{{ same }}")
    made = merge(
        f"merge_method: karcher\nmodels: [{{model: {tmp_path}/one}}, {{model: {tmp_path}/two}}]\nchat_template: auto"
    )
    assert not made.files


# Adapters


def test_a_model_may_come_with_an_adapter(here: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.q_proj"
    down, up = torch.randn(2, 6), torch.randn(6, 2)
    factors = {f"base_model.model.{name}.lora_{k}.weight": v for k, v in (("A", down), ("B", up))}
    save_file(factors, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    made = merge(f"""
        merge_method: task_arithmetic
        base_model: base
        models: [{{model: "base+{tmp_path}", parameters: {{weight: 0.5}}}}]
    """)
    for tensor, base in STATES["base"].items():
        change = 0.5 * 3 * up @ down if tensor.startswith(name) else torch.zeros(())
        torch.testing.assert_close(made.weights[tensor], base + change)
