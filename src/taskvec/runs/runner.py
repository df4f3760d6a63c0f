"""From an experiment to its results: every cell computed once, in the registry's order."""

import shutil

from taskvec.errors import InputError
from taskvec.models.known import path_or_id
from taskvec.models.loading import load_backbone
from taskvec.models.own import is_own
from taskvec.progress import Watch, unwatched
from taskvec.runs.events import TRAINING, Begun, Done, Finished, Part, Told, Trained, Working, untold
from taskvec.runs.executors.executor import HERE, Executor, Work
from taskvec.runs.experiment import active, involved_tasks
from taskvec.runs.jobs import Job, Outcome, jobs_of, parts_of
from taskvec.studies.experiment import Experiment
from taskvec.studies.record import Plain
from taskvec.studies.single import baselines
from taskvec.studies.store import Store
from taskvec.studies.study import Results
from taskvec.studies.trial import Lab, Plan
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
        model = fingerprint_of(experiment.checkpoint)
        self._lab = Lab(Plan(experiment, suite, model, digests, list(dict.fromkeys(compared))), store, watch)
        if not store.begun:
            self.load()

    def load(self) -> None:
        """Load the model now, so that what is wrong with it is said before anything else is done.

        Raises: InputError.
        """
        _ = self._lab.evaluator

    def run(self, told: Told = untold, executor: Executor = HERE) -> Results:
        """All results.

        Args:
            told: of everything that begins and ends, in order of work; and of workers, if there are any.
            executor: where they are made: in this process, or in several.
        """
        lab, studies = self._lab, self._studies
        lab.store.files.publish()  # what was made before others could see it
        results = Results(lab.plan, list(studies), folder=lab.store.folder)
        parts = list(parts_of(lab, studies))
        told(Begun(lab.plan.experiment.name, parts))
        ends = {part.study: part for part in parts} | {part.study: part for part in parts if part.total}
        with executor.open(Work(lab, studies, list(jobs_of(parts)), told)) as outcome_of:
            for part in parts:
                for job in jobs_of([part]):
                    told(Working(part, job.label))
                    outcome = outcome_of(job)
                    _take(outcome, part, results)
                    told(Done(part, job.label, job.place + 1, _shown(outcome), outcome.seconds))
                    _tell_trained(job, outcome, results, told)
                if part.study != TRAINING:
                    told(Finished(part, results, part == ends[part.study]))
        lab.store.files.bring("logs", "inspected", "outputs")  # of which the page is made
        if not results.failed:
            shutil.rmtree(lab.store.folder / "partial", ignore_errors=True)
        return results


def _take(outcome: Outcome, part: Part, results: Results) -> None:
    """Put what came of a cell among the results."""
    if outcome.kind:
        results.add(outcome.kind, outcome.result, part.regime, part.seed, key=outcome.key)
    if outcome.failed:
        results.failed.append(outcome.failed)


def _shown(outcome: Outcome) -> Plain:
    """The result of a cell; nothing of a training, of which a vector came."""
    return outcome.result if outcome.kind else {}


def _tell_trained(job: Job, outcome: Outcome, results: Results, told: Told) -> None:
    """Say how a task's value changed, where its vector is the regime's own and was measured."""
    plan, regime, after = results.plan, job.part.regime, outcome.result.get("validation")
    if outcome.kind or plan.experiment.trained(regime) != regime or not isinstance(after, float):
        return
    if before := baselines(results)[job.label].validation:
        told(Trained(job.label, plan.metrics[job.label], regime, before.utility, after))


def fingerprint_of(model: str) -> str:
    """Of a model's weights. Raises: InputError."""
    if is_own(model):
        return open_weights(load_backbone(model).source).fingerprint()
    try:
        return open_weights(path_or_id(model)).fingerprint()
    except InputError:
        load_backbone(model)  # its message names the nearest known model
        raise
