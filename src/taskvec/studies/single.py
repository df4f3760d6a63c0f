"""Every task by itself: the model before training, each task's own model, and the geometry of the vectors."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean

from pydantic import Field

from taskvec.arguments import checked
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.metrics import absolute, majority, normalized
from taskvec.evaluation.points import Points
from taskvec.reports.charts.dots import Dots, Row, Rows
from taskvec.reports.charts.matrix import Map, Matrix, Tint
from taskvec.reports.charts.scales import Axis
from taskvec.reports.numbers import NOTHING, Mean, Range, percent
from taskvec.reports.tables import Table
from taskvec.studies.charting import mean_of, of_seeds
from taskvec.studies.entry import PRETRAINED, SINGLE, Entry
from taskvec.studies.hits import scores_and_hits, without_hits
from taskvec.studies.measured import (
    Measured,
    Scored,
    greatest_is_best,
    in_unit,
    mean_in_unit,
    titled,
    unit_note,
    units_of,
)
from taskvec.studies.record import Plain, Record
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.kinds.classification import Classification
from taskvec.vectors import TaskVector, similarity


class Baseline(Record):
    """One task before any training."""

    cell = "zero_shot"
    majority: float | None = None
    """Of a classification."""
    validation: Scored | None = None
    hits: str | None = None
    """Which test examples are right, see ``hits.py``."""
    test: Scored


class OwnModels(Record):
    """The value of each task's own model on its task, more is better: what edits are divided by."""

    cell = "single"
    validation: dict[str, float]
    test: dict[str, float]
    hits: dict[str, str] = Field(default_factory=dict)
    """Which test examples are right, by task, see ``hits.py``."""

    @property
    def values(self) -> dict[str, dict[str, float]]:
        """By split and task."""
        return {"validation": self.validation, "test": self.test}


class FoundRate(Record):
    """The learning rate of a vector, and the steps of the search for it."""

    lr: float
    steps: int


class Geometry(Record):
    """Lengths of the tasks' vectors, cosines between them, and learning rates that were found for them."""

    cell = "geometry"
    norms: dict[str, float]
    cosine: list[list[float]]
    rates: dict[str, FoundRate] = Field(default_factory=dict)


