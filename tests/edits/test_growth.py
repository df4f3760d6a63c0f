"""Adapters that were trained with more tokens than their base: the result has the rows of these."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM

from adapters import gpt2, llama, save_adapter_of, save_base
from taskvec.cli import main
from taskvec.edits.opening import open_recipe, save_merge
from taskvec.errors import InputError, KeyMismatch
from taskvec.vectors import TaskVector, apply
from taskvec.weights import open_weights, save_weights

Network = Any
ROWS, MORE = 20, 3


def tied_llama() -> Network:
    return llama(tie_word_embeddings=True)


def load(base: Path, more: int) -> Network:
    network: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    network.resize_token_embeddings(ROWS + more, mean_resizing=False)
    return network


def save_larger(base: Path, folder: Path, more: int = MORE, **config: Any) -> Path:
    """An adapter of the base with more tokens, each of its tensors moved at random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(more)
        tuned: Any = get_peft_model(load(base, more), LoraConfig(**{"r": 2, "lora_alpha": 6, **config}))
        for parameter in dict.fromkeys(tuned.parameters()):
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        tuned.save_pretrained(str(folder))
        save_tokenizer(folder, ROWS + more)
    return folder


def save_tokenizer(folder: Path, tokens: int) -> None:
    Tokenizer(WordLevel({f"t{n}": n for n in range(tokens)}, "t0")).save(str(folder / "tokenizer.json"))


def merge_larger(base: Path, adapter: Path, more: int = MORE) -> dict[str, torch.Tensor]:
    """What PEFT makes of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = PeftModel.from_pretrained(load(base, more), adapter, autocast_adapter_dtype=False)
        return dict(tuned.merge_and_unload().state_dict())


CASES: dict[str, tuple[Callable[[], Network], dict[str, Any]]] = {
    "saved whole": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "frozen": (llama, {"target_modules": ["q_proj"]}),
    "frozen and tied": (tied_llama, {"target_modules": ["q_proj"]}),
    "saved whole and tied": (
        tied_llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "hub names": (
        gpt2,
        {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    ),
    "factors": (llama, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "rows": (llama, {"target_modules": ["q_proj"], "trainable_token_indices": [2, 20, 21, 22]}),
    "rows, tied": (tied_llama, {"target_modules": ["q_proj"], "trainable_token_indices": [22, 20, 21]}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_result_has_the_rows_of_the_adapter_and_loads(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, config = CASES[case]
    base = save_base(make, tmp_path / "base")
    save_tokenizer(base, ROWS)
    adapter = save_larger(base, tmp_path / "adapter", **config)
    with pytest.raises(SystemExit) as done:
        main(["apply", str(base), "-v", f"a={adapter}", "-o", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert not done.value.code, said
    assert f"adds {MORE} rows to" in said and "tokenizer goes with the output" in said
    assert "left behind" not in said
    expected = merge_larger(base, adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded: Any = (GPT2LMHeadModel if make is gpt2 else LlamaForCausalLM).from_pretrained(
            tmp_path / "out", dtype="auto", output_loading_info=True
        )
    made, report = loaded
    assert not any(report.values()), report
    assert made.config.vocab_size == ROWS + MORE
    for name, value in made.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-13, atol=1e-13)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == (adapter / "tokenizer.json").read_text()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, an adapter of it, and two that add tokens, in the working directory."""
    monkeypatch.chdir(tmp_path)
    save_base(llama, Path("base"))
    save_adapter_of(Path("base"), llama, Path("plain"), target_modules=["v_proj"])
    for name, more in (("large", 3), ("larger", 5)):
        save_larger(
            Path("base"),
            Path(name),
            more,
            target_modules=["q_proj"],
            modules_to_save=["embed_tokens", "lm_head"],
        )
    return tmp_path


def test_new_rows_are_as_trained_whatever_the_coefficient(place: Path) -> None:
    base, tuned, large = (
        open_weights("base"),
        merge_larger(Path("base"), Path("large")),
        TaskVector.load("large"),
    )
    edited = apply("base", large, 0.5)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(edited[name][ROWS:], tuned[name][ROWS:])
        torch.testing.assert_close(edited[name][:ROWS], (base[name] + tuned[name][:ROWS]) / 2)
        assert torch.equal(edited.read(name, slice(18, 22)), edited[name][18:22])
        assert torch.equal(edited.read(name, slice(21, None)), edited[name][21:])
    torch.testing.assert_close(
        edited["model.layers.0.self_attn.q_proj.weight"],
        (base + large.scaled({}))["model.layers.0.self_attn.q_proj.weight"] / 2
        + base["model.layers.0.self_attn.q_proj.weight"] / 2,
    )


