"""Methods side by side: every way to merge the tasks' vectors, what it gives, and what it consumed."""

from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from taskvec.arguments import checked
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.search import Grid, search_scale
from taskvec.memory import Peak
from taskvec.merging import every_method, method_of
from taskvec.merging.baselines import Single, ZeroShot
from taskvec.merging.method import Bench, Consumed, Method, Model, in_order
from taskvec.merging.rules import GivenMethod, RuleMethod
from taskvec.progress import Watch, unwatched
from taskvec.reports.drawing import Drawing
from taskvec.reports.numbers import NOTHING, Mean, Range
from taskvec.reports.tables import Table
from taskvec.studies.addition import subsets
from taskvec.studies.experiment import Experiment
from taskvec.studies.measured import (
    Measured,
    Searched,
    both,
    in_unit,
    mean_in_unit,
    measured,
    reciprocal_note,
    search_inputs,
    search_note,
    titled,
    unit_note,
)
from taskvec.studies.numerics.paired import Difference, paired_difference
from taskvec.studies.record import Plain, Record
from taskvec.studies.single import own_models
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.kinds.classification import Classifying
from taskvec.tasks.objective import Tally
from taskvec.tasks.source import SplitName
from taskvec.tasks.suite import Suite
from taskvec.training.regimes import Space
from taskvec.vectors import TaskVector

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Entries = Literal["all"] | tuple[str | dict[str, Any], ...]
Coefficient = Literal["default", "searched", "both"]
Values = Mapping[str, float]


