"""Task addition: several skills in one model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, combinations
from statistics import fmean
from typing import Literal

from pydantic import Field

from taskvec.arguments import checked
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.points import Point, Points
from taskvec.evaluation.search import Grid, search_addition, search_each
from taskvec.reports.charts.chart import Chart
from taskvec.reports.charts.dots import Dots, Row, Rows
from taskvec.reports.charts.lines import Curve, Dot, Lines, Plot
from taskvec.reports.charts.scales import Axis
from taskvec.reports.numbers import percent
from taskvec.reports.tables import Table
from taskvec.studies.charting import Unit, measures, of_seeds
from taskvec.studies.entry import ADDITION, MEAN, Entry, consumed_with
from taskvec.studies.experiment import Experiment
from taskvec.studies.hits import scores_and_hits, without_hits
from taskvec.studies.joint import Joined
from taskvec.studies.measured import (
    Edit,
    Measured,
    Scored,
    both,
    coefficients,
    greatest_is_best,
    measure_point,
    measured,
    reciprocal_note,
    search_inputs,
    search_note,
    tally_note,
)
from taskvec.studies.record import Plain, Record
from taskvec.studies.single import OwnModels, baselines, own_models
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.suite import Suite

Values = Mapping[str, float]


class AdditionSettings(Config):
    """Add vectors of several tasks, with one shared coefficient chosen on validation data."""

    subsets: Literal["all", "pairs", "whole"] = "pairs"
    """``all`` subsets of two or more; ``pairs`` and the whole; the ``whole`` only."""
    regimes: tuple[str, ...] | None = None
    """Regimes that add these subsets, default all; the others add the whole only."""
    each: tuple[str, ...] | None = None
    """Regimes that also search a coefficient for every task; default: those evaluated in tangent space."""

    def searches_each(self, experiment: Experiment, regime: str) -> bool:
        """Whether the sum of all tasks in a regime gets a coefficient for every task, too."""
        return experiment.space(regime) == "tangent" if self.each is None else regime in self.each


class Each(Measured):
    """The sum with a coefficient of its own for every task."""

    coefficients: dict[str, float]


class Sum(Edit):
    """The sum of some tasks' vectors at the best shared coefficient."""

    cell = "addition"
    tasks: list[str]
    test: dict[str, Scored]
    fixed: dict[str, Measured]
    each: Each | None = None
    trace: list[tuple[float, float | None]] = Field(default_factory=list)
    """(coefficient, mean normalized validation value) of every point measured."""
    without: dict[str, Measured] = Field(default_factory=dict)
    """The sum with one task's vector left out, by that task; where ``each`` is."""

    def gain(self, task: str, on: str) -> float:
        """What a task's vector adds to the value of the sum on a task."""
        return self.values[on] - self.without[task].values[on]


