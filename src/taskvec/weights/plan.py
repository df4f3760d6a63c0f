"""What the files of an output will hold, and where, known before the first byte is written."""

import heapq
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from taskvec.errors import InputError
from taskvec.weights.dtypes import HEADER_LIMIT
from taskvec.weights.filenames import Home, home_of
from taskvec.weights.lazy import Weights

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """One file to be.

    Attributes:
        file: its place in the folder.
        index: the place of the index that lists it, if its home has several.
        prefix: what is left off the names of tensors in it.
        header: the bytes it begins with.
        places: tensor -> the byte of the file at which it begins, in order.
        size: bytes of the whole file.
    """

    file: str
    index: str
    prefix: str
    header: bytes
    places: Mapping[str, int]
    size: int

    @property
    def data_size(self) -> int:
        """Bytes of tensor data."""
        return self.size - len(self.header)


def plan_shards(
    weights: Weights,
    max_size: float | None,
    metadata: Mapping[str, str],
    homes: Sequence[Home] = (Home(),),
) -> list[Shard]:
    """Group tensors, in their order, into files of at most ``max_size`` bytes of data, each in its home."""
    held: dict[Home, list[str]] = {}
    for name in weights:
        held.setdefault(home_of(name, homes), []).append(name)
    return [
        shard
        for home, names in (held or {homes[0]: []}).items()
        for shard in _plan_home(weights, home, names, max_size, metadata)
    ]


def _plan_home(
    weights: Weights, home: Home, names: Sequence[str], max_size: float | None, metadata: Mapping[str, str]
) -> Iterator[Shard]:
    most = math.inf if max_size is None or home.naming.whole else max_size
    groups = list(batches(names, most, lambda name: weights.spec(name).nbytes)) or [[]]
    for number, group in enumerate(groups, 1):
        yield _plan_shard(weights, home, home.naming.file(number, len(groups)), group, metadata)


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


def _plan_shard(
    weights: Weights, home: Home, file: str, names: Sequence[str], metadata: Mapping[str, str]
) -> Shard:
    # Wide elements first, so that every tensor is aligned to its own element size.
    ordered = sorted(names, key=lambda name: -weights.spec(name).itemsize)
    here, own = set(names), {} if home.prefix else weights.metadata
    local = len(home.prefix)
    aliases = {alias[local:]: kept[local:] for alias, kept in weights.tied.items() if kept in here}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **own, **metadata, **aliases}}
    starts: dict[str, int] = {}
    end = 0
    for name in ordered:
        spec = weights.spec(name)
        starts[name], end = end, end + spec.nbytes
        offsets = [starts[name], end]
        header[name[local:]] = {
            "dtype": spec.code,
            "shape": list(spec.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    if len(text) + 8 > HEADER_LIMIT:
        raise InputError(
            f"{file}: {len(names):,} tensors need a header of {len(text) / 1e6:,.0f} MB, expected "
            f"{HEADER_LIMIT / 1e6:,.0f} MB at most; write a folder of smaller shards"
        )
    text += b" " * (-len(text) % 8)
    prefix = struct.pack("<Q", len(text)) + text
    places = {name: len(prefix) + start for name, start in starts.items()}
    return Shard(
        home.path(file),
        home.path(home.naming.index),
        home.prefix,
        prefix,
        places,
        len(prefix) + end,
    )


def share_out(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Which shards of these sizes each part has: about as many bytes for each, in the order of the output.

    >>> share_out([3, 1, 2], 2)
    [[0], [1, 2]]
    """
    shares: list[list[int]] = [[] for _ in range(parts)]
    loads = [(0, number) for number in range(parts)]
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        load, number = heapq.heappop(loads)
        shares[number].append(place)
        heapq.heappush(loads, (load + sizes[place], number))
    return [sorted(share) for share in shares]


def shards_of(shards: Sequence[Shard], parts: int) -> list[list[Shard]]:
    """The shards of each part."""
    shares = share_out([shard.size for shard in shards], parts)
    return [[shards[place] for place in share] for share in shares]
