"""Tiny language models with tokenizers of whole words."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from checkpoints import SHAPE
from taskvec.edits.tokens import read_tokens

WORDS = ["[UNK]", *(f"word{number}" for number in range(20))]
CHAT = ["<start>", "<end>"]


def llama(size: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, max_position_embeddings=8, **SHAPE))


def gpt2(size: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=size, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


def bert(size: int) -> BertForMaskedLM:
    return BertForMaskedLM(BertConfig(vocab_size=size, max_position_embeddings=8, **SHAPE))


KINDS: dict[str, tuple[Callable[[int], Any], Any]] = {
    "llama": (llama, AutoModelForCausalLM),
    "gpt2": (gpt2, AutoModelForCausalLM),
    "bert": (bert, AutoModelForMaskedLM),
}


def save_tokenizer(tokens: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    words = {token: row for row, token in enumerate(tokens)}
    Tokenizer(WordLevel(words, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save_base(folder: Path, kind: str = "llama", tokens: Sequence[str] = WORDS, padding: int = 0) -> Path:
    torch.manual_seed(0)
    KINDS[kind][0](len(tokens) + padding).save_pretrained(folder)
    save_tokenizer(tokens, folder)
    return folder


def save_tuned(
    base: Path, folder: Path, kind: str, tokens: Sequence[str], padding: int = 0, seed: int = 1
) -> Path:
    """The base's network moved a little, its rows in the order of ``tokens``; new tokens are random."""
    own = list(read_tokens(base) or {})
    start = KINDS[kind][1].from_pretrained(base).state_dict()
    torch.manual_seed(seed)
    network = KINDS[kind][0](len(tokens) + padding)
    state = network.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            if value.shape == start[name].shape and value.shape[0] != len(own):
                value.copy_(start[name] + 0.01 * torch.randn(value.shape))
            else:
                for row, token in enumerate(tokens):
                    if token in own:
                        value[row] = start[name][own.index(token)]
                value.add_(0.01 * torch.randn(value.shape))
    network.save_pretrained(folder)
    save_tokenizer(tokens, folder)
    return folder


def loaded(kind: str, folder: Path) -> tuple[Any, dict[str, int]]:
    network, info = KINDS[kind][1].from_pretrained(folder, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return network.eval(), tokenizer.get_vocab()


@torch.no_grad()
def logits(kind: str, folder: Path, text: Sequence[str], over: Sequence[str]) -> Tensor:
    """What the model says of the tokens ``over`` after each token of ``text``."""
    network, rows = loaded(kind, folder)
    out: Tensor = network(input_ids=torch.tensor([[rows[token] for token in text]])).logits
    return out[0][:, [rows[token] for token in over]]
