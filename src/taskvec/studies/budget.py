"""What the same training steps give: apart and merged, together, in rounds, and in rounds after the fact."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.evaluation.refining import refine
from taskvec.evaluation.search import Grid, search_scale
from taskvec.reports.charts.lines import Curve, Dot, Level, Lines, Plot
from taskvec.reports.numbers import NOTHING, Range, Several
from taskvec.reports.tables import Table
from taskvec.rules import RULES
from taskvec.studies.atm import (
    AtmSettings,
    Round,
    cell_of,
    charts_of_rounds,
    check_block,
    entries_of_rounds,
    is_about,
    megabytes,
    rounds_axis,
    rounds_in_words,
    said,
    sent_once,
)
from taskvec.studies.charting import Unit, of_seeds, unit_of
from taskvec.studies.entry import ADDITION, JOINT, MEAN, Entry, consumed_with
from taskvec.studies.experiment import Experiment
from taskvec.studies.measured import (
    Edit,
    Measured,
    both,
    coefficients,
    measure_point,
    measured,
    reciprocal_note,
    search_inputs,
)
from taskvec.studies.record import Plain, Record
from taskvec.studies.single import own_models
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.suite import Suite
from taskvec.training.atm import check_aggregator
from taskvec.training.penalties.settings import foreign
from taskvec.training.stream import portion, total_steps
from taskvec.vectors import TaskVector, combine
from taskvec.vectors.combining import bind_all


class PostHoc(Config):
    """Rounds after the fact, on validation labels, and joint tuning on the same labels beside them."""

    rounds: PositiveInt = 4
    """At most; how many are taken is chosen on a fifth of the validation split that is kept apart."""
    steps: PositiveInt | None = None
    """Of each task in all rounds, taken off what its own vector is trained for; by default a fifth of what
    the task with the fewest has, and one a round at least."""
    scales: tuple[PositiveFloat, ...] = (1.0,)
    """Of each round; one is chosen as the number of rounds is."""
    lr: PositiveFloat | None = None
    """By default that of the regime."""


class BudgetSettings(AtmSettings):
    """Compare at equal training steps: tasks apart and merged, joint training, and rounds of ATM."""

    rules: tuple[str, ...] = ("ties",)
    """Rules beside mean and addition, each at its own coefficient and at one searched on validation data."""
    post_hoc: PostHoc | None = Field(default_factory=PostHoc)
    """Rounds on validation labels after the fact; null for none."""


_SEARCHED = " Learning rates were found on validation labels before; the steps of that are not counted."

Kind = Literal["apart", "merged", "rounds", "together", "after"]


class Budgeted(Record):
    """What some training steps gave, on test data."""

    cell = "budget"
    name: str
    kind: Kind
    steps: int
    """Of all tasks."""
    labels: int = 0
    """Of the validation split: those of the second column, and of both after the fact."""
    bytes: int | None = None
    plain: Measured
    before: Measured | None = None
    """What was tuned after the fact."""
    tuned: Edit | None = None
    seconds: float = 0.0
    """Of ATM's training."""
    rounds: int = 0
    """Of ATM; after the fact, those that were chosen."""
    history: list[Round] = Field(default_factory=list)


