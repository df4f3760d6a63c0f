"""Several scores of the same candidate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from taskvec.edits.merge import Merge
from taskvec.errors import InputError
from taskvec.searching.objective import Figures, Portion, Score


class Labelled(Score, Protocol):
    """A score with a name of its own, and the figure that stands for it."""

    @property
    def label(self) -> str:
        """What figures are told apart by."""

    @property
    def headline(self) -> str:
        """The name of its main figure."""


class Several:
    """Scores by their labels: the main figure of each under its label, the others as ``LABEL.FIGURE``.

    Raises: InputError for two of the same label.
    """

    def __init__(self, scores: tuple[Labelled, ...]) -> None:
        self._scores = {score.label: score for score in scores}
        labels = [score.label for score in scores]
        for label in labels:
            if labels.count(label) > 1:
                raise InputError(f"--score: two scores called {label!r}, expected each once")

    @property
    def parts(self) -> bool:
        """Whether all can tell the parts of the data."""
        return all(score.parts for score in self._scores.values())

    @property
    def key(self) -> Mapping[str, object]:
        """What decides the figures of each."""
        return {label: dict(score.key) for label, score in self._scores.items()}

    @property
    def labels(self) -> tuple[str, ...]:
        """What their figures begin with."""
        return tuple(self._scores)

    def lower_is_better(self, figure: str) -> bool:
        """Whether less of a figure is better."""
        for label, score in self._scores.items():
            if figure == label:
                return score.lower_is_better(score.headline)
            if figure.startswith(f"{label}."):
                return score.lower_is_better(figure.removeprefix(f"{label}."))
        return False

    def evaluate(self, merge: Merge, part: Portion, scratch: Path) -> Figures:
        """The figures of all. Raises: TaskvecError if one cannot measure the candidate."""
        found: Figures = {}
        for number, (label, score) in enumerate(self._scores.items()):
            place = scratch / str(number)
            place.mkdir()
            for name, value in score.evaluate(merge, part, place).items():
                found[label if name == score.headline else f"{label}.{name}"] = value
        return found
