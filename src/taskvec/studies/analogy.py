"""Task analogy: A is to B as C is to D, with D's own data never trained on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Literal

from taskvec.arguments import checked
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.points import Points
from taskvec.evaluation.search import Grid, Search, maximize
from taskvec.reports.charts.dots import Dots, Row, Rows
from taskvec.reports.tables import Table
from taskvec.studies.charting import Unit, of_seeds, unit_of
from taskvec.studies.experiment import Experiment
from taskvec.studies.measured import (
    Scored,
    Searched,
    in_unit,
    mean_in_unit,
    search_inputs,
    tally_note,
    unit_note,
)
from taskvec.studies.record import Plain, Record
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.score import utility
from taskvec.tasks.suite import Suite

Validation = Callable[[Mapping[str, float]], dict[str, float]]


class AnalogySettings(Config):
    """``a`` is to ``b`` as ``c`` is to ``target``: predict the fourth vector from three."""

    a: str
    b: str
    c: str
    target: str
    coefficients: Literal[1, 2] = 1
    """2 scales ``c`` and ``b - a`` separately."""
    reference: bool = True
    """Also train on the target itself, as the upper reference."""


class Model(Record):
    """One model on the target, and the searches that it comes from."""

    value: float
    """In the metric's own unit."""
    score: Scored
    searches: tuple[Searched, ...] = ()


class Solved(Record):
    """What one analogy gave: a row a model, in the order of ``_ROLES``."""

    cell = "analogy"
    a: str
    b: str
    c: str
    target: str
    rows: dict[str, Model]


_ROLES = ("zero-shot", "c", "b", "c + b", "c + (b − a)", "trained on it")
"""The rows of every analogy record, in order."""


class Analogies(Study[Sequence[AnalogySettings]]):
    """Every analogy by itself, in every regime."""

    settings = tuple[AnalogySettings, ...]
    default = ()

    def tasks(self, experiment: Experiment, suite: Suite) -> Iterator[str]:
        for terms in self.block:
            yield from (terms.a, terms.b, terms.c, terms.target)

    def compared(self, experiment: Experiment, suite: Suite) -> Iterator[str]:
        for terms in self.block:
            yield terms.target

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        for terms in self.block:
            inputs = {**search_inputs(trial.experiment.search), **terms.model_dump(mode="json")}
            tasks = sorted({terms.a, terms.b, terms.c, terms.target})
            yield trial.cell(Solved, partial(_solve, terms=terms), tasks, **inputs)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        analogies = results.stored(Solved, regime, seed)
        return {"analogies": analogies} if analogies else {}

    def tables(self, results: Results) -> Iterator[Table]:
        for regime, analogies in results.by_regime(Solved).items():
            # From the records: results may be taken over from an experiment on another suite.
            metrics = [next(iter(runs[0].rows.values())).score.metric for runs in analogies]
            yield _table(regime, analogies, metrics)

    def charts(self, results: Results) -> Iterator[Dots]:
        by_regime = results.by_regime(Solved)
        metrics = {
            next(iter(run.rows.values())).score.metric
            for analogies in by_regime.values()
            for runs in analogies
            for run in runs
        }
        unit = unit_of(metrics)
        if by_regime and unit:
            parts = [
                Rows(
                    regime,
                    unit.axis("fourth task, test metric"),
                    {"": [_dots(runs, unit) for runs in analogies]},
                )
                for regime, analogies in by_regime.items()
            ]
            caption = (
                "Analogies: the fourth task of each, by the model that is measured on it. "
                f"{of_seeds(len(results.plan.experiment.seeds))}"
            )
            yield Dots("analogies", caption, parts, filed=False)


@checked
def analogy(
    evaluator: Evaluator,
    points: Points,
    *,
    a: str,
    b: str,
    c: str,
    target: str,
    coefficients: int = 1,
    reference: str | None = None,
    grid: Grid | None = None,
) -> dict[str, object]:
    """Predict the fourth vector, ``tau_d = tau_c + (tau_b - tau_a)``, and measure it on the target task.

    Args:
        points: vectors by label; ``a``, ``b``, ``c`` (and ``reference``) are labels.
        target: the task D. Its validation labels choose coefficients, nothing is trained on it.
        coefficients: 1 scales each expression as a whole; 2 scales ``c`` and ``b - a`` separately, and
            likewise the two terms of the plain sum it is compared with.
        reference: label of the vector trained on D itself, the upper reference, if there is one.

    Returns: the record: one row a model (pre-trained, each known neighbour ``b`` and ``c`` alone, their plain
        sum, the analogy, the reference), all but the first and last with coefficients searched alike.
    Raises: InputError unless ``a``, ``b`` and ``c`` are three vectors.
    Source: Ilharco et al. 2022 (arXiv:2212.04089), section 5.
    """
    if len({a, b, c}) < 3:
        raise InputError(f"an analogy needs three different vectors, not a={a!r}, b={b!r}, c={c!r}")
    grid = grid or Grid()

    def validation(weights: Mapping[str, float]) -> dict[str, float]:
        return evaluator.values(points.at(weights), [target], "validation")

    def row(weights: Mapping[str, float], searches: Sequence[Search] = ()) -> dict[str, object]:
        score = evaluator.score(points.at(weights), target, "test")
        searched = {"searches": [search.record() for search in searches]} if searches else {}
        return {"coefficients": dict(weights), "value": score.value, "score": score.record(), **searched}

    def best(*groups: Mapping[str, float]) -> tuple[dict[str, float], list[Search]]:
        return _search(groups, coefficients, validation, target, grid)

    rows: dict[str, dict[str, object]] = {"pretrained": row({})}
    for label in (c, b):
        rows[label] = row(*best({label: 1.0}))
    rows[f"{c} + {b}"] = row(*best({c: 1.0}, {b: 1.0}))
    rows[f"{c} + ({b} - {a})"] = row(*best({c: 1.0}, {b: 1.0, a: -1.0}))
    if reference is not None:
        rows[f"{reference} (trained)"] = row({reference: 1.0})
    return {"a": a, "b": b, "c": c, "target": target, "rows": rows}