class Budget(Study[BudgetSettings]):
    """A table and a figure of all of them; what ATM's own study has is not trained again."""

    title = "Equal training steps"
    settings = BudgetSettings

    def check(self, experiment: Experiment, suite: Suite) -> None:
        check_block("budget", self.block, experiment, suite)
        if experiment.vectors:
            raise InputError(
                "budget: compares trainings of equal steps, and the file gives vectors; leave one of them out"
            )
        if len(experiment.task_names(suite)) < 2:
            raise InputError("budget: needs two or more tasks")
        _check_equal(experiment)
        for rule in self.block.rules:
            try:
                check_aggregator(rule, {})
            except InputError as error:
                raise type(error)(f"budget.rules: {error}") from None

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        block, search = self.block, search_inputs(trial.experiment.search)
        if not is_about(block, trial.experiment, trial.regime):
            return
        yield trial.cell(Budgeted, _score_apart, trial.tasks, method="apart")
        for rule in ("mean", *block.rules):
            yield trial.cell(Budgeted, partial(_merge, rule=rule), trial.tasks, method=rule, **search)
        alone = foreign(trial.settings.penalty)  # all tasks together leave no others to read
        if not alone:
            yield trial.cell(Budgeted, _train_together, trial.tasks, method="together")
        for rounds in block.rounds:
            if rounds > 1:  # one is the mean
                job = partial(_alternate, block=block, rounds=rounds)
                yield trial.cell(Budgeted, job, trial.tasks, rounds=rounds, **block.options(), **search)
        if after := block.post_hoc:
            chosen = {"after": after.model_dump(), **block.options(), **search}
            for jointly in (False,) if alone else (False, True):
                job = partial(_refine, block=block, after=after, jointly=jointly)
                yield trial.cell(Budgeted, job, trial.tasks, jointly=jointly, **chosen)

    def entries(self, results: Results) -> Iterator[Entry]:
        for regime, cells in results.by_seed(Budgeted):
            for found in cells:
                yield from _entries(results, regime, found)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        found = results.stored(Budgeted, regime, seed)
        return {"budget": list(map(said, found))} if found else {}

    def tables(self, results: Results) -> Iterator[Table]:
        several = len(results.plan.experiment.regimes) > 1
        for regime, rows in results.by_regime(Budgeted).items():
            auto = results.plan.experiment.settings(regime, results.plan.experiment.seeds[0]).lr == "auto"
            yield _table(
                rows, results.plan.metrics, f", {regime}" if several else "", _SEARCHED if auto else ""
            )

    def charts(self, results: Results) -> Iterator[Lines]:
        found, unit = results.by_regime(Budgeted), unit_of(results.plan.metrics.values()) or Unit()
        for number, (regime, rows) in enumerate(found.items()):
            yield _chart(f"budget-{number}" if number else "budget", regime, rows, unit)
        rounds = {regime: [row for row in rows if row[0].kind == "rounds"] for regime, rows in found.items()}
        yield from charts_of_rounds("budget-rounds", rounds)


def _entries(results: Results, regime: str, found: Mapping[int, Budgeted]) -> Iterator[Entry]:
    """Of what is a model for all tasks; where another study has it, under the name that it has there."""
    first = next(iter(found.values()))
    plain = {seed: of.plain for seed, of in found.items()}
    free = consumed_with(results.plan.experiment, regime)
    match first.kind:
        case "rounds":
            yield from entries_of_rounds(results, regime, found)
        case "together":
            yield Entry(JOINT, regime, plain, ("training",))
        case "after":
            yield Entry(first.name, regime, plain, ("validation labels", "training"))
        case "merged":
            is_mean = first.name.startswith(MEAN)  # whose multiples are those of the sum
            name, sums = (MEAN, ADDITION) if is_mean else (first.name, first.name)
            unit = len(results.plan.tasks) if is_mean else 1
            tuned = {seed: of.tuned for seed, of in found.items() if of.tuned}
            usual = 1.0 if name == MEAN or name not in RULES else RULES[name].coefficient
            labels = consumed_with(results.plan.experiment, regime, "validation labels")
            factors = {seed: of.coefficient / unit for seed, of in tuned.items()}
            yield Entry(name, regime, plain, free, "default", dict.fromkeys(plain, usual))
            if tuned:
                yield Entry(sums, regime, tuned, labels, "searched", factors)


def _check_equal(experiment: Experiment) -> None:
    """Refuse tasks of unequal length: what trains all tasks knows one length alone."""
    for task, given in experiment.per_task.items():
        for key in ("steps", "epochs", "batch_size"):
            if key in given:
                raise InputError(
                    f"budget: compares trainings of equal steps, and per_task.{task} has {key} of its own; "
                    "leave one of them out"
                )


def _steps(trial: Trial) -> dict[str, int]:
    """Training steps of each task."""
    return {
        task: total_steps(
            [len(trial.evaluator.part(task).split)], trial.experiment.settings(trial.regime, trial.seed, task)
        )
        for task in trial.tasks
    }


