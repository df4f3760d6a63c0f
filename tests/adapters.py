"""Tiny networks and LoRA adapters for them, made and merged by PEFT itself."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from checkpoints import SHAPE

Network = Any


def llama(**more: Any) -> Network:
    settings = {"vocab_size": 20, "num_key_value_heads": 1, "tie_word_embeddings": False, **SHAPE, **more}
    return LlamaForCausalLM(LlamaConfig(**settings))


def gpt2(**more: Any) -> Network:
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2, **more))


def untied_gpt2() -> Network:
    return gpt2(tie_word_embeddings=False)


def bert() -> Network:
    return BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=8, **SHAPE))


def masked_bert() -> Network:
    return BertForMaskedLM(BertConfig(vocab_size=20, max_position_embeddings=8, **SHAPE))


def convnext() -> Network:
    return ConvNextModel(ConvNextConfig(patch_size=2, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1]))


def save_base(make: Callable[[], Network], folder: Path, dtype: torch.dtype = torch.float64) -> Path:
    torch.manual_seed(0)
    make().to(dtype).save_pretrained(folder)
    return folder


def save_adapter_of(
    base: Path, make: Callable[[], Network], folder: Path, seed: int = 1, **config: Any
) -> Path:
    """A LoRA adapter whose every trained parameter has been moved at random."""
    return save_trained(make, base, folder, LoraConfig(**{"r": 4, "lora_alpha": 8, **config}), seed)


def save_trained(make: Callable[[], Network], base: Path, folder: Path, config: Any, seed: int = 1) -> Path:
    """An adapter of any kind whose trained parameters have been moved at random."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = loaded(make, base)
        torch.manual_seed(seed)
        tuned = get_peft_model(network, config)
        for parameter in dict.fromkeys(tuned.parameters()):
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        tuned.save_pretrained(str(folder))
    return folder


def merged(base: Path, make: Callable[[], Network], adapter: Path) -> dict[str, Tensor]:
    """What PEFT makes of base and adapter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = PeftModel.from_pretrained(loaded(make, base), adapter, autocast_adapter_dtype=False)
        return dict(network.merge_and_unload().state_dict())


def loaded(make: Callable[[], Network], folder: Path) -> Network:
    return type(make()).from_pretrained(folder, dtype="auto")