class MethodsSettings(Config):
    """Compare methods of merging: rules, learned coefficients, models that need the task's name."""

    rules: Entries = "all"
    """Names of rules (``taskvec rules``), chains and other methods, or ``{rule: NAME}`` with its settings;
    ``all`` of them. Zero-shot, single models, mean, sum and joint training always stand beside them."""
    coefficient: Coefficient = "both"
    """The scaling coefficient: the ``default`` of the method's source, ``searched`` on validation data, or
    a row for each."""
    subsets: Literal["all", "pairs", "whole"] = "whole"
    """Subsets of the tasks whose vectors are merged, as for ``addition``."""
    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment."""
    split: SplitName = "validation"
    """Where methods take the inputs and labels from that they read while they are made."""
    allow_test_inputs: bool = False
    """Let them read inputs of the test split; their rows say so. Labels of it are never read."""

    def methods(self) -> list[Method]:
        """Those that are listed, each once. Raises: InputError, UnknownName."""
        if self.rules == "all":
            return list(every_method())
        return [method for entry in self.rules for method in _methods_of(entry)]


def _methods_of(entry: object) -> Iterator[Method]:
    yield from every_method() if entry == "all" else [method_of(entry)]


class Outcome(Measured):
    """What a method gives at one scaling coefficient, on test data."""

    how: Literal["default", "searched", "none"]
    coefficient: float | None
    consumed: list[Consumed]
    search: Searched | None = None
    hits: dict[str, str] = Field(default_factory=dict)
    """By task, of classifications scored by accuracy: how many examples, and whether each is right, a bit
    each."""

    def right(self, task: str) -> NDArray[np.float64]:
        """Of each example of a task (n,): 1 if it is right, else 0."""
        count, _, bits = self.hits[task].partition(":")
        packed = np.frombuffer(b64decode(bits), np.uint8)
        return np.unpackbits(packed, count=int(count)).astype(np.float64)


class Compared(Record):
    """What a method made of some tasks' vectors."""

    cell = "method"
    name: str
    tasks: list[str]
    left_out: str | None = None
    """Why it could not be made of them."""
    outcomes: list[Outcome] = Field(default_factory=list)
    seconds: float | None = None
    """That making it took; measuring it is not counted."""
    peak_bytes: int | None = None
    coefficients: int = 0
    """Numbers that were learned on data, beside the scaling coefficient."""
    facts: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A row of a table: a method at a coefficient found in one way, an outcome a seed."""

    name: str
    of: Sequence[Compared]
    outcomes: Sequence[Outcome]

    @property
    def consumed(self) -> list[Consumed]:
        return self.outcomes[0].consumed

    @property
    def group(self) -> tuple[list[int], float]:
        """Where it stands: by the most that it consumed, then by what it gives."""
        order = get_args(Consumed)
        consumed = sorted((order.index(each) for each in self.consumed), reverse=True)
        return consumed, -sum(outcome.absolute for outcome in self.outcomes)


class Methods(Study[MethodsSettings]):
    """A table of methods for each regime; see ``merging/method.py`` for what a method is."""

    settings = MethodsSettings

    def check(self, experiment: Experiment, suite: Suite) -> None:
        experiment.check_regimes("methods", self.block.regimes)
        if len(experiment.task_names(suite)) < 2:
            raise InputError("methods: needs two or more tasks")
        try:
            methods = self.block.methods()
        except InputError as error:
            raise type(error)(f"methods: {error}") from None
        check_split("methods", methods, self.block.split, self.block.allow_test_inputs)

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        if trial.regime not in (self.block.regimes or trial.experiment.regimes):
            return
        for tasks in subsets(trial.tasks, self.block.subsets):
            whole = len(tasks) == len(trial.tasks)
            for method in distinct([*_baselines(), *self.block.methods()]):
                yield self._cell(trial, tasks, method)
            if whole:
                job = partial(_compare_joint, tasks=tasks)
                yield trial.cell(Compared, job, tasks, method={"joint": True})

    def _cell(self, trial: Trial, tasks: Sequence[str], method: Method) -> Cell[Compared]:
        block = self.block
        job = partial(_compare, tasks=tasks, method=method, coefficient=block.coefficient, split=block.split)
        decisive: dict[str, object] = {"method": {method.family: method.settings()}}
        if method.consumes("train") != method.consumes("validation"):
            decisive["split"] = block.split
        if method.coefficient is not None:
            decisive |= {"coefficient": block.coefficient, **search_inputs(trial.experiment.search)}
        return trial.cell(Compared, job, tasks, **decisive)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        compared = results.stored(Compared, regime, seed)
        return {"methods": compared} if compared else {}

    def tables(self, results: Results) -> Iterator[Table]:
        for regime, compared in results.by_regime(Compared).items():
            whole = [of for of in compared if of[0].tasks == results.plan.tasks]
            rows = rows_of(whole)
            of_regime = f", {regime}" if len(results.plan.experiment.regimes) > 1 else ""
            yield _table_of_methods(results, rows, whole, of_regime)
            yield _table_by_task(results, rows, of_regime)
            yield from _table_of_coefficients(results, rows, of_regime)
            yield from _table_of_subsets(results, compared, of_regime)

    def drawings(self, results: Results) -> Iterator[Drawing]:
        for regime, compared in results.by_regime(Compared).items():
            rows = rows_of([of for of in compared if of[0].tasks == results.plan.tasks])
            name = "methods" if len(results.plan.experiment.regimes) == 1 else f"methods-{regime}"
            caption = f"Methods side by side, {regime}: mean over tasks, by what each consumed."
            yield Drawing(name, caption, partial(_draw, rows))


@checked
def methods(
    evaluator: Evaluator,
    vectors: Mapping[str, TaskVector],
    rules: Literal["all"] | Sequence[str | Mapping[str, Any] | Method] = "all",
    *,
    single: Mapping[str, Values],
    space: Space = "ordinary",
    coefficient: Coefficient = "both",
    grid: Grid | None = None,
    split: SplitName = "validation",
    allow_test_inputs: bool = False,
    seed: int = 0,
    watch: Watch = unwatched,
) -> list[dict[str, object]]:
    """Make one model of the vectors by each method, and measure them side by side on test data.

    Args:
        vectors: by task, of one regime.
        rules: as in an experiment file, or methods themselves.
        single: from :func:`single_task`, same regime: what normalized figures are divided by.
        coefficient: the method's own, searched on validation data, or both.
        split: where methods take inputs and labels from that they read.
        allow_test_inputs: let them read test inputs, and say so; never labels.

    Returns: a record a method: ``name``, ``outcomes`` (``how`` the coefficient was found, ``consumed``,
        ``absolute``, ``normalized``, ``values`` by task), ``seconds``, ``peak_bytes``, ``coefficients``;
        baselines first. A method that cannot be made of these vectors says why in ``left_out``.
    Raises: InputError.
    """
    listed = ["all"] if rules == "all" else rules
    chosen = [
        method
        for entry in listed
        for method in ([entry] if isinstance(entry, Method) else _methods_of(entry))
    ]
    check_split("methods", chosen, split, allow_test_inputs)
    bench = Bench(evaluator, vectors, space, split, seed, watch=watch)
    return [
        dict(compare(bench, method, single, coefficient, grid))
        for method in distinct([*_baselines(), *chosen])
    ]


def check_split(where: str, methods: Sequence[Method], split: SplitName, allow_test_inputs: bool) -> None:
    """Refuse to learn from the test split, unless inputs alone are read and that is allowed.

    Raises: InputError.
    """
    if split != "test":
        return
    for method in methods:
        if "validation labels" in method.consumes("validation"):
            raise InputError(f"{where}: {method.name} reads labels, and never those of the test split")
        if method.consumes("test") and not allow_test_inputs:
            raise InputError(
                f"{where}: split: test, and {method.name} would read inputs that it is scored on; take "
                "validation, or allow_test_inputs: true, and its rows say so"
            )


def distinct(methods: Sequence[Method]) -> list[Method]:
    """Each once, the first of equal ones."""
    found: dict[str, Method] = {}
    for method in methods:
        found.setdefault(f"{method.family} {method.settings()}", method)
    return list(found.values())


def _baselines() -> list[Method]:
    return [ZeroShot(), Single(), RuleMethod("mean"), RuleMethod("sum")]


def compare(
    bench: Bench, method: Method, single: Mapping[str, Values], coefficient: Coefficient, grid: Grid | None
) -> Plain:
    """Make a model by a method and measure it; the record."""
    about = {"name": method.name, "tasks": bench.tasks}
    if reason := method.unfit(bench):
        return {**about, "left_out": reason}
    with Peak() as peak:
        begun = perf_counter()
        model = method.make(bench)
        seconds = perf_counter() - begun
    return {
        **about,
        "outcomes": list(_outcomes(bench, method, model, single, coefficient, grid)),
        "seconds": round(seconds, 3),
        "peak_bytes": peak.bytes,
        "coefficients": model.coefficients,
        "facts": dict(model.facts()),
    }


def _outcomes(
    bench: Bench,
    method: Method,
    model: Model,
    single: Mapping[str, Values],
    coefficient: Coefficient,
    grid: Grid | None,
) -> Iterator[Plain]:
    consumed = method.consumes(bench.split)
    if method.coefficient is None:
        yield {"how": "none", "coefficient": None, **_measure(bench, model, 1.0, single["test"], consumed)}
        return
    if coefficient != "searched":
        given = method.coefficient
        yield {
            "how": "default",
            "coefficient": given,
            **_measure(bench, model, given, single["test"], consumed),
        }
    if coefficient != "default":
        search = search_scale(
            lambda alpha: {task: model.value(task, "validation", alpha) for task in bench.tasks},
            single["validation"],
            grid,
        )
        found = search.coefficient
        outcome = _measure(bench, model, found, single["test"], (*consumed, "validation labels"))
        yield {"how": "searched", "coefficient": found, "search": search.record(), **outcome}


def _measure(
    bench: Bench, model: Model, alpha: float, single: Values, consumed: Sequence[Consumed]
) -> dict[str, object]:
    values, hits = {}, {}
    for task in bench.tasks:
        objective, metric = bench.evaluator.objective(task), bench.evaluator.task(task).metric
        if metric == "accuracy" and isinstance(objective, Classifying):
            tally = model.tally(task, "test", alpha)
            values[task], hits[task] = objective.value(tally), _hits(tally)
        else:
            values[task] = model.value(task, "test", alpha)
    return {"consumed": in_order(consumed), **measured(values, single), "hits": hits}


def _hits(tally: Tally) -> str:
    right = tally["logits"].argmax(1) == tally["labels"]
    return f"{len(right)}:{b64encode(np.packbits(right.numpy()).tobytes()).decode()}"


def _compare(
    trial: Trial, tasks: Sequence[str], method: Method, coefficient: Coefficient, split: SplitName
) -> Plain:
    vectors = {task: trial.vectors[task] for task in tasks}
    scratch = trial.lab.store.folder / "partial"
    bench = Bench(
        trial.evaluator, vectors, trial.space, split, trial.seed, scratch=scratch, watch=trial.lab.watch
    )
    single = own_models(trial).model_dump()
    return compare(bench, method, single, coefficient, trial.experiment.search)


def _compare_joint(trial: Trial, tasks: Sequence[str]) -> Plain:
    joint = GivenMethod("joint training", trial.vector(*tasks), ("training",), "joint")
    return _compare(trial, tasks, joint, "default", "validation")


def rows_of(compared: Sequence[Sequence[Compared]]) -> list[Row]:
    """The rows of a table, grouped by what was consumed, the best of a group first."""
    rows = [
        Row(of[0].name, of, outcomes)
        for of in compared
        for outcomes in zip(*(each.outcomes for each in of), strict=True)
    ]
    return sorted(rows, key=lambda row: row.group)


def difference(row: Row, other: Row) -> Difference | None:
    """How much better a row is than another on the same examples; none without examples that are right or
    wrong."""
    tasks = [task for task in row.outcomes[0].hits if task in other.outcomes[0].hits]
    if not tasks or len(tasks) < len(row.outcomes[0].values):
        return None
    pairs = list(zip(row.outcomes, other.outcomes, strict=True))
    return paired_difference(
        [np.stack([mine.right(task) - others.right(task) for mine, others in pairs]) for task in tasks]
    )


def _table_of_methods(
    results: Results, rows: Sequence[Row], compared: Sequence[Sequence[Compared]], of_regime: str
) -> Table:
    metrics = results.plan.metrics
    plain = {row.outcomes[0].how: row for row in rows if row.name == "sum"}
    body = [
        (
            row.name,
            _shown(row.consumed),
            _alpha(row),
            both(row.outcomes, metrics),
            _against(row, plain.get(row.outcomes[0].how) or plain.get("searched") or plain["default"]),
            Range([of.coefficients for of in row.of], "d"),
            Mean([of.seconds for of in row.of], ".2g", spread=False),
            Mean([_mebibytes(of.peak_bytes) for of in row.of], ".0f", spread=False),
        )
        for row in rows
    ]
    columns = ("method", "consumed", "α", "absolute / normalized", "− sum", "learned", "seconds", "MiB")
    searches = {
        f"{row.name}": [outcome.search for outcome in row.outcomes if outcome.search]
        for row in rows
        if row.outcomes[0].search
    }
    left = {of[0].name: of[0].left_out for of in compared if of[0].left_out}
    note = (
        "Per cent, mean over tasks; methods that consumed the same are ranked among themselves."
        f"{reciprocal_note(metrics.values())} − sum: points over plain addition on the same test examples "
        "(paired, 95 %; * p < 0.05), whose α was found in the same way. Learned: numbers fitted to data. "
        "Seconds and memory of making the model once, α and measuring not counted."
        + (f" α searched: {search_note(searches)}." if searches else "")
        + (f" Left out: {', '.join(f'{name} ({why})' for name, why in left.items())}." if left else "")
    )
    return Table(f"Methods side by side{of_regime}", columns, body, note)


def _shown(consumed: Sequence[Consumed]) -> str:
    return ", ".join(consumed) or "nothing"


def _alpha(row: Row) -> str:
    found = [outcome.coefficient for outcome in row.outcomes if outcome.coefficient is not None]
    if not found:
        return NOTHING
    return f"{Range(found)}{' searched' if row.outcomes[0].how == 'searched' else ''}"


def _against(row: Row, plain: Row) -> str:
    found = None if row is plain else difference(row, plain)
    if found is None:
        return NOTHING
    star = "*" if found.p < 0.05 else ""
    half = 100 * (found.interval[1] - found.interval[0]) / 2
    return f"{100 * found.mean:+.1f} ± {half:.1f}{star}".replace("-", "−")


def _mebibytes(size: int | None) -> float | None:
    return None if size is None else size / 2**20


def _table_by_task(results: Results, rows: Sequence[Row], of_regime: str) -> Table:
    metrics = results.plan.metrics
    body = [
        (
            f"{row.name}{' (α searched)' if row.outcomes[0].how == 'searched' else ''}",
            *(in_unit(metric, [of.values[task] for of in row.outcomes]) for task, metric in metrics.items()),
            mean_in_unit(metrics.values(), [outcome.absolute for outcome in row.outcomes]),
        )
        for row in rows
    ]
    heads = [titled(task, metric) for task, metric in metrics.items()]
    note = f"{unit_note(metrics.values())} on test; methods in the order of the table above."
    return Table(f"Methods by task{of_regime}", ("method", *heads, "mean"), body, note)


def _table_of_coefficients(results: Results, rows: Sequence[Row], of_regime: str) -> Iterator[Table]:
    tasks = results.plan.tasks
    learned = [row for row in rows if all("coefficients" in of.facts for of in row.of)]
    if learned:
        body = [
            (
                row.name,
                *(Mean([_mean_of(of.facts["coefficients"][task]) for of in row.of], ".2f") for task in tasks),
            )
            for row in learned
        ]
        note = "The coefficient of each task's vector; of methods with several, their mean."
        yield Table(f"Learned coefficients{of_regime}", ("method", *tasks), body, note)


def _mean_of(learned: float | Mapping[str, float]) -> float:
    return float(np.mean(list(learned.values()))) if isinstance(learned, Mapping) else learned


def _table_of_subsets(
    results: Results, compared: Sequence[Sequence[Compared]], of_regime: str
) -> Iterator[Table]:
    sizes = sorted({len(of[0].tasks) for of in compared})
    if len(sizes) < 2:
        return
    means: dict[str, dict[int, list[float]]] = {}
    for row in rows_of(compared):
        label = f"{row.name}{' (α searched)' if row.outcomes[0].how == 'searched' else ''}"
        by_size = means.setdefault(label, {})
        by_size.setdefault(len(row.of[0].tasks), []).extend(each.normalized for each in row.outcomes)
    body = [
        (label, *(Mean(by_size.get(size, [None]), scale=100, spread=False) for size in sizes))
        for label, by_size in means.items()
    ]
    note = "Normalized, per cent: mean over subsets of so many tasks, and over their tasks."
    yield Table(f"Methods by number of tasks{of_regime}", ("method", *map(str, sizes)), body, note)


def _draw(rows: Sequence[Row]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 1 + 0.22 * len(rows)), layout="constrained")
    ax = figure.subplots()
    groups = list(dict.fromkeys(_shown(row.consumed) for row in rows))
    for place, group in enumerate(groups):
        at = [(n, row) for n, row in enumerate(rows) if _shown(row.consumed) == group]
        means = [100 * float(np.mean([each.absolute for each in row.outcomes])) for _, row in at]
        spread = [100 * float(np.std([each.absolute for each in row.outcomes])) for _, row in at]
        ax.barh([n for n, _ in at], means, xerr=spread, color=f"C{place}", label=group, height=0.7)
    ax.set_yticks(range(len(rows)), [f"{row.name} {_alpha(row)}" for row in rows], fontsize="small")
    ax.invert_yaxis()
    ax.set_xlabel("absolute, %")
    ax.legend(frameon=False, fontsize="small", title="consumed")
    return figure