def _steps_in(trial: Trial, tasks: Sequence[Sequence[str]]) -> int:
    """Training steps of the tasks that took part, round by round."""
    whole = _steps(trial)
    return sum(
        len(portion(whole[task], len(tasks), turn)) for turn, drawn in enumerate(tasks) for task in drawn
    )


def _labels(trial: Trial) -> int:
    """Validation examples of all tasks."""
    return sum(len(trial.evaluator.split(task, "validation")) for task in trial.tasks)


def _score_apart(trial: Trial) -> Plain:
    own = own_models(trial)
    return {
        "name": "a model for each task",
        "kind": "apart",
        "steps": sum(_steps(trial).values()),
        "plain": measured(own.test, own.test, own.hits),
    }


def _merge(trial: Trial, rule: str) -> Plain:
    vectors = bind_all(list(trial.vectors.values()), trial.evaluator.backbone.source)
    usual = 1.0 if rule == "mean" else RULES[rule].coefficient
    grid = trial.experiment.search.scaled(len(vectors)) if rule == "mean" else trial.experiment.search
    return {
        "name": "mean; addition" if rule == "mean" else rule,
        "kind": "merged",
        "steps": sum(_steps(trial).values()),
        "labels": _labels(trial),
        "bytes": sent_once(trial.vectors, trial.trains.lora),
        **_measured(trial, combine(rule, vectors), usual, grid),
    }


def _measured(trial: Trial, vector: TaskVector, usual: float, grid: Grid) -> dict[str, object]:
    """A vector at a coefficient, and at the one that is best on validation data."""
    single, points = own_models(trial), trial.points_of({"": vector})

    search = search_scale(
        lambda at: trial.evaluator.values(points.at({"": at}), trial.tasks, "validation"),
        single.validation,
        grid,
    )
    plain, tuned = (
        measure_point(trial.evaluator, points.at({"": at}), trial.tasks, single.test)
        for at in (usual, search.coefficient)
    )
    return {"plain": plain, "tuned": {**tuned, **search.record()}}


def _train_together(trial: Trial) -> Plain:
    point = trial.points_of({"": trial.joint_vector()}).at({"": 1.0})
    return {
        "name": "joint training",
        "kind": "together",
        "steps": sum(_steps(trial).values()),
        "plain": measure_point(trial.evaluator, point, trial.tasks, own_models(trial).test),
    }


def _alternate(trial: Trial, block: BudgetSettings, rounds: int) -> Plain:
    stored = trial.stored(cell_of(trial, block, rounds))
    history: Any = stored["history"]
    return {
        "name": f"ATM, {rounds_in_words(rounds)}",
        "kind": "rounds",
        "steps": _steps_in(trial, [of["tasks"] for of in history]),
        "labels": _labels(trial),
        "bytes": sum(of["bytes"] for of in history),
        **stored,
    }


def _refine(trial: Trial, block: BudgetSettings, after: PostHoc, jointly: bool) -> Plain:
    """From the best sum of vectors that were trained for fewer steps, so that all steps are as many."""
    whole, single = _steps(trial), own_models(trial)
    spent = _spent(after, whole)
    vectors = {task: trial.vector(task, steps=steps - spent) for task, steps in whole.items()}
    total = combine("sum", list(vectors.values()))
    points = trial.points_of({"": total})
    search = search_scale(
        lambda at: trial.evaluator.values(points.at({"": at}), trial.tasks, "validation"),
        single.validation,
        trial.experiment.search,
    )
    changed: dict[str, Any] = {"steps": spent, **({"lr": after.lr} if after.lr else {})}
    refined = refine(
        trial.evaluator,
        bind_all([search.coefficient * total], trial.evaluator.backbone.source)[0],
        trial.tasks,
        rounds=after.rounds,
        regime=trial.trains,
        settings=trial.settings.model_copy(update=changed),
        rule=block.rule,
        scales=after.scales,
        single=single.validation,
        jointly=jointly,
        watch=trial.lab.watch,
        **block.params,
    )
    point = trial.points_of({"": refined.vector}).at({"": 1.0})
    return {
        "name": f"addition, then {'joint tuning' if jointly else rounds_in_words(after.rounds)}",
        "kind": "after",
        "steps": sum(whole.values()),
        "labels": refined.labels,
        "kept": refined.kept,
        "bytes": None if jointly else sent_once(vectors, trial.trains.lora) + refined.bytes,
        "rounds": refined.rounds,
        "scale": refined.scale,
        "trace": refined.trace,
        "before": measure_point(
            trial.evaluator, points.at({"": search.coefficient}), trial.tasks, single.test
        ),
        "plain": measure_point(trial.evaluator, point, trial.tasks, single.test),
    }


