"""What learning coefficients gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taskvec.coefficients.settings import CoefficientSettings
from taskvec.vectors import TaskVector

Coefficients = Mapping[str, Mapping[str, float]]
"""Vector -> group -> coefficient."""

Kept = Mapping[str, Mapping[str, tuple[int, int]]]
"""Vector -> matrix -> how many of how many."""


@dataclass(frozen=True)
class Learned:
    """A merge with learned coefficients.

    Attributes:
        vector: the merge.
        coefficients: of each vector, by group.
        trace: the objective before each step.
        count: how many numbers were learned.
        tasks: whose examples were read.
        kept: by vector and matrix, how many singular directions are kept and of how many; where they were
            chosen.
    """

    vector: TaskVector
    coefficients: Coefficients
    trace: tuple[float, ...]
    count: int
    tasks: tuple[str, ...]
    settings: CoefficientSettings
    kept: Kept = field(default_factory=dict)

    @property
    def consumed(self) -> tuple[str, ...]:
        """What the coefficients were learned from."""
        return self.settings.consumes if self.settings.steps else ()

    def record(self) -> dict[str, Any]:
        """The same as plain data, without the vector."""
        return {
            "coefficients": {label: dict(values) for label, values in self.coefficients.items()},
            "trace": list(self.trace),
            "consumed": list(self.consumed),
            "count": self.count,
            "tasks": list(self.tasks),
            "settings": self.settings.model_dump(),
            **({"kept": {label: dict(of) for label, of in self.kept.items()}} if self.kept else {}),
        }
