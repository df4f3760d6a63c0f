"""mergekit's YAML as people write it: what does nothing, models as mappings, several documents, other tools."""
# ruff: noqa: E501  # the tables read best with a case on a line

import json
from pathlib import Path

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edits.mergekit_models import LAYERS, PARTS, SHAPES, STATES, check, merge, run
from taskvec.edits.merge import Merge
from taskvec.edits.mergekit.templates import NAMED
from taskvec.edits.opening import open_recipe
from taskvec.errors import InputError
from taskvec.weights import open_weights

PAIR = "base_model: base\nmodels: [{model: a, parameters: {weight: 0.7}}, {model: b, parameters: {weight: 0.4}}]\n"


def same(found: Merge, expected: Merge) -> bool:
    return all(torch.equal(found.weights[name], expected.weights[name]) for name in expected.weights)


# What does nothing


@pytest.mark.parametrize(
    ("text", "without", "said"),
    [
        (
            f"merge_method: model_stock\n{PAIR}",
            "merge_method: model_stock\nbase_model: base\nmodels: [{model: a}, {model: b}]",
            "models[0].parameters: 'weight' is no parameter of model_stock and does nothing, as in mergekit (1 more)",
        ),
        (
            "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0.5, normalize: true, weight: [1, 2]}",
            "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0.5}",
            "parameters: 'normalize' is no parameter of slerp and does nothing, as in mergekit",
        ),
        (
            f"merge_method: sce\n{PAIR}parameters: {{normalize: true, select_topk: 0.5, density: 0.4}}",
            "merge_method: sce\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {select_topk: 0.5}",
            "parameters: 'density' is no parameter of sce",
        ),
        (
            "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: a, parameters: {weight: 1, normalize: true}}]",
            "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: a, parameters: {weight: 1}}]",
            "models[0].parameters: 'normalize' is one for all models, mergekit ignores it here; move it",
        ),
        (
            f"merge_method: ties\nnormalize: false\nint8_mask: true\n{PAIR}",
            f"merge_method: ties\n{PAIR}",
            "'normalize' does nothing outside of parameters, as in mergekit",
        ),
        (
            f"merge_method: ties\nallow_crimes: true\ndescription: mine\n_text: &t 1\n{PAIR}parameters: {{density: *t}}",
            f"merge_method: ties\n{PAIR}parameters: {{density: 1}}",
            "'allow_crimes' is an option of mergekit's command",
        ),
        (
            "merge_method: linear\nmodels: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 4]}]\nparameters: {weight: 1}",
            "merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}",
            "models[0]: 'layer_range' does nothing for whole models, as in mergekit; layers are merged by slices (1 more)",
        ),
        (
            "merge_method: multislerp\nmodels: [{model: a, density: 0.5}, {model: b}]\nparameters: {weight: 1, eps: 1e-8}",
            "merge_method: multislerp\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}",
            "models[0]: 'density' does nothing outside of parameters",
        ),
        (
            "merge_method: passthrough\nslices: [{residual_weight: 0.5, sources: [{model: a, layer_range: [0, 4], weight: 2}]}]",
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 4]}]}]",
            "slices[0]: 'residual_weight' does nothing here, as in mergekit",
        ),
        (
            f"merge_method: ties\n{PAIR}merge_name: x\nmodel_type: llama\nfor: fun",
            f"merge_method: ties\n{PAIR}",
            "'merge_name' is no key of mergekit and does nothing",
        ),
        (
            "merge_method: linear\nmodels: [{model: a, tokenizer_source: union}, {model: b}]\nparameters: {weight: 1, dtype: float16, merge_method: slerp}",
            "merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}",
            "parameters: 'dtype' does nothing here, as in mergekit",
        ),
        (
            "merge_method: linear\nmodules: {default: {dtype: float16, models: [a, {model: b, name: B}]}}\nparameters: {weight: 1}",
            "merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}",
            "modules.default.models[1]: 'name' does nothing here, as in mergekit",
        ),
        (
            "merge_method: linear\nmodels: [{model: {model: a, override_architecture: X}}, b]\nparameters: {weight: 1}",
            "merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}",
            "models[0].model: 'override_architecture' does nothing; tensors are matched by name",
        ),
    ],
)  # fmt: skip
def test_what_mergekit_ignores_is_a_note_and_changes_nothing(
    here: Path, text: str, without: str, said: str
) -> None:
    made = merge(text)
    assert same(made, merge(without))
    assert any(said in note for note in made.notes)


def test_values_of_idle_parameters_are_not_looked_at(here: Path) -> None:
    text = """
        merge_method: ties
        base_model: base
        models:
          - {model: base, parameters: {density: 0, weight: none}}
          - {model: a, parameters: {weight: 1, t: anything}}
    """
    check(merge(text), lambda base, deltas: base + deltas[0], "a")


@pytest.mark.parametrize("word", ["true", "Yes", "'on'", "1", "1.0"])
def test_truth_values_are_words_and_numbers_too(here: Path, word: str) -> None:
    made = merge(f"merge_method: task_arithmetic\n{PAIR}parameters: {{normalize: {word}}}")
    check(made, lambda base, deltas: base + (0.7 * deltas[0] + 0.4 * deltas[1]) / 1.1)


