"""What a run tells as it goes, so that others can show it: a display, a page, a printer of tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from taskvec.studies.record import Plain
from taskvec.studies.study import Results

TRAINING = "training"
"""The part that makes the tasks' vectors; the others are called as their studies are in the registry."""


@dataclass(frozen=True)
class Part:
    """What one study asks for in one regime and seed.

    Args:
        cells: the labels of its results.
    """

    study: str
    regime: str = ""
    seed: int = 0
    cells: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """How many results."""
        return len(self.cells)


@dataclass(frozen=True)
class Begun:
    """An experiment begins; these are its parts, in order of work."""

    name: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Working:
    """A result is about to be computed, or taken from the records."""

    part: Part
    label: str


@dataclass(frozen=True)
class Done:
    """A result is there.

    Args:
        done: of the part's results.
        seconds: that it took; none where it was on record.
    """

    part: Part
    label: str
    done: int
    result: Plain
    seconds: float | None


@dataclass(frozen=True)
class Trained:
    """A task's vector is there, with its value on validation data before and after, more is better."""

    task: str
    metric: str
    regime: str
    before: float
    after: float


@dataclass(frozen=True)
class Finished:
    """A part is done.

    Args:
        results: all that are there.
        last: the study has no other part.
    """

    part: Part
    results: Results
    last: bool


Event = Begun | Working | Done | Trained | Finished
Told = Callable[[Event], None]


def untold(event: Event) -> None:
    """Nobody follows."""
