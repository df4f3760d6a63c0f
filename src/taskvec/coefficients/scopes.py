"""Groups: what has a coefficient of its own in each vector."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import xxhash
from torch import Tensor

from taskvec.coefficients.settings import CoefficientSettings
from taskvec.names import block_of, layer_label

WHOLE = "all"
"""The group that a whole vector is."""


@dataclass(frozen=True)
class Groups:
    """The groups of a model's tensors.

    Args:
        names: of the groups, in order.
        places: tensor -> place in ``names`` of the group of its first part; its other parts follow.
        parts: of each tensor.
        seed: of the random partition.
    """

    names: tuple[str, ...]
    places: Mapping[str, int]
    parts: int = 1
    seed: int = 0
    _drawn: dict[tuple[int, ...], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def of(self, name: str) -> slice:
        """The places of a tensor's groups."""
        return slice(self.places[name], self.places[name] + self.parts)

    def members(self) -> dict[str, list[str]]:
        """Group -> its tensors, of groups that are not parts of tensors."""
        members: dict[str, list[str]] = {group: [] for group in self.names}
        for name, place in self.places.items():
            members[self.names[place]].append(name)
        return members

    def partition(self, shape: Sequence[int]) -> Tensor | None:
        """The part (0 to K - 1) of each entry, the same for every tensor of that shape; none for K = 1."""
        if self.parts == 1:
            return None
        shape = tuple(shape)
        if shape not in self._drawn:
            self._drawn[shape] = _partition(shape, self.parts, self.seed)
        return self._drawn[shape]


def groups_of(names: Iterable[str], settings: CoefficientSettings, seed: int = 0) -> Groups:
    """The groups of tensors of these names that the scope asks for."""
    group = {"task": lambda name: WHOLE, "layer": _layer}.get(settings.scope, str)
    grouped = {name: group(name) for name in names}
    labels = list(dict.fromkeys(grouped.values()))
    parts = settings.partitions if settings.scope == "partition" else 1
    places = {label: parts * place for place, label in enumerate(labels)}
    named = labels if parts == 1 else [f"{label}#{part}" for label in labels for part in range(parts)]
    return Groups(tuple(named), {name: places[label] for name, label in grouped.items()}, parts, seed)


def _layer(name: str) -> str:
    """A block with all that is in it; of what is in none, the module."""
    block = block_of(name)
    return layer_label(name) if block is None else f"{block.stack}.{block.number}"


def _partition(shape: tuple[int, ...], parts: int, seed: int) -> Tensor:
    """Parts of equal size, give or take one, drawn by the seed and the shape alone."""
    draw = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed} {shape}".encode()) >> 1)
    count = int(torch.Size(shape).numel())
    kind = torch.uint8 if parts <= 256 else torch.int32
    return (torch.randperm(count, generator=draw) % parts).to(kind).reshape(shape)