class Addition(Study[AdditionSettings]):
    """Sums of the tasks' vectors, of all tasks and of some."""

    settings = AdditionSettings
    shows = ("joint",)

    def check(self, experiment: Experiment, suite: Suite) -> None:
        experiment.check_regimes("addition", self.block.regimes)
        experiment.check_regimes("addition", self.block.each)
        names = experiment.task_names(suite)
        if len(names) < 2:
            raise InputError(f"addition: needs two or more tasks, not {names}")

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        block, search = self.block, trial.experiment.search
        each = block.searches_each(trial.experiment, trial.regime)
        which = block.subsets if trial.regime in (block.regimes or trial.experiment.regimes) else "whole"
        for tasks in subsets(trial.tasks, which):
            whole = len(tasks) == len(trial.tasks)
            fixed = {"1": 1.0, "1/T": 1 / len(tasks)} if whole else {}
            more = {"each": True} if whole and each else {}
            job = partial(_add, tasks=tasks, fixed=fixed, each=whole and each)
            yield trial.cell(Sum, job, tasks, **search_inputs(search), fixed=fixed, **more)

    def entries(self, results: Results) -> Iterator[Entry]:
        experiment = results.plan.experiment
        for regime, sums in wholes_by_seed(results):
            ones, means = (
                {seed: of.fixed[label] for seed, of in sums.items() if label in of.fixed}
                for label in ("1", "1/T")
            )
            yield from entries_of_sums(experiment, regime, sums, ones)
            if means:
                free = consumed_with(experiment, regime)
                yield Entry(MEAN, regime, means, free, "default", dict.fromkeys(means, 1.0))
            if each := {seed: of.each for seed, of in sums.items() if of.each}:
                labels = consumed_with(experiment, regime, "validation labels")
                yield Entry(f"{ADDITION}, an α each", regime, each, labels, "searched")

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        return {"addition": list(map(without_hits, results.stored(Sum, regime, seed)))}

    def tables(self, results: Results) -> Iterator[Table]:
        sums = results.by_regime(Sum)
        if sums:
            yield _table_of_wholes(results)
        if results.untrained:
            yield _table_of_pretraining(results, results.untrained)
        count = max(map(len, sums.values()), default=0)
        if 2 <= count <= 40:  # beyond that the figure says it better
            same = {regime: of for regime, of in sums.items() if len(of) == count}
            yield _table_of_subsets(same, results.plan.metrics)

    def charts(self, results: Results) -> Iterator[Chart]:
        sums, metrics = results.by_regime(Sum), results.plan.metrics.values()
        several = any(len(of) > 1 for of in sums.values())
        if several:
            yield _chart_of_sizes(sums, metrics)
        if sums:
            yield _chart_of_wholes(whole_sums(results), metrics, "addition-all" if several else "addition")


@checked
def addition(
    evaluator: Evaluator,
    points: Points,
    tasks: Sequence[str],
    single: Mapping[str, Values],
    grid: Grid | None = None,
    fixed: Mapping[str, float] | None = None,
    each: bool = False,
) -> dict[str, object]:
    """Add the vectors of ``tasks`` with one shared coefficient and measure the sum on each of them.

        theta = theta_0 + alpha * sum_t tau_t,   alpha = argmax of the mean normalized validation accuracy

    Args:
        points: vectors under the names of the tasks.
        single: from :func:`single_task`, same regime.
        fixed: further coefficients to report without search, by label (such as ``{"1": 1.0}``).
        each: also search a coefficient for every task, and leave out one task after another. Some hundred
            points, so for tangent space, where a point is nearly free.

    Returns: the record: coefficient and search, test scores by task, ``absolute`` and ``normalized``.
    Raises: InputError for fewer than two tasks, or a task twice.
    Source: Ilharco et al. 2022 (arXiv:2212.04089), section 4.
    """
    if len(set(tasks)) != len(tasks) or len(tasks) < 2:
        raise InputError(f"addition needs two or more distinct tasks, not {list(tasks)}")

    def shared(alpha: float) -> Point:
        # With a coefficient each to come, the vectors by themselves are needed, and their sum is not.
        return points.at(dict.fromkeys(tasks, alpha)) if each else points.shared(tasks, alpha)

    search = search_addition(
        lambda alpha: evaluator.values(shared(alpha), tasks, "validation"), single["validation"], grid
    )
    scores, hits = scores_and_hits(evaluator, shared(search.coefficient), tasks)
    values = {task: score.utility for task, score in scores.items()}
    best = dict.fromkeys(tasks, search.coefficient)
    return {
        "tasks": list(tasks),
        **search.record(),
        "test": {task: score.record() for task, score in scores.items()},
        **measured(values, single["test"], hits),
        "fixed": {
            label: {"coefficient": alpha, **measure_point(evaluator, shared(alpha), tasks, single["test"])}
            for label, alpha in (fixed or {}).items()
        },
        **({"each": _each(evaluator, points, best, single, grid)} if each else {}),
        **({"without": _without(evaluator, points, best, single)} if each else {}),
    }


def _each(
    evaluator: Evaluator,
    points: Points,
    shared: Mapping[str, float],
    single: Mapping[str, Values],
    grid: Grid | None,
) -> dict[str, object]:
    """The best coefficient of every task, searched from the shared one, and what it gives on test."""
    search = search_each(
        lambda at: evaluator.values(points.at(at), shared, "validation"), single["validation"], shared, grid
    )
    return {
        **search.record(),
        **measure_point(evaluator, points.at(search.coefficients), shared, single["test"]),
    }


