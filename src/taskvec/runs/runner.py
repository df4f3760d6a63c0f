"""From an experiment to its results: every cell computed once, in the registry's order."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

from taskvec.errors import InputError, TaskvecError
from taskvec.models.known import path_or_id
from taskvec.models.loading import load_backbone
from taskvec.models.own import is_own
from taskvec.progress import Watch, unwatched
from taskvec.runs.experiment import active, involved_tasks
from taskvec.studies.experiment import Experiment
from taskvec.studies.record import Plain, Record
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

    def run(self, told: Callable[[Results], None] | None = None) -> Results:
        """All results.

        Args:
            told: called with those that are there whenever a study is done with a regime and seed.
        """
        results = Results(self._lab.plan, list(self._studies))
        for of_model, group in groupby(self._studies, key=lambda study: study.of_model):
            studies = list(group)
            if of_model:
                _finish(studies, next(self._trials()), results, told)
                continue
            for trial in self._trials():
                _ = trial.vectors
                _finish(studies, trial, results, told, trial.regime, trial.seed)
        if not results.failed:
            shutil.rmtree(self._lab.store.folder / "partial", ignore_errors=True)
        return results

    def _trials(self) -> Iterator[Trial]:
        """One after the other, since each keeps its points in memory."""
        experiment = self._lab.plan.experiment
        for seed in experiment.seeds:
            for regime in experiment.regimes:
                yield Trial(self._lab, regime, seed)


def _finish(
    studies: Iterable[Study[Any]],
    trial: Trial,
    results: Results,
    told: Callable[[Results], None] | None,
    regime: str = "",
    seed: int = 0,
) -> None:
    for study in studies:
        for cell in study.cells(trial):
            failures = len(results.failed)
            result = _finished(cell, trial, results)
            key = key_of(cell.kind.cell, cell.inputs) if len(results.failed) == failures else None
            results.add(cell.kind.cell, result, regime, seed, key=key)
        if told is not None:
            told(results)


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