def test_other_adapters_and_rules_go_with_one_that_adds_tokens(place: Path) -> None:
    Path("recipe.yaml").write_text("base: base\nvectors: {a: large, b: plain}\nexpression: a + 0.5*b\n")
    save_merge(open_recipe("recipe.yaml"), "out")
    made, tuned = open_weights("out"), merge_larger(Path("base"), Path("large"))
    half = apply("base", 0.5 * TaskVector.load("plain"))
    assert torch.allclose(made["lm_head.weight"], tuned["lm_head.weight"], rtol=0, atol=1e-13)
    name = "model.layers.1.self_attn.v_proj.weight"
    assert torch.allclose(made[name], half[name], rtol=0, atol=1e-13)
    assert json.loads(Path("out/config.json").read_text())["vocab_size"] == ROWS + MORE
    Path("recipe.yaml").write_text("base: base\nvectors: {a: large, b: plain}\nrule: ties\n")
    assert open_recipe("recipe.yaml").weights.spec("lm_head.weight").shape == (ROWS + MORE, 16)


def test_the_sum_in_python_is_that_of_the_command(place: Path) -> None:
    both = TaskVector.load("large") + TaskVector.load("plain")
    assert apply("base", both).spec("lm_head.weight").shape == (ROWS + MORE, 16)
    bound = TaskVector.load("large").with_base("base")
    assert torch.equal(
        apply("base", bound)["lm_head.weight"], apply("base", TaskVector.load("large"))["lm_head.weight"]
    )


def test_what_python_writes_loads(place: Path) -> None:
    save_weights(apply("base", TaskVector.load("large")), "out")
    loaded: Any = LlamaForCausalLM.from_pretrained("out", dtype="auto", output_loading_info=True)
    network, report = loaded
    assert not any(report.values()) and network.config.vocab_size == ROWS + MORE


@pytest.mark.parametrize("make", [llama, tied_llama, gpt2])
def test_an_adapter_with_fewer_rows_gives_a_model_with_as_many(
    make: Callable[[], Network], tmp_path: Path
) -> None:
    """As where the embedding was padded, and cut to the length of the tokenizer before training."""
    base = save_base(make, tmp_path / "base")
    head = "wte" if make is gpt2 else "embed_tokens"
    config = {"modules_to_save": [head, "lm_head"]} if make is llama else {}
    adapter = save_larger(base, tmp_path / "adapter", -3, target_modules=["c_attn", "q_proj"], **config)
    expected = merge_larger(base, adapter, -3)
    edited = apply(base, TaskVector.load(adapter))
    for name in edited:
        torch.testing.assert_close(edited[name], expected[name], rtol=1e-13, atol=1e-13)


def test_two_adapters_that_add_tokens_are_refused(place: Path) -> None:
    Path("recipe.yaml").write_text("base: base\nvectors: {a: large, b: larger}\nrule: mean\n")
    for attempt in (
        lambda: apply("base", TaskVector.load("large") + TaskVector.load("larger")),
        lambda: open_recipe("recipe.yaml"),
    ):
        with pytest.raises(KeyMismatch, match=r"adds? rows to the vocabulary.* vocab: union|as in large"):
            attempt()


def test_mergekit_is_told_to_write_the_larger_model_first(place: Path) -> None:
    Path("m.yaml").write_text(
        "merge_method: linear\nmodels: [{model: base+large, parameters: {weight: 1}}]\n"
    )
    with pytest.raises(InputError, match="write that model first: taskvec apply base -v a=large -o OUT"):
        open_recipe("m.yaml")


def test_a_vector_of_the_base_cannot_hold_more_rows(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["diff", "base", "large", "-o", "v.safetensors"])
    assert "write the model with: taskvec apply BASE -v a=ADAPTER -o OUT" in capsys.readouterr().err


def test_one_table_with_more_rows_than_the_other_is_refused(place: Path) -> None:
    save_larger(
        Path("base"), Path("odd"), target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    file = Path("odd/adapter_model.safetensors")
    factors = {
        key: value[:ROWS].clone() if "lm_head" in key else value for key, value in load_file(file).items()
    }
    save_file(factors, file)
    with pytest.raises(
        KeyMismatch, match=r"has 23 rows for .*, base has 20, expected as many for 'lm_head.weight'"
    ):
        apply("base", TaskVector.load("odd"))
