"""Candidates are measured: here, one after the other."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, Protocol

from taskvec.edits.merge import Merge
from taskvec.errors import TaskvecError
from taskvec.searching.objective import Figures, Portion, Score
from taskvec.writing import remove

Variant = Callable[[Mapping[str, object]], Merge]
"""Makes the model of a candidate's recipe."""


@dataclass(frozen=True)
class Candidate:
    """What is to be measured; it can be pickled.

    Args:
        number: of the evaluation.
        recipe: its plain data.
    """

    number: int
    part: Portion
    recipe: Mapping[str, Any]


class Measured(NamedTuple):
    """What a score says of a candidate, or why it says nothing."""

    outcome: Figures | Exception
    seconds: float


class Measurer(Protocol):
    """Where candidates are measured."""

    def expect(self, candidates: Iterable[Candidate]) -> None:
        """These will be asked for, in this order; those that were expected before will not."""

    def measured(self, candidate: Candidate) -> Measured:
        """What a candidate gives."""


@dataclass(frozen=True)
class Here:
    """This process measures a candidate when it is asked for.

    Args:
        folder: for what is written on the way; by default that of the system.
    """

    variant: Variant
    score: Score
    folder: Path | None = None

    def expect(self, candidates: Iterable[Candidate]) -> None:
        """Nothing is done ahead."""

    def measured(self, candidate: Candidate) -> Measured:
        """As every measurer."""
        with scratch_in(self.folder) as scratch:
            return measure(candidate, self.variant, self.score, scratch)


def measure(candidate: Candidate, variant: Variant, score: Score, scratch: Path) -> Measured:
    """Measure a candidate now."""
    begun = perf_counter()
    outcome: Figures | Exception
    try:
        outcome = score.evaluate(variant(candidate.recipe), candidate.part, scratch)
    except TaskvecError as error:
        outcome = error
    return Measured(outcome, round(perf_counter() - begun, 3))


@contextmanager
def scratch_in(folder: Path | None) -> Iterator[Path]:
    """An empty folder for what is written to be measured."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="taskvec-search-") as made:
            yield Path(made)
        return
    scratch = folder / "scratch"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        remove(scratch)
