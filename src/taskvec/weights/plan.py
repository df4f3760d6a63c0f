"""What the files of an output will hold, and where, known before the first byte is written."""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from taskvec.errors import InputError
from taskvec.weights.dtypes import HEADER_LIMIT, NAMES
from taskvec.weights.lazy import Weights

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """One file to be.

    Attributes:
        file: its name in the folder.
        header: the bytes it begins with.
        places: tensor -> the byte of the file at which it begins, in order.
        size: bytes of the whole file.
    """

    file: str
    header: bytes
    places: Mapping[str, int]
    size: int

    @property
    def data_size(self) -> int:
        """Bytes of tensor data."""
        return self.size - len(self.header)


def plan_shards(weights: Weights, max_size: float | None, metadata: Mapping[str, str]) -> list[Shard]:
    """Group tensors, in their order, into files of at most ``max_size`` bytes of data."""
    most = math.inf if max_size is None else max_size
    groups = list(batches(list(weights), most, lambda name: weights.spec(name).nbytes)) or [[]]
    known_as: dict[str, list[str]] = {}
    for alias, kept in weights.tied.items():
        known_as.setdefault(kept, []).append(alias)
    return [
        _plan_shard(weights, _shard_name(number, len(groups)), group, metadata, known_as)
        for number, group in enumerate(groups, 1)
    ]


def batches(items: Sequence[T], most: float, size_of: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Consecutive items, as many at a time as have up to ``most`` bytes together, but at least one."""
    size, first = 0, 0
    for place, item in enumerate(items):
        if place > first and size + size_of(item) > most:
            yield items[first:place]
            size, first = 0, place
        size += size_of(item)
    if items:
        yield items[first:]


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def _plan_shard(
    weights: Weights,
    file: str,
    names: Sequence[str],
    metadata: Mapping[str, str],
    known_as: Mapping[str, Sequence[str]],
) -> Shard:
    # Wide elements first, so that every tensor is aligned to its own element size.
    ordered = sorted(names, key=lambda name: -weights.spec(name).dtype.itemsize)
    aliases = {alias: name for name in names for alias in known_as.get(name, ())}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **weights.metadata, **metadata, **aliases}}
    starts: dict[str, int] = {}
    end = 0
    for name in ordered:
        spec = weights.spec(name)
        starts[name], end = end, end + spec.nbytes
        offsets = [starts[name], end]
        header[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) + 8 > HEADER_LIMIT:
        raise InputError(
            f"{file}: {len(names):,} tensors need a header of {len(text) / 1e6:,.0f} MB, expected "
            f"{HEADER_LIMIT / 1e6:,.0f} MB at most; write a folder of smaller shards"
        )
    text += b" " * (-len(text) % 8)
    prefix = struct.pack("<Q", len(text)) + text
    places = {name: len(prefix) + start for name, start in starts.items()}
    return Shard(file, prefix, places, len(prefix) + end)
