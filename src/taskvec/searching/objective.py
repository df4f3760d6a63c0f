"""What a candidate is worth: figures of a score, weighed and held to floors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from taskvec.edits.merge import Merge
from taskvec.errors import InputError
from taskvec.registry import nearest

Portion = Literal["search", "holdout"]
"""Which part of the data a candidate is measured on: what the search sees, or what it does not."""

Figures = dict[str, float]
"""Named figures of a candidate, each in its own unit; the first one is what a search maximizes by default."""


class Score(Protocol):
    """Measures candidates. The same candidate and part give the same figures."""

    @property
    def parts(self) -> bool:
        """Whether it can tell the search part of the data from the second part."""

    @property
    def key(self) -> Mapping[str, object]:
        """Everything that decides the figures beside the candidate, as plain data."""

    def lower_is_better(self, figure: str) -> bool:
        """Whether less of a figure is better."""

    def evaluate(self, merge: Merge, part: Portion, scratch: Path) -> Figures:
        """The figures of a candidate.

        Args:
            scratch: an empty folder, removed afterwards.

        Raises: TaskvecError if it cannot be measured, which counts as the worst.
        """


class Worth(NamedTuple):
    """What candidates are ranked by: the better one is greater."""

    kept: float
    """Minus how far floors are broken, as a share of each; 0 if none is."""
    objective: float


WORST = Worth(-math.inf, -math.inf)


@dataclass(frozen=True)
class Keep:
    """A floor: ``figure < bound`` or ``figure > bound``, in the figure's unit, or in those of the start."""

    figure: str
    sign: Literal["<", ">"]
    bound: float
    relative: bool = False

    def __str__(self) -> str:
        return f"{self.figure}{self.sign}{self.bound:g}{'x' if self.relative else ''}"

    def broken(self, figures: Figures, start: Figures) -> float:
        """By how much a candidate breaks it, as a share of the bound; 0 if it does not."""
        bound = self.bound * start[self.figure] if self.relative else self.bound
        excess = figures[self.figure] - bound if self.sign == "<" else bound - figures[self.figure]
        return max(0.0, excess / (abs(bound) or 1.0))


@dataclass(frozen=True)
class Objective:
    """A weighted sum of figures, of which those count as negative where less is better, above floors.

    Args:
        weights: by figure; nothing stands for the first figure of each score, which count alike.
        labels: of several scores, whose figures begin with them.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    keeps: tuple[Keep, ...] = ()
    labels: tuple[str, ...] = ()

    def check(self, figures: Figures) -> None:
        """Refuse weights and floors of figures that the score does not give. Raises: InputError."""
        for option, names in (("--weigh", self.weights), ("--keep", [keep.figure for keep in self.keeps])):
            for name in names:
                if name not in figures:
                    raise InputError(
                        f"{option}: the score gives no figure {name!r}; {nearest(name, figures)}"
                    )

    def value(self, figures: Figures, score: Score) -> float:
        """The weighted sum: more is better."""
        return math.fsum(weight * figures[name] for name, weight in self.signed(figures, score).items())

    def signed(self, figures: Figures, score: Score) -> dict[str, float]:
        """What each figure counts, less than nothing for those of which less is better."""
        weights = self.weights or {_first(figures, label): 1.0 for label in self.labels or ("",)}
        return {name: -weight if score.lower_is_better(name) else weight for name, weight in weights.items()}

    def worth(self, figures: Figures, start: Figures, score: Score) -> Worth:
        """What a candidate is ranked by: one that breaks a floor below all that keep it."""
        broken = math.fsum(keep.broken(figures, start) for keep in self.keeps)
        worth = Worth(0.0 - broken, self.value(figures, score))
        return worth if all(map(math.isfinite, worth)) else WORST

    def record(self) -> dict[str, object]:
        """As plain data."""
        return {"weights": dict(self.weights), "keep": [str(keep) for keep in self.keeps]}


def _first(figures: Figures, label: str) -> str:
    """The first figure of a score."""
    return next(name for name in figures if name == label or not label or name.startswith(f"{label}."))
