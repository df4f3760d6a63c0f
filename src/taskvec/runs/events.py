"""What a run tells as it goes, so that others can show it: a display, a page, a printer of tables."""

from collections.abc import Callable, Mapping, Sequence
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


@dataclass(frozen=True)
class Taken:
    """A worker begins with a result, or has none to begin with.

    Args:
        worker: its name.
        label: of the result, with its part; none where the worker waits.
        due: results that no worker has begun with.
    """

    worker: str
    part: Part | None
    label: str
    due: int


@dataclass(frozen=True)
class Step:
    """A worker tells how far it is within a result, as watchers are told."""

    worker: str
    label: str
    done: int
    total: int
    facts: Mapping[str, float]


@dataclass(frozen=True)
class Left:
    """A worker is gone, and with it what it was at."""

    worker: str


Event = Begun | Working | Done | Trained | Finished | Taken | Step | Left
Told = Callable[[Event], None]


def untold(event: Event) -> None:
    """Nobody follows."""
