"""LoRA adapters are task vectors: what PEFT merges, edits give."""

import json
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters import (
    bert,
    convnext,
    gpt2,
    llama,
    loaded,
    masked_bert,
    merged,
    save_adapter_of,
    save_base,
    untied_gpt2,
)
from taskvec.cli import main
from taskvec.errors import BaseMismatch, InputError, KeyMismatch, UnsafeFile
from taskvec.vectors import TaskVector, apply, combine, parse_expression
from taskvec.vectors.stored.masked import emr
from taskvec.weights import open_weights
from taskvec.weights.blocks import rows_of

CASES: dict[str, tuple[Callable[[], Any], int, dict[str, Any]]] = {
    "plain": (llama, 6, {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "rank-stabilised": (llama, 14, {"target_modules": "all-linear", "use_rslora": True, "lora_alpha": 3}),
    "patterns": (
        llama,
        14,
        {
            "target_modules": "all-linear",
            "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 3},
            "alpha_pattern": {"q_proj": 7, "^model.layers.0.mlp.up_proj": 9},
        },
    ),
    "DoRA": (llama, 14, {"target_modules": "all-linear", "use_dora": True}),
    "Conv1D": (gpt2, 8, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "Conv1D, DoRA": (gpt2, 8, {"target_modules": ["c_attn", "c_proj", "c_fc"], "use_dora": True}),
    "Conv1D, square": (gpt2, 2, {"target_modules": ["attn.c_proj"]}),
    "Conv1D, square, and Linear": (untied_gpt2, 3, {"target_modules": ["attn.c_proj", "lm_head"]}),
    "biases": (bert, 24, {"target_modules": ["query", "value"], "bias": "all", "task_type": "SEQ_CLS"}),
    "biases of the layers": (bert, 8, {"target_modules": ["query", "value"], "bias": "lora_only"}),
    "bias of the factors": (bert, 8, {"target_modules": ["query", "value"], "lora_bias": True}),
    "saved whole": (bert, 11, {"target_modules": ["query", "dense"], "modules_to_save": ["classifier"]}),
    "embedding": (llama, 3, {"target_modules": ["embed_tokens", "q_proj"]}),
    "embedding, DoRA": (llama, 3, {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "embedding and head": (llama, 4, {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "convolution": (convnext, 4, {"target_modules": ".*(pwconv1|patch_embeddings|downsampling_layer.1)"}),
    "convolution, DoRA": (convnext, 2, {"target_modules": ".*(pwconv1)", "use_dora": True}),
    "orthogonal start": (llama, 2, {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"}),
}


def assert_close(found: Tensor, expected: Tensor) -> None:
    tolerance = 1e-14 if expected.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_an_edit_with_an_adapter_is_what_peft_merges(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    make, changed, config = CASES[case]
    base = save_base(make, tmp_path / "base", dtype)
    folder = save_adapter_of(base, make, tmp_path / "adapter", **config)
    expected = merged(base, make, folder)
    start, edited = open_weights(base), apply(base, TaskVector.load(folder))
    assert edited.keys() <= expected.keys()
    for name in edited:
        assert edited[name].dtype == dtype
        assert_close(edited[name], expected[name])
        assert torch.equal(edited.read(name, slice(1, 3)), rows_of(edited[name], slice(1, 3)))
    assert sum(not torch.equal(expected[name], start[name]) for name in start) == changed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base and two adapters of different rank and targets. Not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    base = save_base(llama, folder / "base")
    for adapter, seed in (("a", 1), ("b", 2)):
        targets = {"target_modules": ["q_proj", "up_proj" if adapter == "a" else "v_proj"], "r": 5 - seed}
        save_adapter_of(base, llama, folder / adapter, seed, **targets)
        said = folder / adapter / "adapter_config.json"
        said.write_text(said.read_text().replace(str(base), "base"))
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made, tmp_path, dirs_exist_ok=True))


def dense(adapter: str) -> TaskVector:
    """The same direction as a difference of models."""
    return TaskVector.between("base", merged(Path("base"), llama, Path(adapter)))


def assert_same_vectors(found: TaskVector, expected: TaskVector) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-14)


def test_sums_are_sums_of_the_products_not_of_the_factors(place: Path) -> None:
    both = {name: TaskVector.load(name) for name in "ab"}
    edit = parse_expression("2*a - 0.5*b", both)
    assert_same_vectors(edit.with_base("base"), 2.0 * dense("a") - 0.5 * dense("b"))
    edited = apply("base", edit)
    expected = apply("base", 2.0 * dense("a") - 0.5 * dense("b"))
    assert all(torch.allclose(edited[name], expected[name], rtol=0, atol=1e-14) for name in expected)


@pytest.mark.parametrize("rule", ["mean", "ties", "dare+ties", "tsv", "slerp"])
def test_rules_see_adapters_as_they_see_dense_vectors(place: Path, rule: str) -> None:
    edit = combine(rule, [TaskVector.load("a").with_base("base"), TaskVector.load("b").with_base("base")])
    expected = combine(rule, [dense("a"), dense("b")])
    for name in expected:
        torch.testing.assert_close(edit[name], expected[name], rtol=1e-9, atol=1e-12)


def test_what_is_made_of_adapters_finds_its_base_when_it_is_applied(place: Path) -> None:
    a, b = TaskVector.load("a"), TaskVector.load("b")
    grounded = [a.with_base("base"), b.with_base("base")]
    for free, bound in (
        (combine("ties", [a, b]), combine("ties", grounded)),
        (TaskVector.random_like(a, 0), TaskVector.random_like(grounded[0], 0)),
        (a.scaled({"model.layers.0.mlp.up_proj.weight": 2.0}), None),
        (a - a, None),
    ):
        edited = apply("base", free)
        if bound is not None:
            expected = apply("base", bound)
            assert all(torch.equal(edited[name], expected[name]) for name in expected)
    assert all(torch.equal(value, open_weights("base")[name]) for name, value in apply("base", a - a).items())


def test_an_adapter_needs_no_ceremony_and_other_vectors_are_checked_as_before(place: Path) -> None:
    adapter = TaskVector.load("a")
    assert adapter.base.unbound and adapter.info.base.fingerprint is None
    assert adapter.info.base.ref == "base" and adapter.info.regime == "lora"
    vector = TaskVector.load(dense("b").save("b.safetensors"))
    with pytest.raises(BaseMismatch, match=r"records no base.*with_base"):
        adapter + vector
    with pytest.raises(BaseMismatch, match="records no base"):
        combine("ties", [vector, adapter])
    assert_same_vectors(adapter.with_base("base") + vector, dense("a") + dense("b"))
    moved = {name: value + 1 for name, value in open_weights("base").items()}
    assert apply(moved, adapter)["model.norm.weight"].equal(moved["model.norm.weight"])
    with pytest.raises(BaseMismatch, match="allow_other_base"):
        apply(moved, vector)
    with pytest.raises(BaseMismatch, match="allow_other_base"):
        apply(moved, adapter.with_base("base"))


def test_an_adapter_can_be_stored_as_an_ordinary_vector(place: Path) -> None:
    path = TaskVector.between("base", "a").save("a.safetensors")
    stored = TaskVector.load(path)
    assert stored.info.base.fingerprint == open_weights("base").fingerprint()
    assert stored.info.regime == "lora" and stored.info.training is not None
    assert_same_vectors(stored, dense("a"))
    assert TaskVector.load("a").norm() == pytest.approx(stored.norm())


def test_an_adapter_of_no_base_is_not_stored_as_another_vector(place: Path) -> None:
    both = {name: TaskVector.load(name) for name in "ab"}
    for vector in (both["a"], both["a"] + both["b"], combine("ties", list(both.values()))):
        with pytest.raises(BaseMismatch, match="cannot be stored as a vector before it has one"):
            vector.save("v.safetensors")
    with pytest.raises(BaseMismatch, match="taskvec diff BASE ADAPTER"):
        emr(both)
    assert not Path("v.safetensors").exists()


def test_pickled_factors_are_read_and_pickles_that_run_code_are_not(place: Path) -> None:
    expected = TaskVector.load("a")
    factors = load_file("a/adapter_model.safetensors")
    Path("a/adapter_model.safetensors").unlink()
    torch.save(factors, "a/adapter_model.bin")
    assert_same_vectors(TaskVector.load("a"), TaskVector.load("a/adapter_model.bin"))
    assert_same_vectors(TaskVector.load("a"), expected)
    Path("a/adapter_model.bin").write_bytes(pickle.dumps(print))
    with pytest.raises(UnsafeFile):
        TaskVector.load("a")


def test_a_base_without_the_head_is_found_by_its_own_names(tmp_path: Path) -> None:
    base = save_base(bert, tmp_path / "headed")
    folder = save_adapter_of(base, bert, tmp_path / "adapter", target_modules=["query"])
    bare = {
        name.removeprefix("bert."): value for name, value in open_weights(base).items() if "bert." in name
    }
    expected = merged(base, bert, folder)
    edited = apply(bare, TaskVector.load(folder))
    assert all(torch.allclose(edited[name], expected[f"bert.{name}"], rtol=0, atol=1e-15) for name in edited)


def test_a_new_head_is_left_out_only_when_asked(tmp_path: Path) -> None:
    base = save_base(bert, tmp_path / "headed")
    folder = save_adapter_of(base, bert, tmp_path / "adapter", target_modules=["query"], task_type="SEQ_CLS")
    bare = {name: value for name, value in open_weights(base).items() if "classifier" not in name}
    with pytest.raises(KeyMismatch, match=r"'classifier.bias' was trained whole.*--on-extra drop"):
        apply(bare, TaskVector.load(folder))
    edited = apply(bare, TaskVector.between(bare, folder, on_extra="drop"))
    expected = merged(base, bert, folder)
    assert all(torch.allclose(edited[name], expected[name], rtol=0, atol=1e-15) for name in edited)


def test_saved_weights_of_an_embedding_are_what_the_factors_are_added_to(tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    folder = save_adapter_of(
        base, llama, tmp_path / "adapter", target_modules=["embed_tokens"], use_dora=True
    )
    factors = load_file(folder / "adapter_model.safetensors")
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    factors[key] = factors[key] + 0.5
    save_file(factors, folder / "adapter_model.safetensors")
    expected = merged(base, llama, folder)
    edited = apply(base, TaskVector.load(folder))
    assert_close(edited["model.embed_tokens.weight"], expected["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    "tied", [{"lm_head.weight": "model.embed_tokens.weight"}, {}], ids=["said", "unsaid"]
)
def test_one_use_of_shared_weights_is_not_changed_alone(tmp_path: Path, tied: dict[str, str]) -> None:
    base = save_base(lambda: llama(tie_word_embeddings=True), tmp_path / "base")
    if tied:
        weights = load_file(base / "model.safetensors")
        save_file(weights, base / "model.safetensors", metadata=tied)
    folder = save_adapter_of(base, llama, tmp_path / "adapter", target_modules=["embed_tokens"])
    with pytest.raises(KeyMismatch, match=r"shares its weights with .*; save the base untied first"):
        apply(base, TaskVector.load(folder))


HEADS: dict[str, tuple[Any, str]] = {
    "a decoder": (lambda: llama(tie_word_embeddings=True), "lm_head"),
    "GPT-2": (gpt2, "lm_head"),
    "a masked language model": (masked_bert, "decoder"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_without_weights_of_its_own_is_said_to_share_them(kind: str, tmp_path: Path) -> None:
    make, head = HEADS[kind]
    base = save_base(make, tmp_path / "base")
    folder = save_adapter_of(base, make, tmp_path / "adapter", target_modules=[head])
    with pytest.raises(
        KeyMismatch, match=rf"{head}.weight' shares its weights with .*; save the base untied"
    ):
        apply(base, TaskVector.load(folder))


@pytest.mark.parametrize("kind", ["a decoder", "GPT-2"])
def test_an_adapter_of_a_tied_head_fits_the_base_untied_as_the_page_says(kind: str, tmp_path: Path) -> None:
    make, head = HEADS[kind]
    base = save_base(make, tmp_path / "base")
    folder = save_adapter_of(base, make, tmp_path / "adapter", target_modules=[head])
    model = loaded(make, base)
    model.config.tie_word_embeddings = False
    layer = model.get_output_embeddings()
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    model.save_pretrained(tmp_path / "untied")
    expected = merged(tmp_path / "untied", make, folder)
    edited = apply(tmp_path / "untied", TaskVector.load(folder))
    for name in edited:
        assert_close(edited[name], expected[name])


def test_an_adapter_beside_a_model_is_asked_for_by_its_file(tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "both")
    save_adapter_of(base, llama, base, target_modules=["q_proj"])
    with pytest.raises(InputError, match=r"for the adapter beside them name its file: .*both/adapter_model"):
        TaskVector.load(base)
    assert TaskVector.load(base / "adapter_model.safetensors").bind(open_weights(base))


def edit_json(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def edit_factors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        save_file(
            change(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors"
        )

    return edit


def without(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda factors: {key: value for key, value in factors.items() if part not in key}


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda factors: {key.replace(old, new): value for key, value in factors.items()}


LAYER = "base_model.model.model.layers.0.self_attn.q_proj"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "another kind": (edit_json(peft_type="IA3"), "an adapter of the kind IA3, expected LORA"),
    "no kind": (edit_json(peft_type=None), "adapter_config.json: peft_type: "),
    "PiSSA": (edit_json(init_lora_weights="pissa"), "'pissa', which changes the base before training"),
    "OLoRA": (edit_json(init_lora_weights="olora"), "'olora', which changes the base before training"),
    "trained tokens": (edit_json(trainable_token_indices=[1]), "'trainable_token_indices' is set"),
    "repeated layers": (edit_json(layer_replication=[[0, 2]]), "'layer_replication' is set"),
    "a later variant": (edit_json(use_something=True), "'use_something' is set, expected plain LoRA"),
    "a number of a later variant": (edit_json(lora_gain=2.0), "'lora_gain' is 2.0, expected plain LoRA"),
    "a word of a later variant": (
        edit_json(lora_mode="twice"),
        "'lora_mode' is 'twice', expected plain LoRA",
    ),
    "a head that was not saved": (
        edit_json(modules_to_save=["lm_head"]),
        "no tensor of 'lm_head', expected it saved whole as modules_to_save",
    ),
    "a layer under two prefixes": (
        edit_factors(lambda f: {**f, **{k.removeprefix("base_model.model."): 2 * v for k, v in f.items()}}),
        "are the same part of the same layer, expected one",
    ),
    "DoRA without its lengths": (edit_json(use_dora=True), "lora_magnitude_vector' is missing"),
    "another rank": (edit_json(r=5), r"expected rank 5 as in the settings"),
    "no rank": (edit_json(r=0), "a rank is smaller than 1"),
    "no number": (edit_json(lora_alpha="much"), "adapter_config.json: lora_alpha: "),
    "no pattern": (edit_json(alpha_pattern={"(": 1}), "is not a regular expression"),
    "settings that are no JSON": (
        lambda folder: (folder / "adapter_config.json").write_text("{"),
        "not valid JSON",
    ),
    "no settings": (
        lambda folder: (folder / "adapter_config.json").unlink(),
        "no such file, expected the settings",
    ),
    "no B": (
        edit_factors(without("0.self_attn.q_proj.lora_B")),
        r"q_proj.lora_B.weight' is missing, expected it beside",
    ),
    "no A": (
        edit_factors(without("0.self_attn.q_proj.lora_A")),
        r"q_proj.lora_A.weight' is missing, expected it beside",
    ),
    "nothing": (edit_factors(without("lora")), "no factors of a layer in it"),
    "an unknown part": (
        edit_factors(renamed("lora_A", "lora_C")),
        "lora_C.weight' found, expected lora_A.weight",
    ),
    "lengths without DoRA": (
        edit_factors(lambda f: {**f, f"{LAYER}.lora_magnitude_vector": torch.ones(16)}),
        "lora_magnitude_vector' found, expected none by the adapter's settings",
    ),
    "a tensor that nothing explains": (
        edit_factors(lambda f: {**f, "base_model.model.model.extra.weight": torch.ones(16)}),
        r"'model.extra.weight' was trained whole and base has no such tensor",
    ),
    "nothing in a factor": (
        edit_factors(lambda f: {**f, f"{LAYER}.lora_A.weight": torch.ones(4, 0)}),
        r"has shape \(4, 0\) and .*, expected rank 4",
    ),
    "a token below 0": (
        edit_json(trainable_token_indices=[-1]),
        r"adapter_config.json: trainable_token_indices.0: input should be greater",
    ),
    "an initialization that is no name": (
        edit_json(init_lora_weights=5),
        r"adapter_config.json: init_lora_weights: input should be",
    ),
    "integers": (
        edit_factors(lambda f: {k: v.to(torch.int8) for k, v in f.items()}),
        "dtype int8, expected floating",
    ),
    "another model": (
        edit_factors(renamed("layers.1", "layers.7")),
        "'model.layers.7.*was the adapter trained on another",
    ),
    "another width": (
        edit_factors(lambda f: {k: v[:, :-1].contiguous() if "lora_A" in k else v for k, v in f.items()}),
        r"has shape \(\d+, 15\), expected \(\d+, 16\) as in the base",
    ),
    "NaN": (edit_factors(lambda f: {k: v * float("nan") for k, v in f.items()}), "NaN or infinite"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_known_exactly_is_refused_in_one_line(
    case: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, said = BAD[case]
    spoil(Path("a"))
    with pytest.raises(SystemExit) as done:
        main(["apply", "base", "-v", "a=a", "-o", "out", "-q"])
    error = capsys.readouterr().err
    assert done.value.code == 2, error
    assert error.count("\n") == 1
    assert not Path("out").exists()
    assert re.search(said, error), error


def test_an_adapter_is_no_model(place: Path) -> None:
    with pytest.raises(InputError, match="holds a LoRA adapter, expected the weights of a model"):
        apply("a", TaskVector.load("b"))
    with pytest.raises(InputError, match="holds a LoRA adapter, expected the weights of a model"):
        TaskVector.between("a", "base")


def test_what_is_relative_to_the_base_is_not_read_without_it(tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    folder = save_adapter_of(base, llama, tmp_path / "adapter", target_modules=["q_proj"], use_dora=True)
    with pytest.raises(InputError, match="known only relative to the base"):
        TaskVector.load(folder).norm()
    assert TaskVector.load(folder).with_base(base).norm() > 0


def test_square_layers_of_unknown_orientation_are_refused(place: Path) -> None:
    """A model of our own with layers of both orientations, and a square one that nothing tells about."""
    base = {
        "one.weight": torch.zeros(4, 8),
        "one.bias": torch.zeros(4),
        "other.weight": torch.zeros(4, 8),
        "other.bias": torch.zeros(8),
        "third.weight": torch.zeros(4, 4),
        "third.bias": torch.zeros(4),
    }
    shutil.copytree("a", "c")
    factors = {"third.lora_A.weight": torch.ones(4, 4), "third.lora_B.weight": torch.ones(4, 4)}
    save_file(factors, "c/adapter_model.safetensors")
    with pytest.raises(KeyMismatch, match=r"'third.weight' is square and .* has layers of both"):
        apply(base, TaskVector.load("c"))
    del base["third.bias"]  # then it can only be (out, in)
    assert apply(base, TaskVector.load("c"))["third.weight"].equal(torch.full((4, 4), 8.0))


def test_apply_diff_and_inspect_take_adapters_by_the_shell(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> Any:
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main(words)
        assert not done.value.code, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    run("diff", "base", "b", "-o", "b.safetensors", "--json")
    run("apply", "base", "-v", "a=a", "-v", "b=b.safetensors", "-e", "a + b", "-o", "out", "--json")
    expected = apply("base", dense("a") + dense("b"))
    written = open_weights("out")
    assert all(torch.allclose(written[name], expected[name], rtol=0, atol=1e-14) for name in expected)
    manifest = json.loads(Path("out/taskvec.json").read_text())
    assert manifest["vectors"]["a"]["regime"] == "lora"
    run("apply", "base", "-v", "a=a", "-v", "b=b", "--rule", "ties", "-o", "tied", "--json")
    a, _ = run("inspect", "a", "b", "--json")["files"]
    assert (a["kind"], a["norm"]) == ("LoRA adapter", pytest.approx(dense("a").norm()))
    assert run("inspect", "a", "b", "--json")["cosines"][0][1] == pytest.approx(dense("a").cosine(dense("b")))
    for pair in (("a", "b.safetensors"), ("b.safetensors", "a")):
        with pytest.raises(SystemExit, match="2"):
            main(["inspect", *pair])
        said = "taskvec: a: an adapter, which records no base, is not compared with b.safetensors"
        assert said in capsys.readouterr().err
        assert len(run("inspect", *pair, "--allow-other-base", "--json")["cosines"]) == 2


def test_settings_that_do_nothing_may_be_of_any_name(place: Path) -> None:
    before = TaskVector.load("a").info.training
    edit_json(use_something=False, lora_gain=0, lora_mode="", lora_map={}, modules_to_save=[])(Path("a"))
    assert TaskVector.load("a").info.training == before


def test_two_names_in_an_adapter_do_not_lead_to_one_layer(place: Path) -> None:
    shutil.copytree("a", "c")
    names = [f"{prefix}layer.lora_{part}.weight" for prefix in ("", "model.") for part in "AB"]
    save_file({name: torch.ones(4, 4) for name in names}, "c/adapter_model.safetensors")
    with pytest.raises(KeyMismatch, match="another layer of the adapter, expected one"):
        apply({"layer.weight": torch.zeros(4, 4)}, TaskVector.load("c"))


@pytest.mark.parametrize("held", ["classifier", "score"])
def test_a_classifier_has_one_of_the_two_heads_that_peft_lists(held: str, place: Path) -> None:
    edit_json(modules_to_save=["classifier", "score"])(Path("a"))
    head = torch.ones(2, 16, dtype=torch.float64)
    edit_factors(lambda f: {**f, f"base_model.model.{held}.weight": head})(Path("a"))
    assert f"{held}.weight" in TaskVector.load("a")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (LoraConfig(target_modules=["q_proj"]), "LoRA adapter"),
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "adapter (IA3)"),
        (TrainableTokensConfig(token_indices=[1, 3]), "adapter (TRAINABLE_TOKENS)"),
    ],
)
def test_inspect_says_what_kind_of_adapter_it_is_and_not_that_we_made_it(
    kind: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base(llama, tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(loaded(llama, base), kind).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(SystemExit, match="0"):
        main(["inspect", str(tmp_path / "adapter"), "--json"])
    [facts] = json.loads(capsys.readouterr().out)["files"]
    assert facts["kind"] == said
    assert "created_by" not in facts