@checked
def single_task(evaluator: Evaluator, points: Points, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Value of each task's own vector at coefficient 1, on validation and test: ``{split: {task: value}}``.

    More is better: a perplexity counts by its reciprocal.

    These are the denominators of normalized accuracy for every edit of the same regime. The points' vectors
    carry the names of the tasks.
    """
    return _own_figures(evaluator, points, tasks)[0]


def _own_figures(
    evaluator: Evaluator, points: Points, tasks: Sequence[str]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """The same, and which test examples are right."""
    values: dict[str, dict[str, float]] = {"validation": {}, "test": {}}
    hits: dict[str, str] = {}
    for task in tasks:
        params = points.at({task: 1.0})
        values["validation"][task] = evaluator.score(params, task, "validation").utility
        scores, right = scores_and_hits(evaluator, params, [task])
        values["test"][task] = scores[task].utility
        hits |= right
    return values, hits


def own_models(trial: Trial) -> OwnModels:
    """What the cells of a trial divide by."""
    return trial.result(trial.cell(OwnModels, _score_own_models, trial.tasks))


def baselines(results: Results) -> dict[str, Baseline]:
    """By task."""
    return dict(zip(results.plan.compared, results.of(Baseline), strict=True))


class ZeroShot(Study[None]):
    """The pre-trained model on every task that a table compares with it."""

    of_model = True

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        for task in trial.plan.compared:
            inputs = {**trial.plan.evaluation, "tasks": trial.plan.fingerprints([task])}
            yield Cell(Baseline, task, inputs, partial(_score_pretrained, task=task))

    def entries(self, results: Results) -> Iterator[Entry]:
        tasks = results.plan.tasks
        before = dict(zip(results.plan.compared, results.of(Baseline), strict=False))
        if any(task not in before for task in tasks):
            return  # a run that has just begun
        values = {task: before[task].test.utility for task in tasks}
        hits = {task: right for task in tasks if (right := before[task].hits)}
        own = [of for _, cells in results.by_seed(OwnModels) for of in cells[0].values()]
        alone = len(results.plan.experiment.regimes) == 1
        figures = {
            "absolute": absolute(values),
            "normalized": fmean(_relative(values, of.test) for of in own) if own and alone else math.nan,
        }
        edit = Measured(**figures, values=values, hits=hits)
        yield Entry(PRETRAINED, "", dict.fromkeys(results.plan.experiment.seeds, edit))

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        stored = map(without_hits, results.stored(Baseline))
        return {"zero_shot": dict(zip(results.plan.compared, stored, strict=True))}


class Single(Study[None]):
    """Each task's own model, and the vectors that make it."""

    title = "Single tasks"

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        yield trial.cell(OwnModels, _score_own_models, trial.tasks)
        yield trial.cell(Geometry, _measure_vectors, trial.tasks)

    def entries(self, results: Results) -> Iterator[Entry]:
        for regime, [models] in results.by_seed(OwnModels):
            edits = {
                seed: Measured(
                    absolute=absolute(of.test),
                    normalized=_relative(of.test, of.test),
                    values=of.test,
                    hits=of.hits,
                )
                for seed, of in models.items()
            }
            yield Entry(SINGLE, regime, edits, ("task id",))

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        [single] = results.stored(OwnModels, regime, seed)
        [geometry] = results.of(Geometry, regime, seed)
        return {
            "space": results.plan.experiment.space(regime),
            "single": without_hits(single),
            "norms": geometry.norms,
            **(
                {"learning_rates": results.stored(Geometry, regime, seed)[0]["rates"]}
                if geometry.rates
                else {}
            ),
        }

    def tables(self, results: Results) -> Iterator[Table]:
        tasks, before = results.plan.tasks, baselines(results)
        units = results.plan.metrics
        rows: list[tuple[object, ...]] = [
            ("zero-shot", *_by_task([[before[task].test.utility for task in tasks]], units), ""),
            *_row_of_majority([before[task].majority for task in tasks]),
        ]
        geometries = results.by_regime(Geometry)
        for regime, [seeds] in results.by_regime(OwnModels).items():
            norms = [norm for geometry in geometries[regime][0] for norm in geometry.norms.values()]
            values = [[models.test[task] for task in tasks] for models in seeds]
            rows.append((regime, *_by_task(values, units), Range(norms, ".1f")))
        metrics = {task: metric for task, metric in units.items() if metric != "accuracy"}
        named = (
            f" Metrics: {', '.join(f'{task} {name}' for task, name in metrics.items())}." if metrics else ""
        )
        sizes = Range([before[task].test.examples for task in tasks], "d")
        count = len(results.plan.experiment.seeds)
        over = f"; mean ± standard deviation over {count} seeds" if count > 1 else ""
        note = f"{unit_note(units.values())} on {sizes} test examples a task{over}.{named}"
        heads = [titled(task, metric) for task, metric in units.items()]
        count = len(tasks)
        compared = (*range(1, count + 1), *greatest_is_best(units.values(), count + 1))
        yield Table("Single tasks", ("", *heads, "mean", "‖τ‖"), rows, note, compared=compared)
        yield from _rates_found(geometries, tasks)

    def charts(self, results: Results) -> Iterator[Dots]:
        yield _chart_of_models(results)


class Cosine(Study[None]):
    """How far the tasks' vectors point in one direction; of regimes that train."""

    title = "Cosines of task vectors"

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        if not self._trains(results, regime):
            return {}
        [geometry] = results.of(Geometry, regime, seed)
        return {"cosine": geometry.cosine}

    def tables(self, results: Results) -> Iterator[Table]:
        tasks = results.plan.tasks
        for regime, cosines in self._cosines(results).items():
            rows = [
                (task, *(Mean(values, ".3f", spread=False) for values in row))
                for task, row in zip(tasks, cosines, strict=True)
            ]
            yield Table(f"Cosine of task vectors, {regime}", ("", *tasks), rows, closed=True)

    def charts(self, results: Results) -> Iterator[Matrix]:
        tasks, count = results.plan.tasks, len(results.plan.experiment.seeds)
        grids = [
            Map(regime, tasks, tasks, [list(map(fmean, row)) for row in cosines])
            for regime, cosines in self._cosines(results).items()
        ]
        off = [
            value
            for grid in grids
            for i, row in enumerate(grid.values)
            for j, value in enumerate(row)
            if i != j
        ]
        if grids:
            tint = Tint.around_zero(off, "cosine", least=0.1)
            yield Matrix("cosine", f"Cosines between task vectors. {mean_of(count)}", grids, tint, ".2f")

    def _cosines(self, results: Results) -> dict[str, list[list[list[float]]]]:
        """By regime a matrix, whose elements have a value a seed."""
        count = range(len(results.plan.tasks))
        return {
            regime: [[[geometry.cosine[i][j] for geometry in seeds] for j in count] for i in count]
            for regime, [seeds] in results.by_regime(Geometry).items()
            if self._trains(results, regime) and len(count) > 1
        }

    def _trains(self, results: Results, regime: str) -> bool:
        return results.plan.experiment.trained(regime) == regime


def _rates_found(geometries: Mapping[str, list[list[Geometry]]], tasks: Sequence[str]) -> Iterator[Table]:
    """Learning rates that were found, and what the searches cost."""
    rows: list[tuple[object, ...]] = []
    for regime, [seeds] in geometries.items():
        found = {task: [of.rates[task] for of in seeds if task in of.rates] for task in tasks}
        if any(found.values()):
            rates = [Range([rate.lr for rate in of]) if of else NOTHING for of in found.values()]
            rows.append((regime, *rates, Range([rate.steps for of in found.values() for rate in of], "d")))
    if rows:
        note = (
            "Peak learning rates of `lr: auto`, the smallest that gain almost as much as the best in short "
            "trainings. They consumed validation labels; the last column is the search's steps a vector."
        )
        yield Table("Learning rates found", ("", *tasks, "steps of search"), rows, note)


def _score_pretrained(trial: Trial, task: str) -> Plain:
    evaluator, point = trial.evaluator, trial.evaluator.pretrained
    classified = isinstance(evaluator.task(task), Classification)
    scores, hits = scores_and_hits(evaluator, point, [task])
    return {
        **({"majority": majority(evaluator.split(task, "test").labels)} if classified else {}),
        "validation": evaluator.score(point, task, "validation").record(),
        "test": scores[task].record(),
        **({"hits": hits[task]} if hits else {}),
    }


def _score_own_models(trial: Trial) -> Plain:
    values, hits = _own_figures(trial.evaluator, trial.points, trial.tasks)
    return {**values, **({"hits": hits} if hits else {})}


def _measure_vectors(trial: Trial) -> Plain:
    """The two figures that read every tensor of each vector."""
    return {
        "norms": {task: vector.norm() for task, vector in trial.vectors.items()},
        "cosine": similarity(list(trial.vectors.values())).tolist(),
        **_searches(trial.vectors),
    }


def _relative(values: Mapping[str, float], single: Mapping[str, float]) -> float:
    """Normalized; not a number where no single-task value is positive."""
    return normalized(values, single) if any(single[task] > 0 for task in values) else math.nan


def _searches(vectors: Mapping[str, TaskVector]) -> Plain:
    """The learning rates that vectors were trained with, of those for which one was searched."""
    found = {task: (vector.info.training or {}).get("lr_search") for task, vector in vectors.items()}
    rates = {
        task: {"lr": of["lr"], "steps": of["steps"]} for task, of in found.items() if isinstance(of, dict)
    }
    return {"rates": rates} if rates else {}


def _by_task(seeds: Sequence[Sequence[float]], metrics: Mapping[str, str]) -> list[object]:
    """One number a task and one for their mean, each over seeds."""
    columns = zip(metrics.values(), zip(*seeds, strict=True), strict=True)
    means = mean_in_unit(metrics.values(), list(map(fmean, seeds)))
    return [*(in_unit(metric, column) for metric, column in columns), means]


def _row_of_majority(shares: Sequence[float | None]) -> Iterator[tuple[object, ...]]:
    """What the most frequent class reaches; of tasks with classes."""
    known = [share for share in shares if share is not None]
    if known:
        mean = percent([fmean(known)]) if len(known) == len(shares) else NOTHING
        yield ("majority class", *(percent([share]) for share in shares), mean, "")


def _chart_of_models(results: Results) -> Dots:
    tasks, before = results.plan.tasks, baselines(results)
    relative = units_of(results.plan.metrics.values()) != [""]
    own = {regime: seeds for regime, [seeds] in results.by_regime(OwnModels).items()}
    rows = []
    for task in tasks:
        start = before[task].test.utility
        unit = start if relative else 1.0
        values = {"zero-shot": [start], **{regime: [of.test[task] for of in own[regime]] for regime in own}}
        rows.append(
            Row(
                task,
                {name: [100 * value / unit for value in of] if unit else [] for name, of in values.items()},
            )
        )
    axis = Axis("test metric, % of zero-shot (more is better)" if relative else "test metric, %")
    caption = (
        f"Every task before and after its own fine-tuning. {of_seeds(len(results.plan.experiment.seeds))}"
    )
    return Dots("single", caption, [Rows("", axis, {"": rows})])
