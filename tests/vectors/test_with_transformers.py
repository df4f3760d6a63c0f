"""Edited checkpoints load in transformers as their bases do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertModel,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from checkpoints import SHAPE, save_clip
from taskvec.vectors import TaskVector, apply
from taskvec.weights import open_weights, save_weights


def bert() -> BertModel:
    return BertModel(BertConfig(vocab_size=20, max_position_embeddings=8, **SHAPE))


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2))


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, max_position_embeddings=8, **SHAPE)).bfloat16()


def t5() -> T5ForConditionalGeneration:
    config: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**config, vocab_size=20))


def clip(folder: Path) -> CLIPModel:
    return CLIPModel.from_pretrained(save_clip(folder))


def moved(network: Any, seed: int) -> Any:
    """The same network, every parameter pushed a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            step = torch.randn(parameter.shape, generator=generator) * 0.01
            parameter.add_(step.to(parameter.dtype))
    return network


CASES: dict[str, tuple[Callable[[Path], Any], Any]] = {
    "bert": (lambda folder: bert(), BertModel),
    "gpt2, tied": (lambda folder: gpt2(), AutoModelForCausalLM),
    "llama in bfloat16": (lambda folder: llama(), AutoModelForCausalLM),
    "t5, tied": (lambda folder: t5(), AutoModelForSeq2SeqLM),
    "clip": (lambda folder: clip(folder / "start"), CLIPModel),
}


@pytest.mark.parametrize("case", CASES)
def test_saved_moved_subtracted_added_and_loaded_it_is_the_moved_model(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, loader = CASES[case]
    network = make(tmp_path)
    network.save_pretrained(tmp_path / "base")
    moved(network, 1).save_pretrained(tmp_path / "tuned")
    lazy = TaskVector.between(tmp_path / "base", tmp_path / "tuned")
    edited = save_weights(apply(tmp_path / "base", lazy), tmp_path / "edited", max_shard_size=9_000)
    assert len(list(edited.glob("model-*.safetensors"))) > 1

    loaded, info = loader.from_pretrained(edited, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = loader.from_pretrained(tmp_path / "tuned").state_dict()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name

    stored = TaskVector.load(lazy.save(tmp_path / "vector.safetensors"))
    back = loader.from_pretrained(
        save_weights(apply(edited, -1 * stored, allow_other_base=True), tmp_path / "back")
    )
    base = loader.from_pretrained(tmp_path / "base").state_dict()
    for name, value in back.state_dict().items():
        torch.testing.assert_close(value, base[name], rtol=1e-2, atol=1e-6)


def test_ties_of_a_state_dict_become_ties_that_transformers_makes(tmp_path: Path) -> None:
    """A .bin file lists both names of a tied tensor; the edit stores one."""
    torch.manual_seed(0)
    network = gpt2()
    network.config.save_pretrained(tmp_path)
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    base = open_weights(tmp_path)
    assert base.tied == {"lm_head.weight": "transformer.wte.weight"}
    vector = TaskVector.between(base, moved(network, 1))
    edited = GPT2LMHeadModel.from_pretrained(save_weights(base + vector, tmp_path / "edited"))
    assert edited.lm_head.weight is edited.transformer.wte.weight
    assert torch.equal(edited.lm_head.weight, network.lm_head.weight)
