"""From an experiment to its results: every cell computed once, in the registry's order."""

import shutil
from itertools import groupby

from taskvec.errors import InputError
from taskvec.models.known import path_or_id
from taskvec.models.loading import load_backbone
from taskvec.progress import Watch, unwatched
from taskvec.runs.context import RunContext
from taskvec.runs.experiment import active, involved_tasks
from taskvec.runs.store import Store
from taskvec.studies.experiment import Experiment
from taskvec.studies.study import Cell, Plan, Record, Results
from taskvec.tasks.suite import Suite
from taskvec.weights import open_weights


class Runner:
    """Runs an experiment in a run folder.

    Args:
        store: of the run folder; cells on record there are taken from it.

    Raises: InputError for a model, or the data of a task, that is not to be had; the folder is not touched.
    """

    def __init__(self, experiment: Experiment, suite: Suite, store: Store, watch: Watch = unwatched) -> None:
        self._studies, self._store = active(experiment), store
        compared = experiment.task_names(suite)
        for study in self._studies:
            compared += study.compared(experiment, suite)
        digests = {task: suite.task(task).fingerprint for task in involved_tasks(experiment, suite)}
        self._plan = Plan(
            experiment, suite, _fingerprint(experiment.model), digests, list(dict.fromkeys(compared))
        )
        self._context = RunContext(self._plan, store, watch)
        if not store.begun:
            self.load()

    def load(self) -> None:
        """Load the model now, so that what is wrong with it is said before anything else is done.

        Raises: InputError.
        """
        _ = self._context.evaluator

    def run(self) -> Results:
        """All results."""
        results = Results(self._plan)
        experiment = self._plan.experiment
        for of_model, studies in groupby(self._studies, key=lambda study: study.of_model):
            if of_model:
                self._finish(results, [cell for study in studies for cell in study.model_cells(self._plan)])
                continue
            group = list(studies)
            for seed in experiment.seeds:
                for regime in experiment.regimes:
                    self._context.begin(regime, seed)
                    self._finish(
                        results, [cell for study in group for cell in study.cells(self._plan, regime, seed)]
                    )
        shutil.rmtree(self._store.folder / "partial", ignore_errors=True)
        return results

    def _finish(self, results: Results, cells: list[Cell[Record]]) -> None:
        for cell in cells:
            results.add(cell, self._context.stored(cell))


def _fingerprint(model: str) -> str:
    try:
        return open_weights(path_or_id(model)).fingerprint()
    except InputError:
        load_backbone(model)  # its message names the nearest known model
        raise