def _search(
    groups: Sequence[Mapping[str, float]], coefficients: int, validation: Validation, target: str, grid: Grid
) -> tuple[dict[str, float], list[Search]]:
    """One coefficient for all groups; if each has its own, two sweeps over them with the others held.

    A sweep moves a coefficient only to a strictly better place, so two are never worse than one on validation
    data; the best pair of the plane may be another. Returns the coefficients, and every search on the way.
    """
    whole = {label: weight for group in groups for label, weight in group.items()}

    def along(moved: Mapping[str, float], held: Mapping[str, float]) -> tuple[dict[str, float], Search]:
        def at(alpha: float) -> dict[str, float]:
            return {**held, **{label: alpha * weight for label, weight in moved.items()}}

        search = maximize(lambda values: values[target], lambda alpha: validation(at(alpha)), grid)
        return at(search.coefficient), search

    weights, search = along(whole, {})
    best, searches = search.values[target], [search]
    if coefficients == 2 and len(groups) == 2:
        for group in (*groups, *groups):
            moved, search = along(group, weights)
            searches.append(search)
            if search.values[target] > best:
                weights, best = moved, search.values[target]
    return weights, searches


def _solve(trial: Trial, terms: AnalogySettings) -> Plain:
    trained = {terms.a, terms.b, terms.c} | ({terms.target} if terms.reference else set())
    return analogy(
        trial.evaluator,
        trial.points_of({task: trial.vector(task) for task in sorted(trained)}),
        a=terms.a,
        b=terms.b,
        c=terms.c,
        target=terms.target,
        coefficients=terms.coefficients,
        reference=terms.target if terms.reference else None,
        grid=trial.experiment.search,
    )


def _dots(runs: Sequence[Solved], unit: Unit) -> Row:
    """An analogy: each model's value on the fourth task, over seeds."""
    values = [[utility(row.score.metric, row.value) for row in run.rows.values()] for run in runs]
    by_role = dict(zip(_ROLES, zip(*values, strict=True), strict=False))
    name = f"{runs[0].a} : {runs[0].b} :: {runs[0].c} : {runs[0].target}"
    return Row(name, {role: unit.of(of) for role, of in by_role.items()})


def _table(regime: str, analogies: Sequence[Sequence[Solved]], metrics: Sequence[str]) -> Table:
    """Of one regime: a row an analogy, each over seeds.

    Args:
        metrics: of each analogy's target.
    """
    values = [
        [[utility(metric, row.value) for row in run.rows.values()] for run in runs]
        for runs, metric in zip(analogies, metrics, strict=True)
    ]
    columns = range(min(len(of_seed) for runs in values for of_seed in runs))
    rows: list[tuple[object, ...]] = [
        (
            f"{runs[0].a} : {runs[0].b} :: {runs[0].c} : {runs[0].target}",
            *(in_unit(metric, [of_seed[place] for of_seed in of]) for place in columns),
        )
        for runs, of, metric in zip(analogies, values, metrics, strict=True)
    ]
    if len(rows) > 1:
        seeds = list(zip(*values, strict=True))
        means = (
            mean_in_unit(metrics, [fmean(of[place] for of in of_seed) for of_seed in seeds])
            for place in columns
        )
        rows.append(("mean", *means))
    searches = [
        search for runs in analogies for run in runs for row in run.rows.values() for search in row.searches
    ]
    note = (
        f"{unit_note(metrics)} on the test split of the fourth task. Every coefficient is chosen on its "
        f"validation rows; only the last column was trained on it. {tally_note(searches)}."
    )
    head = ("a : b :: c : target", *(_ROLES[place] for place in columns))
    return Table(f"Analogies, {regime}", head, rows, note)
