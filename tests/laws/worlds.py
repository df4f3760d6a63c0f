"""Small models, and every kind of task vector that can be made between them."""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskvec.vectors import TaskVector, apply, combine
from taskvec.vectors.stored.factored import Pair, factored
from taskvec.vectors.stored.masked import emr
from taskvec.weights import Weights, open_weights, save_weights

FLOATS = {
    "embeddings.weight": (5, 3),
    "layer.0.weight": (3, 4),
    "layer.0.bias": (3,),
    "scale": (),
    "nothing": (0, 3),
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
_folder = Path(mkdtemp(prefix="taskvec-laws-"))
_serial = itertools.count()


@dataclass(frozen=True)
class World:
    """A base, its element type, and a way to draw fine-tuned weights."""

    seed: int
    dtype: torch.dtype

    @property
    def base(self) -> dict[str, Tensor]:
        """Weights of many sizes, some of them zero, with an integer and a boolean buffer."""
        generator = torch.Generator().manual_seed(self.seed)
        model = {name: self._values(shape, generator) for name, shape in FLOATS.items()}
        model["frozen"] = self._values((4,), generator)
        return {**model, "position_ids": torch.arange(6).reshape(1, 6), "mask": torch.tensor([True, False])}

    def tuned(self, seed: int) -> dict[str, Tensor]:
        """The base moved; "frozen" and the buffers stay."""
        generator = torch.Generator().manual_seed(1 + 1000 * self.seed + seed)
        moved = self.base
        for name, shape in FLOATS.items():
            step = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1
            moved[name] = (moved[name].double() * (1 + step) + step).to(self.dtype)
        return moved

    def _values(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        sizes = 10.0 ** torch.randint(-3, 2, shape, generator=generator)
        present = torch.rand(shape, generator=generator) > 0.1
        return (values * sizes * present).to(self.dtype)


def worlds() -> st.SearchStrategy[World]:
    """Any element type, any draw."""
    return st.builds(World, st.integers(0, 10_000), st.sampled_from(DTYPES))


def path(suffix: str = "") -> Path:
    """A place on disk that nothing has used."""
    return _folder / f"{next(_serial)}{suffix}"


def between(world: World, seed: int) -> TaskVector:
    return TaskVector.between(world.base, world.tuned(seed))


def stored(world: World, seed: int) -> TaskVector:
    return TaskVector.load(between(world, seed).save(path(".safetensors")))


def sharded(world: World, seed: int) -> TaskVector:
    return TaskVector.load(between(world, seed).save(path(), max_shard_size=40))


def half_stored(world: World, seed: int) -> TaskVector:
    return TaskVector.load(between(world, seed).save(path(".safetensors"), dtype=torch.bfloat16))


def sparse(world: World, seed: int) -> TaskVector:
    return TaskVector.load(between(world, seed).save(path(".safetensors"), form="sparse", density=0.4))


def low_rank(world: World, seed: int) -> TaskVector:
    return TaskVector.load(between(world, seed).save(path(".safetensors"), form="low-rank", rank=1))


def quantized(world: World, seed: int) -> TaskVector:
    return TaskVector.load(between(world, seed).save(path(), form="int8", group=8, max_shard_size=20))


def of_factors(world: World, seed: int) -> TaskVector:
    """Of a matrix and an embedding, as LoRA trains them."""
    return TaskVector.from_tensors(drawn_factors(seed, world.dtype), world.base)


def of_stored_factors(world: World, seed: int) -> TaskVector:
    return TaskVector.load(of_factors(world, seed).save(path(".safetensors")))


def drawn_factors(seed: int, dtype: torch.dtype) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: FLOATS[name] for name in ("embeddings.weight", "layer.0.weight")}
    halves = {name: ((shape[0], 2), (2, shape[1])) for name, shape in shapes.items()}
    pairs = {
        name: Pair(*(torch.randn(half, generator=generator).to(dtype) for half in both))
        for name, both in halves.items()
    }
    return factored(pairs, shapes)


def masked(world: World, seed: int) -> TaskVector:
    place = emr({"a": between(world, seed), "b": stored(world, seed + 100)}).save(path(".safetensors"))
    return TaskVector.load(f"{place}#a")


def adapter(world: World, seed: int, dora: bool = False) -> TaskVector:
    """LoRA of an embedding and of a layer, with a bias saved whole."""
    folder, tuned = path(), world.tuned(seed)
    generator = torch.Generator().manual_seed(seed)
    sizes = {"embeddings": (5, 3), "layer.0": (4, 3)}
    factors = {"layer.0.bias": tuned["layer.0.bias"]}
    for layer, (inputs, outputs) in sizes.items():
        names = (
            ("lora_embedding_A", "lora_embedding_B")
            if layer == "embeddings"
            else ("lora_A.weight", "lora_B.weight")
        )
        for name, shape in zip(names, ((2, inputs), (outputs, 2)), strict=True):
            factors[f"{layer}.{name}"] = torch.randn(shape, generator=generator).to(world.dtype)
        if dora:
            lengths = 1 + torch.rand(outputs, generator=generator)
            factors[f"{layer}.lora_magnitude_vector"] = lengths.to(world.dtype)
    save_weights(
        {f"base_model.model.{name}": t for name, t in factors.items()}, folder / "adapter_model.safetensors"
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "use_dora": dora}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return TaskVector.load(folder).with_base(world.base)


def dora(world: World, seed: int) -> TaskVector:
    return adapter(world, seed, dora=True)


def given_tensors(world: World, seed: int) -> TaskVector:
    dense = between(world, seed)
    return TaskVector.from_tensors({name: dense[name] for name in FLOATS}, world.base)


def from_files(world: World, seed: int) -> TaskVector:
    base = save_weights(world.base, path(), max_shard_size=60)
    tuned = path(".bin")
    torch.save(world.tuned(seed), tuned)
    return TaskVector.between(base, tuned)


def expression(world: World, seed: int) -> TaskVector:
    parts = [between(world, seed), stored(world, seed + 100), given_tensors(world, seed + 200)]
    return 0.5 * parts[0] - (parts[1] - 2.0 * parts[2]) / 4.0


def edited(world: World, seed: int) -> TaskVector:
    base = open_weights(world.base)
    return TaskVector.between(base, apply(base, between(world, seed), 0.5))


def merged(world: World, seed: int) -> TaskVector:
    return combine("ties", [between(world, seed), stored(world, seed + 100)], keep=0.6)


def noise(world: World, seed: int) -> TaskVector:
    return TaskVector.random_like(between(world, 0), seed)


KINDS: dict[str, Callable[[World, int], TaskVector]] = {
    "between": between,
    "between files": from_files,
    "stored": stored,
    "sharded": sharded,
    "stored in bfloat16": half_stored,
    "sparse": sparse,
    "low-rank": low_rank,
    "quantized": quantized,
    "factors": of_factors,
    "stored factors": of_stored_factors,
    "masked": masked,
    "adapter": adapter,
    "adapter, DoRA": dora,
    "given tensors": given_tensors,
    "expression": expression,
    "edited": edited,
    "rule": merged,
    "noise": noise,
}


def fact(*strategies: st.SearchStrategy[Any], examples: int = 20) -> Callable[[Callable[..., None]], Any]:
    """A test of whatever the strategies draw; the same draws each time."""
    checks = [HealthCheck.too_slow]
    few = settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=checks)
    return lambda test: few(given(*strategies)(test))


def law(*strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """A fact about every kind of vector. Few draws for each: the kinds share most of their code."""
    return lambda test: pytest.mark.parametrize("kind", KINDS)(fact(*strategies, examples=6)(test))


def dense(vector: TaskVector) -> dict[str, Tensor]:
    """All tensors, float64."""
    return {name: vector[name].double() for name in vector}


def same_bits(first: Tensor, other: Tensor) -> bool:
    """Equal dtype, shape and bytes: minus zero is not zero here."""
    if first.dtype != other.dtype or first.shape != other.shape:
        return False
    one, two = (t.contiguous().reshape(-1).view(torch.uint8) for t in (first, other))
    return torch.equal(one, two)


def same_model(first: Weights, other: Weights) -> bool:
    """Equal names and, for each, equal bits."""
    return set(first) == set(other) and all(same_bits(first[name], other[name]) for name in first)