def _without(
    evaluator: Evaluator, points: Points, shared: Mapping[str, float], single: Mapping[str, Values]
) -> dict[str, object]:
    """Test figures of the sum with one task's vector left out, by that task."""
    left = {task: {other: a for other, a in shared.items() if other != task} for task in shared}
    return {
        task: measured(evaluator.values(points.at(others), shared, "test"), single["test"])
        for task, others in left.items()
    }


def subsets(tasks: Sequence[str], which: str) -> Iterator[tuple[str, ...]]:
    """The subsets an experiment adds: ``"all"`` of two or more, ``"pairs"`` and the whole, or ``"whole"``.

    Raises: InputError for another word.
    """
    sizes = {
        "all": range(2, len(tasks) + 1),
        "pairs": sorted({2, len(tasks)}),
        "whole": [len(tasks)],
    }
    if which not in sizes:
        raise InputError(f"subsets: {which!r} is not one of {', '.join(sizes)}")
    for size in sizes[which]:
        yield from combinations(tasks, size)


def _add(trial: Trial, tasks: Sequence[str], fixed: Values, each: bool) -> Plain:
    single = own_models(trial).values
    return addition(trial.evaluator, trial.points, tasks, single, trial.experiment.search, fixed, each)


def sum_of_all(trial: Trial) -> Sum:
    """The sum of all tasks, at the coefficient that addition chose on validation data."""
    study = Addition(trial.experiment.addition)  # type: ignore[attr-defined]
    *_, whole = study.cells(trial)
    found = trial.result(whole)
    assert isinstance(found, Sum)
    return found


def entries_of_sums(
    experiment: Experiment, regime: str, sums: Mapping[int, Sum], ones: Mapping[int, Measured]
) -> Iterator[Entry]:
    """Sums of all tasks at their best coefficient, and at 1."""
    labels = consumed_with(experiment, regime, "validation labels")
    chosen = {seed: of.coefficient for seed, of in sums.items()}
    if sums:
        yield Entry(ADDITION, regime, sums, labels, "searched", chosen)
    if ones:
        free = consumed_with(experiment, regime)
        yield Entry(ADDITION, regime, ones, free, "default", dict.fromkeys(ones, 1.0))


def wholes_by_seed(results: Results) -> Iterator[tuple[str, dict[int, Sum]]]:
    """The sums of all tasks of each regime, of the seeds that have one."""
    whole = len(results.plan.tasks)
    for regime, cells in results.by_seed(Sum):
        yield (
            regime,
            {seed: of for cell in cells for seed, of in cell.items() if len(of.tasks) == whole},
        )


def whole_sums(results: Results) -> dict[str, list[Sum]]:
    """The sums of all tasks, one a seed: the last of each regime's."""
    return {regime: sums[-1] for regime, sums in results.by_regime(Sum).items()}


def _table_of_wholes(results: Results) -> Table:
    tasks, metrics = results.plan.tasks, results.plan.metrics
    sums, joint = results.by_regime(Sum), results.by_regime(Joined)
    wholes, rows = whole_sums(results), []
    for regime, of in wholes.items():
        pairs = zip(*(seeds for seeds in sums[regime] if len(seeds[0].tasks) == 2), strict=True)
        row = [
            regime,
            coefficients(of),
            both(of, metrics),
            both([whole.fixed["1"] for whole in of], metrics),
            both([whole.fixed["1/T"] for whole in of], metrics),
            percent([fmean(edit.normalized for edit in of_seed) for of_seed in pairs]),
        ]
        rows.append([*row, *([both(joint[regime][0], metrics) if regime in joint else ""] if joint else [])])
    columns = ["", "best α", "at best α", "α = 1", "α = 1/T", "pairs, normalized"]
    reciprocals = reciprocal_note(metrics.values())
    note = (
        "Absolute / normalized, per cent: mean over tasks of the metric / of its ratio to the single-task "
        f"model of the same regime.{reciprocals} α is chosen on validation data: "
        f"{search_note(wholes)}."
    )
    more = ["joint training"] if joint else []
    compared = greatest_is_best(metrics.values(), *range(2, len(columns + more)))
    return Table(f"Addition of all {len(tasks)} tasks", [*columns, *more], rows, note, compared=compared)


