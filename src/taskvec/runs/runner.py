"""From an experiment to its results: every cell computed once, in the registry's order."""

import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import groupby, islice
from time import perf_counter
from typing import Any, Self

from taskvec.errors import InputError, TaskvecError
from taskvec.models.known import path_or_id
from taskvec.models.loading import load_backbone
from taskvec.models.own import is_own
from taskvec.progress import Watch, unwatched
from taskvec.runs.events import TRAINING, Begun, Done, Finished, Part, Told, Trained, Working, untold
from taskvec.runs.experiment import active, involved_tasks
from taskvec.runs.manifest import name_of
from taskvec.studies.experiment import Experiment
from taskvec.studies.record import Plain, Record
from taskvec.studies.single import baselines
from taskvec.studies.store import Store, key_of
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Lab, Plan, Trial
from taskvec.tasks.suite import Suite
from taskvec.weights import open_weights


class Runner:
    """Runs an experiment in a run folder.

    Args:
        store: of the run folder; cells on record there are taken from it.

    Raises: InputError for a model, or the data of a task, that is not to be had; the folder is not touched.
    """

    def __init__(self, experiment: Experiment, suite: Suite, store: Store, watch: Watch = unwatched) -> None:
        self._studies = active(experiment)
        compared = experiment.task_names(suite)
        for study in self._studies:
            compared += study.compared(experiment, suite)
        digests = {task: suite.task(task).fingerprint for task in involved_tasks(experiment, suite)}
        model = _fingerprint(experiment.checkpoint)
        self._lab = Lab(Plan(experiment, suite, model, digests, list(dict.fromkeys(compared))), store, watch)
        if not store.begun:
            self.load()

    def load(self) -> None:
        """Load the model now, so that what is wrong with it is said before anything else is done.

        Raises: InputError.
        """
        _ = self._lab.evaluator

    def run(self, told: Told = untold) -> Results:
        """All results.

        Args:
            told: of everything that begins and ends.
        """
        results = Results(self._lab.plan, list(self._studies), folder=self._lab.store.folder)
        parts = list(self._parts())
        told(Begun(self._lab.plan.experiment.name, parts))
        ends = {part.study: part for part in parts} | {part.study: part for part in parts if part.total}
        due = iter(parts)
        for studies, trial, of_model in self._work():
            if not of_model:
                _train(next(due), trial, results, told)
            for study, part in zip(studies, due, strict=False):
                _finish(study, part, trial, results, told)
                told(Finished(part, results, part == ends[part.study]))
        if not results.failed:
            shutil.rmtree(self._lab.store.folder / "partial", ignore_errors=True)
        return results

    def _parts(self) -> Iterator[Part]:
        """What all of the experiment asks for, in order of work; nothing is computed."""
        for studies, trial, of_model in self._work():
            place = ("", 0) if of_model else (trial.regime, trial.seed)
            if not of_model:
                yield Part(TRAINING, *place, tuple(trial.tasks))
            for study in studies:
                yield Part(name_of(study), *place, tuple(cell.label for cell in study.cells(trial)))

    def _work(self) -> Iterator[tuple[list[Study[Any]], Trial, bool]]:
        """Studies, a trial that they are done in, and whether they are about the model alone."""
        for of_model, group in groupby(self._studies, key=lambda study: study.of_model):
            studies = list(group)
            for trial in islice(self._trials(), 1 if of_model else None):
                yield studies, trial, of_model

    def _trials(self) -> Iterator[Trial]:
        """One after the other, since each keeps its points in memory."""
        experiment = self._lab.plan.experiment
        for seed in experiment.seeds:
            for regime in experiment.regimes:
                yield Trial(self._lab, regime, seed)


def _train(part: Part, trial: Trial, results: Results, told: Told) -> None:
    """Each task's own vector."""
    trains = trial.experiment.trained(trial.regime) == trial.regime
    for done, task in enumerate(trial.tasks, start=1):
        told(Working(part, task))
        figures: dict[str, float] = {}
        with _Timed(trial.lab.store) as timed:
            trial.vector(task, told=partial(_keep, figures))
        told(Done(part, task, done, {}, timed.seconds))
        before = baselines(results)[task].validation
        if trains and before and "validation" in figures:
            metric = trial.plan.metrics[task]
            told(Trained(task, metric, trial.regime, before.utility, figures["validation"]))


def _keep(figures: dict[str, float], step: int, values: Mapping[str, float]) -> None:
    """The newest figures of a training."""
    figures.update(values)


def _finish(study: Study[Any], part: Part, trial: Trial, results: Results, told: Told) -> None:
    """All cells of a part."""
    for done, cell in enumerate(study.cells(trial), start=1):
        told(Working(part, cell.label))
        failures = len(results.failed)
        with _Timed(trial.lab.store) as timed:
            result = _finished(cell, trial, results)
        key = key_of(cell.kind.cell, cell.inputs) if len(results.failed) == failures else None
        results.add(cell.kind.cell, result, part.regime, part.seed, key=key)
        told(Done(part, cell.label, done, result, timed.seconds))


class _Timed:
    """Seconds of what is done inside; none where every result was on record."""

    seconds: float | None = None

    def __init__(self, store: Store) -> None:
        self._store, self._computed, self._begun = store, store.computed, perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._store.computed > self._computed:
            self.seconds = perf_counter() - self._begun


def _finished(cell: Cell[Record], trial: Trial, results: Results) -> Plain:
    """A cell's result, or what stands in for it where it fails and the run can do without it."""
    try:
        return trial.stored(cell)
    except TaskvecError as error:
        if cell.instead is None:
            raise
        results.failed.append(str(error))
        return cell.instead(error)


def _fingerprint(model: str) -> str:
    if is_own(model):
        return open_weights(load_backbone(model).source).fingerprint()
    try:
        return open_weights(path_or_id(model)).fingerprint()
    except InputError:
        load_backbone(model)  # its message names the nearest known model
        raise
