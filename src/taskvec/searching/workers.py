"""Candidates are measured by workers, several at a time: each holds a model of its own."""

import logging
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taskvec.edits.named import Known
from taskvec.edits.variants import variants
from taskvec.errors import InputError, TaskvecError
from taskvec.processes import AGAIN, Ask, Gone, Note, Process, heard, noting, portable
from taskvec.searching.measuring import Candidate, Measured, Variant, measure, scratch_in
from taskvec.searching.objective import Score
from taskvec.searching.trace import Key
from taskvec.writing import remove

_note = logging.getLogger(__name__)


@dataclass(frozen=True)
class Making:
    """How a worker makes what it measures, and measures by; it can be pickled.

    Args:
        recipe, where, home, known: see ``variants``; the recipe is that of the start.
        score: makes the score.
    """

    recipe: Mapping[str, Any]
    where: str
    home: Path
    known: Known
    score: Callable[[], Score]

    def check(self) -> None:
        """Refuse what other processes cannot have. Raises: InputError."""
        advice = "name it as 'module:function' or 'file.py:function'"
        try:
            plain = pickle.dumps((self.score, self.known))
        except Exception as error:  # whatever the user's own objects raise
            raise InputError(
                f"workers: the score cannot be handed to other processes ({error}); {advice}"
            ) from error
        if b"__main__" in plain:
            raise InputError(f"workers: the score is of the script itself, which is not run again; {advice}")


@dataclass(frozen=True)
class _Setup:
    """All that a worker needs.

    Args:
        scratch: a folder, in which each candidate has one of its own.
        threads: of torch. Figures depend on their number, by rounding, so that it is the driver's.
    """

    making: Making
    scratch: Path
    threads: int


@dataclass(frozen=True)
class _Ready:
    """What the last candidate gave; the answer is the next candidate."""

    measured: Measured | None


@dataclass(frozen=True)
class _Failed:
    """The worker cannot measure anything; there is no answer."""

    error: Exception


@contextmanager
def working(making: Making, count: int, folder: Path | None) -> Iterator["Workers"]:
    """Processes that measure candidates, at most so many at a time; leaving ends them.

    Args:
        folder: for what is written on the way; by default that of the system.
    """
    with scratch_in(folder) as scratch:
        workers = Workers(_Setup(making, scratch.absolute(), torch.get_num_threads()), count)
        try:
            yield workers
        finally:
            workers.close()


class Workers:
    """The side of the driver: hands out candidates, and keeps what they gave until it is asked for."""

    def __init__(self, setup: _Setup, count: int) -> None:
        self._setup, self._count = setup, count
        self._due: list[Candidate] = []
        self._done: dict[Key, Measured] = {}
        self._at: dict[Process, Candidate | None] = {}
        """Workers, and what each measures; nothing while it starts or waits."""
        self._idle: list[Process] = []
        self._again: Counter[Key] = Counter()
        self._started = self._stillborn = 0
        self._noted: set[str] = set()

    def expect(self, candidates: Iterable[Candidate]) -> None:
        """As every measurer."""
        self._due = list(candidates)
        self._assign()

    def measured(self, candidate: Candidate) -> Measured:
        """As every measurer."""
        key = _key(candidate)
        if key not in self._done and key not in map(_key, (*self._due, *filter(None, self._at.values()))):
            self._due.insert(0, candidate)
            self._assign()
        while key not in self._done:
            for worker, message in heard(list(self._at)):
                self._handle(worker, message)
            self._assign()
        return self._done.pop(key)

    def close(self) -> None:
        """End all workers, and what they started."""
        for worker in self._at:
            worker.leave()
        for worker in self._at:
            worker.close()
        self._at.clear()

    def _handle(self, worker: Process, message: object) -> None:
        match message:
            case _Ready(measured=measured):
                if (candidate := self._at[worker]) is not None and measured is not None:
                    self._done[_key(candidate)] = measured
                self._at[worker] = None
                self._idle.append(worker)
            case Note(logger=logger, level=level, text=text):
                worker.answer(None)
                if text not in self._noted:
                    self._noted.add(text)
                    logging.getLogger(logger).log(level, text)
            case _Failed(error=error):
                raise error
            case Gone(why=why):
                self._lose(worker, why)

    def _lose(self, worker: Process, why: str) -> None:
        """A worker is gone: what it was at is measured again."""
        candidate = self._at.pop(worker)
        worker.close()
        if worker in self._idle:
            self._idle.remove(worker)
        if candidate is None:
            self._stillborn += 1
            if self._stillborn > AGAIN:
                raise TaskvecError(
                    f"{worker.name} {why} before it began with anything; see what it said above"
                )
            return
        key, name = _key(candidate), f"evaluation {candidate.number}"
        self._again[key] += 1
        if self._again[key] > AGAIN:
            raise TaskvecError(
                f"{name}: its worker {why}, as {AGAIN} others did before; with fewer workers there is more "
                "memory for each, and what is measured already stays"
            )
        _note.warning(
            "%s: %s %s; measured again, %d of %d times", name, worker.name, why, self._again[key], AGAIN
        )
        self._due.insert(0, candidate)

    def _assign(self) -> None:
        """Hand out candidates, as long as there are workers for them; start those that lack."""
        while self._idle and self._due:
            worker, candidate = self._idle.pop(0), self._due.pop(0)
            self._at[worker] = candidate
            worker.answer(candidate)
        starting = sum(candidate is None for candidate in self._at.values()) - len(self._idle)
        for _ in range(min(self._count - len(self._at), len(self._due) - starting)):
            self._started += 1
            self._at[Process(self._started, f"{__name__}:serve", self._setup)] = None


def _key(candidate: Candidate) -> Key:
    return candidate.number, candidate.part


def serve(setup: _Setup, ask: Ask) -> None:
    """The side of a worker: measure candidates, as long as there are any."""
    if torch.get_num_threads() != setup.threads:
        torch.set_num_threads(setup.threads)
    making = setup.making
    with noting(ask):
        try:
            variant = variants(making.recipe, where=making.where, folder=making.home, known=making.known)
            score = making.score()
            measured: Measured | None = None
            while True:
                measured = _measured(ask(_Ready(measured)), variant, score, setup.scratch)
        except (EOFError, ConnectionError):  # the driver is gone
            raise
        except Exception as error:  # also a defect of ours: the driver raises it
            ask(_Failed(portable(error)))


def _measured(candidate: Candidate, variant: Variant, score: Score, scratch: Path) -> Measured:
    """What a candidate gives, in a form that the driver can read."""
    place = scratch / f"{candidate.number}-{candidate.part}"
    remove(place)  # a worker may have been killed there
    place.mkdir()
    try:
        measured = measure(candidate, variant, score, place)
    except Exception as error:  # also a defect: raised by the driver once it comes to this candidate
        measured = Measured(error, 0.0)
    finally:
        remove(place)
    outcome = measured.outcome
    return measured._replace(outcome=portable(outcome)) if isinstance(outcome, Exception) else measured
