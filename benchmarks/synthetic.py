"""Checkpoints of any size, made as fast as the disk takes them: a base and models fine-tuned from it."""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from taskvec.weights.dtypes import raw_bytes

CHUNK = 1 << 20
"""Elements drawn, rounded and written at a time."""

TUNED = 3
"""Fine-tuned models beside each base."""

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Layout:
    """A model to be made: bfloat16 tensors in files of at most ``shard_size`` bytes.

    Attributes:
        name: of the folder.
        shapes: tensor name -> shape.
        config: of ``transformers``.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    config: Mapping[str, object]
    shard_size: float = 5e8

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data."""
        return 2 * sum(map(prod, self.shapes.values()))


@dataclass(frozen=True)
class Models:
    """Folders of a base and of what was fine-tuned from it."""

    layout: Layout
    base: Path
    tuned: tuple[Path, ...]

    @property
    def files(self) -> list[Path]:
        """Every file with tensors, the base's first."""
        return [file for folder in (self.base, *self.tuned) for file in sorted(folder.glob("*.safetensors"))]


def llama(name: str, *, layers: int, hidden: int, vocabulary: int = 32_000) -> Layout:
    """A Llama with as many heads for keys as for queries, and untied embeddings."""
    inner = 9 * hidden // 4
    square, wide, tall = (hidden, hidden), (inner, hidden), (hidden, inner)
    block = {
        "input_layernorm": (hidden,),
        **{f"self_attn.{part}_proj": square for part in "qkvo"},
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": wide,
        "mlp.up_proj": wide,
        "mlp.down_proj": tall,
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{part}.weight": shape for part, shape in block.items()}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    return Layout(name, shapes, config)


def experts(name: str, tensors: int) -> Layout:
    """Very many very small tensors, named as those of a mixture of experts."""
    width = 128
    shapes = {
        f"model.layers.{place // width}.mlp.experts.{place % width}.up_proj.weight": (16, 32)
        for place in range(tensors)
    }
    return Layout(name, shapes, {"model_type": "experts"})


def one_large(name: str, nbytes: float) -> Layout:
    """A tensor of ``nbytes``, and a small one."""
    shapes = {"model.embed_tokens.weight": (int(nbytes) // 4096, 2048), "model.norm.weight": (2048,)}
    return Layout(name, shapes, {"model_type": "large"})


def make(layout: Layout, place: Path, seed: int = 0) -> Models:
    """Write a base and its fine-tuned models below ``place``, unless they are there already.

    Nothing is held but a chunk of each.
    """
    names = ["base", *(f"tuned-{number}" for number in range(1, TUNED + 1))]
    folders = [place / layout.name / name for name in names]
    models = Models(layout, folders[0], tuple(folders[1:]))
    if (folders[-1] / INDEX).exists():  # written last
        return models
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(layout.config, indent=2))
    noise = Noise(seed)
    shards = _shards(layout)
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with ExitStack() as opened:
            files = [opened.enter_context((folder / name).open("wb")) for folder in folders]
            _write(files, {tensor: layout.shapes[tensor] for tensor in shard}, noise)
        where |= dict.fromkeys(shard, name)
    index = json.dumps({"metadata": {"total_size": layout.nbytes}, "weight_map": where})
    for folder in folders:
        (folder / INDEX).write_text(index)
    return models


class Noise:
    """Normal numbers out of a pool, which is much faster than to draw all of them."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._pool = torch.randn(9 * CHUNK, generator=self._generator)

    def __call__(self, count: int) -> Tensor:
        """Some ``count`` of the pool, to be read only."""
        start = int(torch.randint(len(self._pool) - count, (), generator=self._generator))
        return self._pool[start : start + count]


def _shards(layout: Layout) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    filled = 0
    for name, shape in layout.shapes.items():
        size = 2 * prod(shape)
        if groups[-1] and filled + size > layout.shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _write(files: Sequence[BinaryIO], shapes: Mapping[str, tuple[int, ...]], noise: Noise) -> None:
    """The same shard of the base and of every fine-tuned model."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    for file in files:
        file.write(struct.pack("<Q", len(text)) + text)
    for count in _pieces(end // 2):
        base = (0.02 * noise(count)).bfloat16()
        files[0].write(raw_bytes(base))
        for file in files[1:]:
            tuned = base.float().add_(noise(count), alpha=0.002).bfloat16()
            file.write(raw_bytes(tuned))


def _pieces(count: int) -> Iterator[int]:
    while count:
        yield min(count, CHUNK)
        count -= min(count, CHUNK)
