"""What exploring coefficients keeps: scores of test examples, affine in the coefficients of all vectors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from taskvec.errors import CorruptFile
from taskvec.studies.numerics.affine import AffineScores
from taskvec.studies.outputs import read_arrays
from taskvec.studies.record import Record


class Sample(Record):
    """The examples of one task that were kept."""

    examples: int = Field(ge=1, le=1 << 20)
    of: int = Field(ge=1)
    """Examples of the whole test split."""
    classes: int = Field(ge=2, le=1 << 16)
    offsets: list[float] | None = None
    """Of a head that normalises features and has a bias, see :class:`AffineScores`."""
    differing: int = 0
    """Predictions that differ from those of the evaluation, of all examples at 0, 1/T and 1."""


class Explored(Record):
    """A regime at the first seed."""

    cell = "explore"
    vectors: list[str] = Field(min_length=1)
    """The tasks whose vectors move, in the order of coefficients."""
    tasks: dict[str, Sample]
    left_out: dict[str, str]
    """Other tasks, and why they are not among these."""
    file: str = ""
    digest: str = ""

    def scores(self, folder: Path) -> dict[str, AffineScores]:
        """What the file beside the records holds, by task.

        Raises: InputError if it is not there; CorruptFile if it holds anything else.
        """
        arrays = read_arrays(folder, self.file, self.digest) if self.tasks else {}
        return {task: self._scores(f"{self.file}: {task}", task, arrays) for task in self.tasks}

    def _scores(self, where: str, task: str, arrays: Mapping[str, NDArray[Any]]) -> AffineScores:
        sample, rows = self.tasks[task], 1 + len(self.vectors)
        columns = sample.classes - 1 + (0 if sample.offsets is None else rows)
        numbers = _array(arrays, f"{task}.numbers", "float32", (sample.examples, rows, columns), where)
        labels = _array(arrays, f"{task}.labels", "int64", (sample.examples,), where)
        offsets = None if sample.offsets is None else np.array(sample.offsets)
        if not np.isfinite(numbers).all() or labels.min() < 0 or labels.max() >= sample.classes:
            raise CorruptFile(f"{where}: holds numbers or labels out of range")
        if offsets is not None and (offsets.shape != (sample.classes - 1,) or not (abs(offsets) <= 1).all()):
            raise CorruptFile(f"{where}: holds offsets out of range")
        return AffineScores(numbers, labels, offsets)


def _array(
    arrays: Mapping[str, NDArray[Any]], name: str, kind: str, shape: tuple[int, ...], where: str
) -> NDArray[Any]:
    found = arrays.get(name)
    if found is None or found.dtype != kind or found.shape != shape:
        there = "nothing" if found is None else f"{found.dtype} of shape {found.shape}"
        raise CorruptFile(f"{where}: {there}, expected {kind} of shape {shape}")
    return found
