"""The results that an experiment asks for, one by one, and a process that makes them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice, product
from time import perf_counter
from typing import Any, Self

from taskvec.errors import OutOfMemory, TaskvecError
from taskvec.group import Gone, current
from taskvec.runs.events import TRAINING, Part
from taskvec.runs.manifest import name_of
from taskvec.studies.experiment import Experiment
from taskvec.studies.record import Plain, Record
from taskvec.studies.store import Records, key_of
from taskvec.studies.study import Study
from taskvec.studies.trial import Cell, Lab, Trial


@dataclass(frozen=True)
class Job:
    """One result: where in its part it stands."""

    part: Part
    place: int

    @property
    def label(self) -> str:
        """Names it in messages."""
        return self.part.cells[self.place]

    def __str__(self) -> str:
        """With all that tells it apart."""
        place = f", seed {self.part.seed}" if self.part.regime else ""
        return f"{self.part.study.replace('_', ' ')}: {self.label}{place}"


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Args:
        kind: of cell; empty for the training of a task's vector, whose result are its last figures.
        key: of its record; none for a training, and for what stands in for a cell that failed.
        seconds: that it took; none where it was on record.
        failed: why the cell failed.
    """

    kind: str
    result: Plain
    key: str | None = None
    seconds: float | None = None
    failed: str = ""


def parts_of(lab: Lab, studies: Sequence[Study[Any]]) -> Iterator[Part]:
    """What all of the experiment asks for, in order of work; nothing is computed."""
    experiment = lab.plan.experiment
    places = list(product(experiment.seeds, experiment.regimes))
    for of_model, group in groupby(studies, key=lambda study: study.of_model):
        together = list(group)
        for seed, regime in islice(places, 1 if of_model else None):
            trial = Trial(lab, regime, seed)
            if not of_model:
                yield Part(TRAINING, regime, seed, tuple(trial.tasks))
            for study in together:
                cells = tuple(cell.label for cell in study.cells(trial))
                yield Part(name_of(study), "" if of_model else regime, 0 if of_model else seed, cells)


def jobs_of(parts: Sequence[Part]) -> Iterator[Job]:
    """All results of some parts, in order of work."""
    for part in parts:
        for place in range(part.total):
            yield Job(part, place)


def vectors_of(experiment: Experiment, part: Part) -> tuple[str, int] | None:
    """The regime that trains the vectors that a part makes or needs, and their seed; none of the model's."""
    return (experiment.trained(part.regime), part.seed) if part.regime else None


class Worker:
    """Makes results of an experiment, one after the other.

    It keeps the points of one trial in memory, those of the last job.
    """

    def __init__(self, lab: Lab, studies: Sequence[Study[Any]]) -> None:
        self._lab = lab
        self._studies = {name_of(study): study for study in studies}
        self._trial: Trial | None = None
        self._cells: tuple[Part | None, list[Cell[Record]]] = (None, [])

    def do(self, job: Job) -> Outcome:
        """The result of a job, as it is on record or new.

        Raises: TaskvecError where the run cannot go on without it.
        """
        with _Timed(self._lab.store) as timed:
            made = self._trained(job) if job.part.study == TRAINING else self._finished(job)
        return Outcome(made.kind, made.result, made.key, timed.seconds, made.failed)

    def _trained(self, job: Job) -> Outcome:
        """A task's own vector."""
        figures: dict[str, float] = {}
        self._trial_of(job.part).vector(job.label, told=partial(_keep, figures))
        return Outcome("", figures)

    def _finished(self, job: Job) -> Outcome:
        """A cell's result, or what stands in for it where it fails and the run can do without it."""
        trial = self._trial_of(job.part)
        if self._cells[0] != job.part:
            self._cells = (job.part, list(self._studies[job.part.study].cells(trial)))
        cell = self._cells[1][job.place]
        kind = cell.kind.cell
        try:
            return Outcome(kind, trial.stored(cell), key_of(kind, cell.inputs))
        except TaskvecError as error:
            mine = isinstance(error, OutOfMemory | Gone) and not current().alone  # and the others go on
            if cell.instead is None or mine:
                raise
            return Outcome(kind, cell.instead(error), failed=str(error))

    def _trial_of(self, part: Part) -> Trial:
        experiment = self._lab.plan.experiment
        regime, seed = (
            (part.regime, part.seed) if part.regime else (next(iter(experiment.regimes)), experiment.seeds[0])
        )
        if self._trial is None or (self._trial.regime, self._trial.seed) != (regime, seed):
            self._trial = Trial(self._lab, regime, seed)
            self._cells = (None, [])
        return self._trial


def _keep(figures: dict[str, float], step: int, values: Mapping[str, float]) -> None:
    """The newest figures of a training."""
    figures.update(values)


class _Timed:
    """Seconds of what is done inside; none where every result was on record."""

    seconds: float | None = None

    def __init__(self, store: Records) -> None:
        self._store, self._computed, self._begun = store, store.computed, perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._store.computed > self._computed:
            self.seconds = perf_counter() - self._begun
