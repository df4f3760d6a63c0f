"""Weights with more or fewer rows than their files: those of another number of tokens."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from taskvec.weights.blocks import TensorSpec
from taskvec.weights.lazy import Lazy, Weights


class Added(NamedTuple):
    """Rows that are put behind the first ``kept`` of a tensor: where they are read."""

    weights: Weights
    name: str
    rows: Sequence[int]
    kept: int

    @property
    def size(self) -> int:
        """Of the tensor then."""
        return self.kept + len(self.rows)


class Grown(Weights):
    """A model with rows added to some of its tensors, in the dtype of these, or without their last rows.

    Args:
        texts: files of its folder that say something else of the model as it is now.

    Attributes:
        before: the model as it is in its files.
    """

    def __init__(
        self, before: Weights, added: Mapping[str, Added], texts: Mapping[str, str] | None = None
    ) -> None:
        givers = tuple(dict.fromkeys(each.weights for each in added.values()))
        specs = {name: before.spec(name) for name in before}
        for name, each in added.items():
            specs[name] = TensorSpec((each.size, *specs[name].shape[1:]), specs[name].dtype)
        super().__init__(
            before.ref,
            specs,
            ("grown", before.identity, *(giver.identity for giver in givers), *_sizes(added)),
            parts=(before, *givers),
            tied=before.tied,
        )
        self.before, self._added = before, dict(added)
        self.texts = {**before.texts, **(texts or {})}

    def made_of(self, name: str) -> Sequence[tuple[Lazy, str]]:
        """The tensor, and the one that gives it rows."""
        stored = self._stored_name(name)
        added = self._added.get(stored)
        return [(self.before, stored), *([] if added is None else [(added.weights, added.name)])]

    def _read(self, name: str, rows: slice | None) -> Tensor:
        added = self._added.get(name)
        if added is None:
            return self.before.read(name, rows)
        held = added.kept
        first, last, step = (rows or slice(None)).indices(self._specs[name].shape[0])
        if step != 1:
            return self._read(name, None)[rows]
        old = self.before.read(name, slice(min(first, held), min(last, held)))
        new = added.rows[max(first - held, 0) : max(last - held, 0)]
        return torch.cat([old, *(_row(added, row).to(old.dtype) for row in new)])


def _sizes(added: Mapping[str, Added]) -> list[tuple[str, int]]:
    return [(name, each.size) for name, each in sorted(added.items())]


def _row(added: Added, row: int) -> Tensor:
    return added.weights.read(added.name, slice(row, row + 1))
