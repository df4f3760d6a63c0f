"""Which entries of a unified vector each task needs: computed from the vectors, or read from a file."""

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from taskvec.errors import CorruptFile
from taskvec.later import torch
from taskvec.vectors.delta import Delta
from taskvec.vectors.info import MaskInfo
from taskvec.vectors.stored.compact.form import entries, packed_size, part_name, unpack
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.lazy import Lazy

if TYPE_CHECKING:
    from torch import Tensor

Needed = Callable[["Tensor", "Tensor"], "Tensor"]
"""A task's deltas and the unified ones, of one shape -> which of the unified the task needs, bool."""


class Masks(Lazy):
    """The masks of several tasks.

    Attributes:
        identity: what equality goes by.
    """

    identity: Hashable

    @abstractmethod
    def read(self, task: str, name: str, rows: slice | None, unified: "Tensor") -> "Tensor":
        """The mask of one tensor, or of rows of it (a slice of step 1), bool.

        Args:
            unified: the unified deltas there.
        """


class Computed(Masks):
    """Masks that come of comparing the vectors of the tasks with the unified one."""

    def __init__(self, vectors: Mapping[str, Delta], needed: Mapping[str, Needed], method: Hashable) -> None:
        self.identity = (method, tuple(vectors.items()))
        self.parts = tuple(vectors.values())
        self._vectors, self._needed = vectors, needed

    def __contains__(self, name: object) -> bool:
        return any(name in vector for vector in self.parts)

    def read(self, task: str, name: str, rows: slice | None, unified: "Tensor") -> "Tensor":
        return self._needed[task](deltas_like(unified, self._vectors[task], name, rows), unified)


class Packed(Masks):
    """Masks in a file, eight entries to a byte."""

    def __init__(self, weights: Weights, shapes: Mapping[str, tuple[int, ...]], tasks: Iterable[str]) -> None:
        self.identity = weights.identity
        self.parts = (weights,)
        self._weights, self._shapes, self._tasks = weights, shapes, tuple(tasks)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def made_of(self, name: str) -> Sequence[tuple[Lazy, str]]:
        return [(self._weights, part_name(name, task)) for task in self._tasks[:1] if name in self._shapes]

    def read(self, task: str, name: str, rows: slice | None, unified: "Tensor") -> "Tensor":
        first, last = entries(self._shapes[name], rows)
        bits = unpack(lambda octets: self._weights.read(part_name(name, task), octets), first, last)
        return bits.reshape(unified.shape)


class Unified(Weights):
    """Of a file with masks, the tensors beside which they lie.

    Raises: CorruptFile unless each of them has the mask of each task, and there is nothing else.
    """

    def __init__(self, weights: Weights, info: MaskInfo) -> None:
        masks = {part_name(name, task) for name in weights for task in info.factors}
        names = [name for name in weights if name not in masks]
        for name in names:
            for task in info.factors:
                _check_mask(weights, name, part_name(name, task))
        wrong = [name for name in names if not weights.spec(name).editable]
        if wrong or not info.factors:
            what = f"{wrong[0]!r} found, expected floating point" if wrong else "no tasks, expected some"
            raise CorruptFile(f"{weights.ref}: {what}, and a mask for each task; download or write it again")
        super().__init__(
            weights.ref,
            {name: weights.spec(name) for name in names},
            ("unified", weights.identity),
            parts=[weights],
        )
        self._weights = weights

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        return self._weights.read(name, rows)


def _check_mask(weights: Weights, name: str, place: str) -> None:
    spec = TensorSpec((packed_size(weights.spec(name).numel),), torch.uint8)
    if place not in weights or weights.spec(place) != spec:
        state = "is missing" if place not in weights else f"is {weights.spec(place)}"
        raise CorruptFile(
            f"{weights.ref}: {place!r} {state}, expected {spec.shape[0]} bytes for the entries of "
            f"{name!r}; download or write it again"
        )


def deltas_like(unified: "Tensor", vector: Delta, name: str, rows: slice | None) -> "Tensor":
    """The deltas of one task in the shape and dtype of the unified ones; zeros for a tensor that it lacks."""
    return vector.read(name, rows, unified.dtype) if name in vector else torch.zeros_like(unified)