# Densities of nothing


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties"])
def test_a_tensor_of_density_0_is_its_base(here: Path, method: str) -> None:
    made = merge(f"merge_method: {method}\n{PAIR}parameters: {{density: [0, 0.5, 0.7, 1]}}")
    whole = merge(f"merge_method: {method}\n{PAIR}")
    for name in SHAPES:
        if "layers" not in name or "layers.0." in name:
            assert torch.equal(made.weights[name], STATES["base"][name])
        elif f"layers.{LAYERS - 1}." in name:
            assert torch.equal(made.weights[name], whole.weights[name])
        else:
            assert not torch.equal(made.weights[name], STATES["base"][name])


def test_a_model_of_density_0_leaves_the_others(here: Path) -> None:
    made = merge("""
        merge_method: ties
        base_model: base
        models:
          - {model: a, parameters: {weight: 1, density: [{filter: mlp, value: 0}, {value: 1}]}}
          - {model: b, parameters: {weight: 2}}
    """)
    alone = merge("merge_method: ties\nbase_model: base\nmodels: [{model: b, parameters: {weight: 2}}]")
    both = merge("merge_method: ties\nbase_model: base\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 2}}]")  # fmt: skip
    for name in SHAPES:
        expected = alone if "mlp" in name else both
        torch.testing.assert_close(made.weights[name], expected.weights[name])


def test_a_model_of_density_0_changes_nothing(here: Path) -> None:
    made = merge(f"merge_method: breadcrumbs_ties\n{PAIR.replace('0.4}', '0.4, density: 0}')}")
    check(made, lambda base, deltas: base + 0.7 * deltas[0])


def test_the_weight_of_a_model_of_density_0_counts_in_the_sum(here: Path) -> None:
    made = merge("""
        merge_method: dare_linear
        base_model: base
        models:
          - {model: a, parameters: {weight: 1, density: [0, 0]}}
          - {model: b, parameters: {weight: 3}}
        parameters: {normalize: true}
    """)
    check(made, lambda base, deltas: base + 0.75 * deltas[1])


# Models


@pytest.mark.parametrize(
    "models",
    [
        "[{model: {model: {path: a}}}, {model: {model: {path: b, revision: null}, lora: null}}]",
        "[{model: {path: a}}, {model: {model: b, override_architecture: LlamaForCausalLM}}]",
        "[a, {model: b}]",
        "[./a, {model: ./b@main}]",
    ],
)
def test_a_model_is_a_name_or_a_mapping(here: Path, models: str) -> None:
    made = merge(f"merge_method: linear\nmodels: {models}\nparameters: {{weight: 1}}")
    check(made, lambda base, deltas: base + (deltas[0] + deltas[1]) / 2)