def _table_of_pretraining(results: Results, untrained: Results) -> Table:
    """The counter-example: the same model, tasks and recipe without pre-training."""
    tasks, [regime] = results.plan.tasks, untrained.plan.experiment.regimes
    rows, edits = [], {}
    for name, models in {"pre-trained": results, "random": untrained}.items():
        zero = fmean(baselines(models)[task].test.utility for task in tasks)
        [seeds] = models.by_regime(OwnModels)[regime]
        single = [fmean(own.test[task] for task in tasks) for own in seeds]
        edits[name] = wholes = whole_sums(models)[regime]
        cells = (percent([zero]), percent(single), coefficients(wholes), both(wholes, results.plan.metrics))
        rows.append((f"{name}, {regime}", *cells))
    columns = ("", "zero-shot", "single tasks", "α", f"all {len(tasks)} added")
    note = (
        "Means over tasks; added: absolute / normalized, per cent. Without pre-training the normalized "
        f"figure is chance over chance: read the absolute one. {search_note(edits)}."
    )
    return Table("What pre-training is for", columns, rows, note)


def _table_of_subsets(sums: Mapping[str, Sequence[Sequence[Sum]]], metrics: Mapping[str, str]) -> Table:
    """Of regimes that added the same subsets."""
    rows = []
    for of_regimes in zip(*sums.values(), strict=True):
        cells = [cell for edits in of_regimes for cell in (coefficients(edits), both(edits, metrics))]
        rows.append((" + ".join(of_regimes[0][0].tasks), *cells))
    columns = [column for regime in sums for column in (f"{regime}: α", f"{regime}: absolute / normalized")]
    searches = [edit for of_regime in sums.values() for edits in of_regime for edit in edits]
    note = f"Measured on the added tasks. {tally_note(searches)}."
    return Table("Addition, every subset", ("tasks added", *columns), rows, note, closed=len(rows) > 12)


def _chart_of_sizes(sums: Mapping[str, Sequence[Sequence[Sum]]], metrics: Iterable[str]) -> Lines:
    sizes = sorted({len(edits[0].tasks) for of in sums.values() for edits in of})
    plots = [
        Plot(
            measure,
            Axis("tasks added", ticks=sizes),
            unit.axis(measure),
            [Curve(regime, _by_size(of, measure, unit), spread=False) for regime, of in sums.items()],
        )
        for measure, unit in measures(metrics).items()
    ]
    return Lines("addition", "Adding more tasks: each dot is a subset, the line their mean.", plots)


def _by_size(subsets_added: Sequence[Sequence[Sum]], measure: str, unit: Unit) -> list[Dot]:
    by_size: dict[int, list[float]] = {}
    for edit in chain(*subsets_added):
        by_size.setdefault(len(edit.tasks), []).append(getattr(edit, measure))
    return [Dot(size, unit.of(values), f"{size} tasks") for size, values in by_size.items()]


def _chart_of_wholes(wholes: Mapping[str, Sequence[Sum]], metrics: Iterable[str], name: str) -> Dots:
    """The sum of all tasks at its coefficients, by regime."""
    first = next(iter(wholes.values()))
    parts = []
    for measure, unit in measures(metrics).items():
        rows = [
            Row(
                regime,
                {
                    name: unit.of([getattr(edit, measure) for edit in edits])
                    for name, edits in _at_coefficients(of).items()
                },
            )
            for regime, of in wholes.items()
        ]
        parts.append(Rows(measure, unit.axis(measure), {"": rows}))
    caption = f"All {len(first[0].tasks)} tasks in one sum, by its coefficient. {of_seeds(len(first))}"
    return Dots(name, caption, parts, filed=name == "addition")


def _at_coefficients(of: Sequence[Sum]) -> dict[str, Sequence[Measured]]:
    each = [whole.each for whole in of if whole.each]
    return {
        "best α": of,
        "α = 1": [whole.fixed["1"] for whole in of],
        "α = 1/T": [whole.fixed["1/T"] for whole in of],
        **({"an α each": each} if each else {}),
    }
