"""Non-linear advantage: what leaving the tangent space gains on every task."""

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import fmean

from pydantic import RootModel

from taskvec.reports.charts.dots import Dots, Row, Rows
from taskvec.reports.charts.scales import Axis
from taskvec.reports.numbers import Mean
from taskvec.reports.tables import Table
from taskvec.studies.charting import of_seeds
from taskvec.studies.experiment import Experiment, post_hoc_of
from taskvec.studies.linearity import nonlinear_advantage
from taskvec.studies.record import Plain, Record
from taskvec.studies.single import OwnModels
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Plan, Trial
from taskvec.tasks.kinds.classification import Classification


class Accuracies(Record, RootModel[dict[str, float]]):
    """Test accuracy of tasks' own models, of the tasks whose metric is another."""

    cell = "accuracy"


class Advantage(Study[None]):
    """Of experiments with regimes in tangent space, over the same parameters in ordinary space."""

    title = "Non-linear advantage"

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        tasks = _classified(trial.plan)
        others = [name for name, task in tasks.items() if task.metric != "accuracy"]
        if others and self._compares(trial.experiment):
            yield trial.cell(Accuracies, partial(_measure_accuracies, tasks=others), others)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        if not self._compares(results.plan.experiment) or not _classified(results.plan):
            return {}
        facts = {"accuracy": self._accuracies(results, regime, seed)}
        advantages = self._advantages(results, regime, seed)
        return {**facts, "nonlinear_advantage": advantages} if advantages else facts

    def tables(self, results: Results) -> Iterator[Table]:
        tasks, experiment, rows = _classified(results.plan), results.plan.experiment, []
        for regime in experiment.regimes:
            advantages = [self._advantages(results, regime, seed) for seed in experiment.seeds]
            if all(advantages):
                by_task = [[100 * of[task] for of in advantages] for task in tasks]
                means = [fmean(of_seed) for of_seed in zip(*by_task, strict=True)]
                rows.append((f"over {regime}", *(Mean(values, "+.1f") for values in (*by_task, means))))
        if rows:
            note = (
                "(accuracy in ordinary space − accuracy in tangent space) / (1 − 1/C) of each task's own "
                "model, per cent, test: what leaving the tangent space gains."
            )
            yield Table("Non-linear advantage", ("", *tasks, "mean"), rows, note)

    def charts(self, results: Results) -> Iterator[Dots]:
        tasks, experiment = _classified(results.plan), results.plan.experiment
        found = {
            f"over {regime}": advantages
            for regime in experiment.regimes
            if all(advantages := [self._advantages(results, regime, seed) for seed in experiment.seeds])
        }
        if found and tasks:
            rows = [
                Row(task, {name: [100 * of[task] for of in seeds] for name, seeds in found.items()})
                for task in tasks
            ]
            caption = f"What leaving the tangent space gains on each task. {of_seeds(len(experiment.seeds))}"
            part = Rows("", Axis("non-linear advantage, %"), {"": rows}, {"no gain": 0.0})
            yield Dots("advantage", caption, [part], filed=False)

    def _compares(self, experiment: Experiment) -> bool:
        return "tangent" in map(experiment.space, experiment.regimes)

    def _accuracies(self, results: Results, regime: str, seed: int) -> dict[str, float]:
        """By task, whatever its metric is."""
        [single] = results.of(OwnModels, regime, seed)
        accuracies = {task: single.test[task] for task in _classified(results.plan)}
        for other in results.of(Accuracies, regime, seed):
            accuracies |= other.root
        return accuracies

    def _advantages(self, results: Results, regime: str, seed: int) -> dict[str, float]:
        """By task, of the ordinary regime with the same parameters over this one; empty if there is none."""
        experiment, tasks = results.plan.experiment, _classified(results.plan)
        ordinary = next((name for name in experiment.regimes if _is_linear(experiment, regime, name)), None)
        if ordinary is None or not all(_are_known(results, name, seed) for name in (ordinary, regime)):
            return {}
        above, below = (self._accuracies(results, name, seed) for name in (ordinary, regime))
        return {
            name: nonlinear_advantage(above[name], below[name], len(task.classes))
            for name, task in tasks.items()
        }


def _classified(plan: Plan) -> dict[str, Classification]:
    """The tasks that have an accuracy over classes."""
    tasks = {name: plan.suite.task(name) for name in plan.tasks}
    return {name: task for name, task in tasks.items() if isinstance(task, Classification)}


def _are_known(results: Results, regime: str, seed: int) -> bool:
    """Whether the accuracies of a regime are there; of a run at work they may not be."""
    others = any(task.metric != "accuracy" for task in _classified(results.plan).values())
    kinds = (OwnModels, Accuracies) if others else (OwnModels,)
    return all(results.stored(kind, regime, seed) for kind in kinds)


def _is_linear(experiment: Experiment, regime: str, ordinary: str) -> bool:
    """Whether a regime trains what an ordinary one does in tangent space, or evaluates its vectors there."""
    if experiment.trained(ordinary) != ordinary:
        return False
    if experiment.trained(regime) != regime:
        return regime == post_hoc_of(ordinary)
    return experiment.regime(regime).is_tangent_of(experiment.regime(ordinary))


def _measure_accuracies(trial: Trial, tasks: Sequence[str]) -> Plain:
    points = trial.points
    return {task: trial.evaluator.score(points.at({task: 1.0}), task, "test").accuracy for task in tasks}
