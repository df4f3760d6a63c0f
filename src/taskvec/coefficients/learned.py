"""What learning coefficients gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from taskvec.coefficients.drawing import map_of
from taskvec.coefficients.recipes import recipe_of
from taskvec.coefficients.scopes import groups_of
from taskvec.coefficients.settings import CoefficientSettings
from taskvec.errors import InputError
from taskvec.reports.drawing import Drawing
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
        guided: whether the model read the answers, so that labels were consumed whatever the signal.
    """

    vector: TaskVector
    coefficients: Coefficients
    trace: tuple[float, ...]
    count: int
    tasks: tuple[str, ...]
    settings: CoefficientSettings
    kept: Kept = field(default_factory=dict)
    guided: bool = False

    @property
    def consumed(self) -> tuple[str, ...]:
        """What the coefficients were learned from."""
        if not self.settings.steps:
            return ()
        return (f"{self.settings.split} labels",) if self.guided else self.settings.consumes

    def recipe(self, base: str, paths: Mapping[str, str | Path]) -> dict[str, object]:
        """A plain recipe (``docs/recipes.md``) of which ``taskvec merge`` makes the same model.

        Args:
            base: a path or hub id.
            paths: of the vectors, by the labels that they were learned under.

        Raises: InputError for a label without a path, and for merges that no recipe describes.
        """
        if self.settings.trim is not None or self.settings.scope not in ("task", "layer", "tensor"):
            raise InputError(
                "recipe: none can say which entries of a tensor are kept or have coefficients of their own; "
                "save the vector, and apply it with scale 1"
            )
        members = groups_of(self.vector, self.settings).members()
        return recipe_of(self.coefficients, members, base, paths)

    def draw(self) -> Drawing:
        """A map of the coefficients: parts of the model down, vectors across."""
        return map_of(self.coefficients)

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