def _spent(after: PostHoc, whole: Mapping[str, int]) -> int:
    """Steps of each task after the fact, as many for all. Raises: InputError for more than a task has."""
    task = min(whole, key=lambda task: whole[task])
    spent = after.steps or max(after.rounds, whole[task] // 5)
    if spent >= whole[task]:
        raise InputError(
            f"budget.post_hoc.steps: {spent}, expected fewer than the {whole[task]} of {task!r}, which they "
            "are taken off"
        )
    return spent


def _table(rows: Sequence[Sequence[Budgeted]], metrics: Mapping[str, str], about: str, more: str) -> Table:
    heads = {
        "apart": "a model for each task",
        "merged": "trained apart, merged once",
        "rounds": "trained apart, merged in every round",
        "together": "trained together",
        "after": "merged once, tuned on validation labels",
    }
    groups = {head: [_row(of, metrics) for of in rows if of[0].kind == kind] for kind, head in heads.items()}
    chosen = [
        f"{of[0].name}: {Range([seed.rounds for seed in of], 'd', by=' to ')} taken"
        for of in rows
        if of[0].kind == "after"
    ]
    note = (
        f"Absolute / normalized, per cent.{reciprocal_note(metrics.values())} Steps are those of all tasks. "
        "Labels are validation examples, read for the best coefficient or, after the fact, to tune and to "
        "choose when to stop: a fifth is kept apart for that. Sent: vectors, both ways, where examples stay "
        f"with their tasks. {'; '.join(chosen)}{'.' if chosen else ''}{more}"
    )
    columns = ("", "steps", "sent, MB", "as it is", "labels", "best coefficient", "at best coefficient")
    shown = {head: group for head, group in groups.items() if group}
    return Table.grouped(f"Equal training steps{about}", columns, shown, note)


def _row(of: Sequence[Budgeted], metrics: Mapping[str, str]) -> tuple[object, ...]:
    first, tuned = of[0], [row.tuned for row in of if row.tuned]
    at_best = (coefficients(tuned), both(tuned, metrics)) if tuned else (NOTHING, NOTHING)
    shown: object = both([row.plain for row in of], metrics)
    if before := [row.before for row in of if row.before]:
        shown = Several([both(before, metrics), shown], by=" → ")
    about = (first.name, first.steps, megabytes(first.bytes), shown)
    return (*about, first.labels or NOTHING, *at_best)


def _chart(name: str, regime: str, rows: Sequence[Sequence[Budgeted]], unit: Unit) -> Lines:
    in_rounds = [of for of in rows if of[0].kind == "rounds" or of[0].name.startswith("mean")]
    curves = []
    for label, field in (("ATM", "plain"), ("ATM, best coefficient", "tuned")):
        points = []
        for of in in_rounds:
            if edits := [edit for row in of if (edit := getattr(row, field))]:
                points.append(Dot(max(1, of[0].rounds), unit.of([edit.absolute for edit in edits])))
        curves.append(Curve(label, points))
    levels = [
        Level(of[0].name, unit.of([fmean((row.tuned or row.plain).absolute for row in of)])[0])
        for of in rows
        if of not in in_rounds
    ]
    x = rounds_axis("rounds (1: the mean, or addition)", [max(1, of[0].rounds) for of in in_rounds] or [1])
    caption = (
        f"Equal training steps, {regime}: mean test metric; lines are methods without rounds. "
        f"{of_seeds(len(rows[0]))}"
    )
    return Lines(name, caption, [Plot("", x, unit.axis("mean test metric"), curves, levels)])
