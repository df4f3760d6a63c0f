"""A block whose coefficients a reader moves, and the sentence in its place where that cannot be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Sliders:
    """Accuracies of several tasks, which follow as the coefficients of vectors move.

    Args:
        note: what the numbers are.
        vectors: whose coefficients move.
        tasks: of each: ``name``, ``own`` (the place of its vector), ``zero`` and ``alone`` (its accuracy, per
            cent, before any step and with its own vector alone), and its numbers.
        marks: coefficients that a button goes to, by its label.
        start: coefficients at first.
    """

    template: ClassVar[str] = "sliders"

    title: str
    note: str
    vectors: Sequence[str]
    tasks: Sequence[Mapping[str, object]]
    marks: Sequence[tuple[str, Sequence[float]]]
    start: Sequence[float]

    def shown(self, vector: int) -> Mapping[str, object] | None:
        """The task of a vector, if its accuracy follows."""
        return next((task for task in self.tasks if task["own"] == vector), None)

    def data(self) -> dict[str, Any]:
        """What the script computes with."""
        return {
            "vectors": list(self.vectors),
            "tasks": [dict(task) for task in self.tasks],
            "marks": [[label, list(at)] for label, at in self.marks],
            "start": list(self.start),
        }


@dataclass(frozen=True)
class Missing:
    """Why a part of a page is not there."""

    template: ClassVar[str] = "missing"

    title: str
    reason: str

    def data(self) -> None:
        """It needs none."""