@pytest.mark.parametrize(
    "name", ["Llama-3.1-8B.v2", "a+b", "my.model-0.5@home", "c++", "x_y-z.safetensors.d"]
)
def test_names_have_hyphens_dots_and_other_signs(here: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to((here / "a").resolve())
    made = merge(f"merge_method: passthrough\nmodels: [{{model: '{tmp_path}/{name}'}}]")
    check(made, lambda base, deltas: base + deltas[0], "a")


@pytest.mark.parametrize("base", ["./base", "base/", ".//base"])
def test_a_base_in_another_spelling_is_the_base(here: Path, base: str) -> None:
    text = (
        f"merge_method: ties\nbase_model: {base}\nmodels: [base, {{model: ./a, parameters: {{weight: 1}}}}]"
    )
    spelt = merge(text)
    check(spelt, lambda base, deltas: base + deltas[0], "a")


# Several documents


def several(folder: Path, text: str) -> Merge:
    (folder / "m.yml").write_text(text)
    return open_recipe(folder / "m.yml")


MEAN = "name: the.mean-1\nmerge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\n"
FINAL = "merge_method: task_arithmetic\nbase_model: base\nmodels: [{model: the.mean-1}, {model: c}]\nparameters: {weight: 0.5}\n"


@pytest.mark.parametrize("text", [f"{MEAN}---\n{FINAL}", f"---\n{FINAL}---\n{MEAN}---\n", f"{MEAN}---\nname: last\n{FINAL}"])  # fmt: skip
def test_documents_are_models_of_other_documents(here: Path, tmp_path: Path, text: str) -> None:
    made = several(tmp_path, text)
    check(made, lambda base, deltas: base + 0.25 * deltas[0] + 0.25 * deltas[1] + 0.5 * deltas[2], "abc")
    assert set(made.inputs) == {"base", "a", "b", "c"}


def test_a_chain_of_documents_equals_merges_written_one_by_one(here: Path, tmp_path: Path) -> None:
    stacked = (
        "slices: [{sources: [{model: a, layer_range: [0, 3]}]}, {sources: [{model: b, layer_range: [1, 4]}]}]"
    )
    first = f"merge_method: passthrough\n{stacked}\ndtype: bfloat16\n"
    second = "merge_method: ties\nbase_model: {}\nmodels: [{}]\nparameters: {{weight: 0.5, density: 0.5}}\n"
    shifted = "merge_method: passthrough\nmodels: [{model: tall, parameters: {scale: 1.5}}]\n"
    (tmp_path / "one.yml").write_text(first)
    run("merge", tmp_path / "one.yml", "-o", tmp_path / "tall", "--quiet")
    (tmp_path / "two.yml").write_text(shifted.replace("tall", str(tmp_path / "tall")))
    run("merge", tmp_path / "two.yml", "-o", tmp_path / "moved", "--quiet")
    (tmp_path / "three.yml").write_text(second.format(tmp_path / "tall", tmp_path / "moved"))
    run("merge", tmp_path / "three.yml", "-o", tmp_path / "apart", "--quiet")
    (tmp_path / "all.yml").write_text(
        f"name: tall\n{first}---\nname: moved\n{shifted}---\n{second.format('tall', 'moved')}"
    )
    run("merge", tmp_path / "all.yml", "-o", tmp_path / "at-once", "--quiet")
    found, expected = open_weights(tmp_path / "at-once"), open_weights(tmp_path / "apart")
    assert list(found) == list(expected) and len(found) == 3 + 6 * len(PARTS)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    configs = [json.loads((tmp_path / out / "config.json").read_text()) for out in ("at-once", "apart")]
    assert configs[0] == configs[1] and configs[0]["num_hidden_layers"] == 6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"{FINAL}---\n{FINAL}", "2 documents without a name, expected one"),
        (f"{MEAN}---\n{MEAN}", "two documents are named 'the.mean-1'"),
        ("name: x\nmerge_method: passthrough\nmodels: [y]\n---\nname: y\nmerge_method: passthrough\nmodels: [x]", "x: is made of itself"),
        (f"{MEAN}---\n[1]", "document 2 is no mapping"),
        (f"{MEAN.replace('weight', 'wieght')}---\n{FINAL}", "m.yml: the.mean-1: parameters: unknown parameter 'wieght'"),
        ("\n---\n".join(f"name: d{n}\nmerge_method: passthrough\nmodels: [{f'd{n - 1}' if n else 'a'}]" for n in range(30)), "more than 20 documents made of each other"),
        ("base: base\n---\nbase: a", "2 documents, expected one recipe"),
    ],
)  # fmt: skip
def test_documents_that_do_not_fit_are_refused(here: Path, tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        several(tmp_path, text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_document_that_none_uses_is_named(here: Path, tmp_path: Path) -> None:
    made = several(tmp_path, f"{MEAN}---\nmerge_method: passthrough\nmodels: [c]")
    assert any("'the.mean-1' is no model of the last one" in note for note in made.notes)


# The base alone


def test_slices_of_the_base_alone_stand_beside_merged_ones(here: Path) -> None:
    made = merge("""
        merge_method: ties
        base_model: base
        slices:
          - sources: [{model: base, layer_range: [0, 2]}]
          - sources: [{model: base, layer_range: [2, 4]}, {model: a, layer_range: [2, 4], parameters: {weight: 1}}]
    """)
    for name in SHAPES:
        late = any(part in name for part in ("layers.2", "layers.3", "model.norm", "lm_head"))
        torch.testing.assert_close(made.weights[name], STATES["a" if late else "base"][name])


# Chat templates


SAID = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]
FORMATS = {
    "alpaca": "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello.\n\n### Instruction:\nBye\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello.[|endofturn|]\n[|user|]Bye\n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Be brief.\n\nHi [/INST] Hello.</s> [INST] Bye [/INST]",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_a_template_by_name_renders_the_published_format(here: Path, name: str) -> None:
    text = merge(f"merge_method: passthrough\nmodels: [a]\nchat_template: {name}").files[
        "chat_template.jinja"
    ]
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(text)
    shown = template.render(messages=SAID, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
    assert shown == FORMATS[name]


# Other files


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base_model: a\ngate_mode: hidden\nexperts: [{source_model: b, positive_prompts: [x]}]", "a file of mergekit-moe"),
        ("base_model: a\nexperts: []\nexperts_per_token: 2\nshared_experts: []\ndtype: bfloat16", "a file of mergekit-moe"),
        ("genome: {models: [a, b], merge_method: ties, layer_granularity: 8}\ntasks: [{name: t}]", "a file of mergekit-evolve"),
        ("layer_slices: [{model: a, start: 0, end: 2}]\nembedding_source: a", "a file of bakllama"),
        ("models: [{model: a}, {model: b}]\nparameters: {weight: 1}", "merge_method is missing"),
        ("slices: [{sources: [{model: a, layer_range: [0, 2]}]}]", "merge_method is missing"),
    ],
)  # fmt: skip
def test_files_of_other_tools_are_told_apart(here: Path, tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"^\S+m\.yml: ") as caught:
        several(tmp_path, text)
    assert said in str(caught.value) and "\n" not in str(caught.value)
