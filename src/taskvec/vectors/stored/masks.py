"""Which entries of a unified vector each task needs: computed from the vectors, or read from a file."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from taskvec.errors import CorruptFile
from taskvec.vectors.info import MaskInfo
from taskvec.vectors.stored.compact.bits import packed_size, unpack
from taskvec.vectors.stored.compact.form import entries, part_name
from taskvec.vectors.vector import TaskVector
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.dtypes import EDITABLE

Needed = Callable[[Tensor, Tensor], Tensor]
"""A task's deltas and the unified ones, of one shape -> which of the unified the task needs, bool."""


class Masks(ABC):
    """The masks of several tasks.

    Attributes:
        identity: what equality goes by.
        files: what is read from disk.
        frozen: whether the content cannot change behind our back.
    """

    identity: Hashable
    files: tuple[Path, ...]
    frozen: bool

    @abstractmethod
    def in_rows(self, name: str) -> bool:
        """Whether some rows of this tensor cost less than the whole."""

    @abstractmethod
    def read(self, task: str, name: str, rows: slice | None, unified: Tensor) -> Tensor:
        """The mask of one tensor, or of rows of it (a slice of step 1), bool.

        Args:
            unified: the unified deltas there.
        """


class Computed(Masks):
    """Masks that are found by comparing the vectors of the tasks with the unified one."""

    def __init__(
        self, vectors: Mapping[str, TaskVector], needed: Mapping[str, Needed], said: Hashable
    ) -> None:
        self.identity = (said, tuple((task, vector) for task, vector in vectors.items()))
        self.files = tuple(file for vector in vectors.values() for file in vector.files)
        self.frozen = all(source.frozen for vector in vectors.values() for source in vector.terms)
        self._vectors, self._needed = vectors, needed

    def in_rows(self, name: str) -> bool:
        """Whether all vectors give rows of this tensor by themselves."""
        return all(vector.in_rows(name) for vector in self._vectors.values() if name in vector)

    def read(self, task: str, name: str, rows: slice | None, unified: Tensor) -> Tensor:
        """The mask, from the task's own deltas."""
        return self._needed[task](own_deltas(self._vectors[task], name, rows, unified), unified)


class Packed(Masks):
    """Masks in a file, eight entries to a byte."""

    def __init__(self, weights: Weights, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.identity = weights.identity
        self.files, self.frozen = weights.files, weights.frozen
        self._weights, self._shapes = weights, shapes

    def in_rows(self, name: str) -> bool:
        """Whether bytes can be read by themselves."""
        return self._weights.in_rows(name)

    def read(self, task: str, name: str, rows: slice | None, unified: Tensor) -> Tensor:
        """The mask, from the bytes that hold its bits."""
        first, last = entries(self._shapes[name], rows)
        data = self._weights.read(part_name(name, task), slice(first // 8, packed_size(last)))
        return unpack(data, first % 8, first % 8 + last - first).reshape(unified.shape)


class Unified(Weights):
    """Of a file with masks, the tensors beside which they lie.

    Raises: CorruptFile unless each of them has the mask of each task, and there is nothing else.
    """

    def __init__(self, weights: Weights, info: MaskInfo) -> None:
        masks = {part_name(name, task): name for name in weights for task in info.factors}
        names = [name for name in weights if masks.get(name) not in weights]
        wanted = {part_name(name, task): name for name in names for task in info.factors}
        for place, name in wanted.items():
            spec = TensorSpec((packed_size(weights.spec(name).numel),), torch.uint8)
            if place not in weights or weights.spec(place) != spec:
                found = "is missing" if place not in weights else f"is {weights.spec(place)}"
                raise CorruptFile(
                    f"{weights.ref}: {place!r} {found}, expected {spec.shape[0]} bytes for the entries of "
                    f"{name!r}; download or write it again"
                )
        wrong = [name for name in names if weights.spec(name).dtype not in EDITABLE]
        if wrong or not info.factors:
            what = f"{wrong[0]!r} found, expected floating point" if wrong else "no tasks, expected some"
            raise CorruptFile(f"{weights.ref}: {what}, and a mask for each task; download or write it again")
        super().__init__(
            weights.ref,
            {name: weights.spec(name) for name in names},
            ("unified", weights.identity),
            folder=weights.folder,
            metadata=weights.metadata,
            files=weights.files,
        )
        self.by_rows, self.frozen = weights.by_rows, weights.frozen
        self._weights = weights

    def _read(self, name: str, rows: slice | None) -> Tensor:
        return self._weights.read(name, rows)

    def close(self) -> None:
        """Close the file."""
        self._weights.close()


def own_deltas(vector: TaskVector, name: str, rows: slice | None, like: Tensor) -> Tensor:
    """The deltas of one task in the shape and dtype of ``like``; zeros for a tensor that it lacks."""
    return vector.read(name, rows, like.dtype) if name in vector else torch.zeros_like(like)
