"""Tiny classifiers of many architectures in folders of their own, with a tokenizer of words."""

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers.models.auto import modeling_auto

from architectures.families import AUTO, OWN, shrink

WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "one",
    "two",
    "three",
    "four",
    "a",
    "film",
    "good",
    "bad",
    "cat",
    "dog",
]


def save_tokenizer(folder: Path) -> None:
    """Words apart at spaces, and nothing put around them."""
    words = Tokenizer(WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    made: Any = hf.PreTrainedTokenizerFast
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    made(tokenizer_object=words, **special).save_pretrained(folder)


def build(family: str, what: str, labels: int = 3, seed: int = 0, **more: Any) -> Any:
    """A classifier of a family, ``SEQUENCE`` or ``IMAGE``, in which no weight is at its first value."""
    listed: Any = getattr(modeling_auto, f"MODEL_FOR_{what}_CLASSIFICATION_MAPPING_NAMES")[family]
    kind: Any = getattr(hf, listed if isinstance(listed, str) else listed[0])
    config = shrink(AUTO.CONFIG_MAPPING[family], OWN.get(family, {}))
    config.num_labels = labels
    for name, value in {**({"eos_token_id": 2} if config.is_encoder_decoder else {}), **more}.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    network = kind(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return network


def save_text(folder: Path, family: str, labels: int = 3, seed: int = 0, **more: Any) -> Any:
    """The same in a folder with its tokenizer; the network is returned."""
    network = build(family, "SEQUENCE", labels, seed, **more)
    network.save_pretrained(folder)
    save_tokenizer(folder)
    return network


def nudge(network: Any, seed: int, size: float = 0.05) -> Any:
    """The same network, trained: every weight moved a little, in place."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight += size * torch.randn(weight.shape, generator=draw)
    return network
