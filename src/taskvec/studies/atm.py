"""Alternating tuning and merging at equal budget: more rounds, each shorter."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Protocol

from pydantic import Field, PositiveFloat, PositiveInt

from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.evaluation.metrics import absolute, normalized
from taskvec.evaluation.search import Grid, maximize
from taskvec.merging.method import Consumed
from taskvec.registry import nearest
from taskvec.reports.charts.lines import Curve, Dot, Level, Lines, Plot
from taskvec.reports.charts.scales import Axis
from taskvec.reports.numbers import NOTHING, Mean
from taskvec.reports.tables import Table
from taskvec.rules import RULES
from taskvec.studies.charting import Unit, of_seeds, unit_of
from taskvec.studies.entry import Entry, consumed_with
from taskvec.studies.experiment import Experiment
from taskvec.studies.hits import without_hits
from taskvec.studies.joint import Joined
from taskvec.studies.measured import (
    Edit,
    Measured,
    both,
    coefficients,
    greatest_is_best,
    measure_point,
    reciprocal_note,
    search_inputs,
    search_note,
)
from taskvec.studies.record import Plain, Record
from taskvec.studies.single import own_models
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.suite import Suite
from taskvec.training.atm import atm, check_aggregator, check_options, participants
from taskvec.training.logs import Log
from taskvec.training.regimes import Lora
from taskvec.vectors import TaskVector, combine
from taskvec.vectors.combining import bind_all


class AtmSettings(Config):
    """Alternate tuning and merging at equal budget: more rounds, each shorter."""

    rounds: tuple[PositiveInt, ...] = Field(min_length=1)
    rule: str = "mean"
    scale: PositiveFloat = 1.0
    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment that train in ordinary space. One of tangent space keeps its tangent
    point."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Of the rule."""
    state: Literal["fresh", "kept"] = "fresh"
    """Of each task's optimizer, from round to round."""
    schedule: Literal["round", "budget"] = "round"
    """Whether warm-up, decay and the order of examples run anew in each round, or once over all."""
    participation: PositiveInt | PositiveFloat | None = None
    """Tasks a round, a number or a share below 1; all by default."""

    def options(self) -> dict[str, Any]:
        """What decides the rounds beside their number; younger settings only where they are not the usual."""
        young = {"params", "state", "schedule", "participation"}
        given = self.model_dump(include=young, exclude_defaults=True)
        return {"rule": self.rule, "scale": self.scale, **given}


class Round(Record):
    """What ATM says of a round; see :func:`taskvec.atm`."""

    round: int
    bytes: int
    norm: float
    cosine: float | None = None
    mean_of_losses: float | None = None
    loss_of_mean: float | None = None
    validation: float | None = None


class Alternated(Record):
    """ATM in some number of rounds: as it is, and with its whole displacement rescaled on validation data."""

    cell = "atm"
    rounds: int
    plain: Measured
    tuned: Edit
    history: list[Round] = Field(default_factory=list)
    """A record a round; none for a single one, and of runs from before there were any."""
    seconds: float = 0.0
    """Of all training steps; none of a single round, whose vectors are there."""


class InRounds(Protocol):
    """A record with a history."""

    @property
    def rounds(self) -> int: ...

    @property
    def history(self) -> list[Round]: ...


class Atm(Study[AtmSettings]):
    """ATM of some numbers of rounds."""

    title = "ATM"
    settings = AtmSettings

    def check(self, experiment: Experiment, suite: Suite) -> None:
        check_block("atm", self.block, experiment, suite)

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        if is_about(self.block, trial.experiment, trial.regime):
            for rounds in self.block.rounds:
                yield cell_of(trial, self.block, rounds)

    def entries(self, results: Results) -> Iterator[Entry]:
        for regime, cells in results.by_seed(Alternated):
            for runs in cells:
                yield from entries_of_rounds(results, regime, runs)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        runs = results.stored(Alternated, regime, seed)
        return {"atm": [said(run) for run in runs]} if runs else {}

    def tables(self, results: Results) -> Iterator[Table]:
        rows, searches, metrics = [], {}, results.plan.metrics
        for regime, of_regime in results.by_regime(Alternated).items():
            for runs in of_regime:
                rounds = runs[0].rounds
                name = f"{regime}, {rounds_in_words(rounds)}"
                searches[name] = tuned = [run.tuned for run in runs]
                rows.append(
                    (
                        name,
                        both([run.plain for run in runs], metrics),
                        coefficients(tuned),
                        both(tuned, metrics),
                        megabytes(sent_in(runs[0])),
                    )
                )
        if rows:
            every = len(results.plan.tasks)
            drawn = participants(self.block.participation, every)
            few = f", for {drawn} of {every} tasks in each round" if drawn < every else ""
            note = (
                f"Absolute / normalized, per cent.{reciprocal_note(metrics.values())} All rows spend the "
                f"same training steps{few}; the best factor scales the whole displacement and is chosen on "
                "validation data: "
                f"{search_note(searches)}. Sent: in every round a vector to each task and one back."
            )
            columns = ("", "as it is", "best factor", "at best factor", "sent, MB")
            yield Table("ATM", columns, rows, note, compared=greatest_is_best(metrics.values(), 1, 3))

    def charts(self, results: Results) -> Iterator[Lines]:
        metrics, runs = results.plan.metrics.values(), results.by_regime(Alternated)
        if runs:
            yield _chart(runs, results.by_regime(Joined), unit_of(metrics) or Unit())
        yield from charts_of_rounds("atm-rounds", runs)


class Rounds(Protocol):
    """What some number of rounds gave."""

    @property
    def rounds(self) -> int: ...

    @property
    def plain(self) -> Measured: ...

    @property
    def tuned(self) -> Edit | None: ...

    @property
    def seconds(self) -> float: ...


def entries_of_rounds(results: Results, regime: str, runs: Mapping[int, Rounds]) -> Iterator[Entry]:
    """As it is, and rescaled. A single round trains nothing beside the vectors."""
    rounds = next(iter(runs.values())).rounds
    name, experiment = f"ATM, {rounds_in_words(rounds)}", results.plan.experiment
    trained: tuple[Consumed, ...] = ("training",) if rounds > 1 else ()
    consumed = consumed_with(experiment, regime, *trained)
    labels = consumed_with(experiment, regime, "validation labels", *trained)
    tuned = {seed: of.tuned for seed, of in runs.items() if of.tuned}
    factors = {seed: of.coefficient for seed, of in tuned.items()}
    seconds = {seed: of.seconds for seed, of in runs.items() if of.seconds}
    plain = {seed: of.plain for seed, of in runs.items()}
    yield Entry(name, regime, plain, consumed, "default", dict.fromkeys(plain, 1.0), seconds)
    if tuned:
        yield Entry(name, regime, tuned, labels, "searched", factors, seconds)


def said(run: Plain) -> Plain:
    """A record for readers; seconds, which differ from run to run, stay with the hits."""
    return {key: value for key, value in without_hits(run).items() if key != "seconds"}


def rounds_in_words(count: int) -> str:
    """As rows are called."""
    return f"{count} round{'s' if count > 1 else ''}"


def sent_in(run: Alternated) -> int | None:
    """Bytes that all rounds sent; none where that is not on record."""
    return sum(of.bytes for of in run.history) if run.history else None


def megabytes(count: float | None) -> object:
    """Bytes as a table shows them."""
    return NOTHING if count is None else Mean([count / 1e6], ".4g")


def check_block(key: str, block: AtmSettings, experiment: Experiment, suite: Suite) -> None:
    """Refuse what cannot be trained. Raises: InputError that opens with the key."""
    experiment.check_regimes(key, block.regimes)
    for regime in block.regimes or ():
        if experiment.trained(regime) != regime:
            raise InputError(f"{key}.regimes: {regime!r} trains nothing, and ATM trains; leave it out")
    if not any(is_about(block, experiment, regime) for regime in experiment.regimes):
        raise InputError(
            f"{key}: every regime is of tangent space, where ATM is not run unasked; name one under "
            f"{key}.regimes"
        )
    _check_steps(key, block, experiment)
    if block.rule not in RULES:
        raise InputError(f"{key}.rule: no rule called {block.rule!r}; {nearest(block.rule, RULES)}")
    if "scale" in block.params:
        raise InputError(
            f"{key}.params: 'scale' is that of a round here; the rule keeps its own at the default"
        )
    try:
        tasks = participants(block.participation, len(experiment.task_names(suite)))
        check_aggregator(block.rule, block.params, tasks)
        for regime in experiment.regimes:
            if is_about(block, experiment, regime):
                check_options(block.state, block.schedule, experiment.regime(regime))
    except InputError as error:
        raise type(error)(f"{key}: {error}") from None


def _check_steps(key: str, block: AtmSettings, experiment: Experiment) -> None:
    """Refuse more rounds than steps, where the file says how many there are."""
    for regime in experiment.regimes:
        if is_about(block, experiment, regime):
            steps = experiment.settings(regime, experiment.seeds[0]).steps
            if steps and steps < max(block.rounds):
                raise InputError(
                    f"{key}.rounds: {max(block.rounds)} is more than the {steps} training steps of a task in "
                    f"regime {regime!r}; take fewer rounds or more steps"
                )


def is_about(block: AtmSettings, experiment: Experiment, regime: str) -> bool:
    """Whether a block wants rounds in a regime."""
    if block.regimes:
        return regime in block.regimes
    return experiment.space(regime) == "ordinary"


def cell_of(trial: Trial, block: AtmSettings, rounds: int) -> Cell[Alternated]:
    """ATM in so many rounds; the same cell for every study that asks for it."""
    grid = _grid(trial, block, rounds)
    chosen = {"rounds": rounds, **block.options()}
    job = partial(_alternate, rounds=rounds, settings=block, grid=grid)
    return trial.cell(Alternated, job, trial.tasks, **chosen, **search_inputs(grid))


def charts_of_rounds(name: str, runs: Mapping[str, Sequence[Sequence[InRounds]]]) -> Iterator[Lines]:
    """A chart a regime of what happened from round to round."""
    for number, (regime, of_regime) in enumerate(runs.items()):
        if any(len(run.history) > 2 for of in of_regime for run in of):  # two points are no curve
            caption = (
                f"ATM, {regime}, from round to round: the loss of the mean and what bounds it where the loss "
                "is convex, validation, and cosines between what the tasks learned in a round."
            )
            yield Lines(f"{name}-{number}" if number else name, caption, list(_plots_of_rounds(of_regime)))


def _grid(trial: Trial, settings: AtmSettings, rounds: int) -> Grid:
    """Addition's grid in the unit of ATM: a factor of T on the mean of T vectors gives their sum.

    One round of means is that mean, so it is searched at the very points of addition. What more rounds
    give lies between a mean and a sum: searched as far, in the steps of addition.
    """
    unit = len(trial.tasks) / settings.scale
    if rounds == 1 and settings.rule == "mean":
        return trial.experiment.search.scaled(unit)
    return trial.experiment.search.widened(max(unit, 1.0))


def _alternate(trial: Trial, rounds: int, settings: AtmSettings, grid: Grid) -> Plain:
    single = own_models(trial)
    seconds: list[float] = []
    vector = displacement(
        trial, rounds, settings, lambda _, figures: seconds.append(figures.get("seconds", 0))
    )
    points = trial.points_of({"atm": vector})

    search = maximize(
        lambda measured: normalized(measured, single.validation),
        lambda factor: trial.evaluator.values(points.at({"atm": factor}), trial.tasks, "validation"),
        grid,
    )
    plain, tuned = (
        measure_point(trial.evaluator, points.at({"atm": factor}), trial.tasks, single.test)
        for factor in (1.0, search.coefficient)
    )
    history = (vector.info.training or {}).get("history") or [_merged_once(trial, vector)]
    return {
        "rounds": rounds,
        "plain": plain,
        "tuned": {**tuned, **search.record()},
        "history": history,
        **({"seconds": sum(seconds)} if seconds else {}),
    }


def _merged_once(trial: Trial, vector: TaskVector) -> Plain:
    """The record of a single round."""
    return {
        "round": 1,
        "tasks": trial.tasks,
        "norm": vector.norm(),
        "bytes": sent_once(trial.vectors, trial.trains.lora),
    }


def sent_once(vectors: Mapping[str, TaskVector], lora: Lora | None) -> int:
    """Bytes of a single round, in the vectors' own dtypes: each to the merge, as factors where it was trained
    as such, and a whole displacement back."""
    total = 0
    for vector in vectors.values():
        for name in filter(vector.terms_at, vector):
            spec = vector.specs[name]
            sides = spec.shape[0] + spec.numel // spec.shape[0] if lora else 0
            total += (spec.numel + (lora.rank * sides if lora else spec.numel)) * spec.dtype.itemsize
    return total


def displacement(trial: Trial, rounds: int, settings: AtmSettings, told: Log | None = None) -> TaskVector:
    """What so many rounds give; ``told`` gets the figures of every step that they trained."""
    rule, scale = settings.rule, settings.scale
    if rounds == 1 and settings.participation is None:  # tuning apart and merging once: the vectors are there
        vectors = bind_all(list(trial.vectors.values()), trial.evaluator.backbone.source)
        return scale * combine(rule, vectors, **settings.params)
    options = settings.options()

    def validate(vector: TaskVector) -> dict[str, float]:
        point = trial.points_of({"tau": vector}).at({"tau": 1.0})
        return {"validation": absolute(trial.evaluator.values(point, trial.tasks, "validation"))}

    def compute(checkpoint: Path, log: Log | None) -> TaskVector:
        return atm(
            trial.evaluator.backbone,
            [trial.evaluator.part(task) for task in trial.tasks],
            rounds=rounds,
            regime=trial.trains,
            settings=trial.settings,
            folder=trial.keep,
            checkpoint=checkpoint,
            validate=validate,
            watch=trial.lab.watch,
            log=log,
            **{**{key: value for key, value in options.items() if key != "params"}, **settings.params},
        )

    return trial.train(f"atm{rounds}", compute, trial.tasks, told=told, rounds=rounds, **options)


def _chart(
    by_regime: Mapping[str, Sequence[Sequence[Alternated]]],
    joint: Mapping[str, Sequence[Sequence[Joined]]],
    unit: Unit,
) -> Lines:
    curves, levels = [], []
    for regime, of_regime in by_regime.items():
        for name, field in (("as it is", "plain"), ("best factor", "tuned")):
            points = [
                Dot(runs[0].rounds, unit.of([getattr(run, field).absolute for run in runs]))
                for runs in of_regime
            ]
            curves.append(Curve(f"{regime}, {name}", points, regime, dashed=field == "tuned"))
        if regime in joint:
            [ceiling] = unit.of([fmean(model.absolute for model in joint[regime][0])])
            levels.append(Level(f"{regime}, joint training", ceiling, regime))
    first = next(iter(by_regime.values()))
    caption = f"ATM: the same training steps, merged once or more often. {of_seeds(len(first[0]))}"
    x = rounds_axis("rounds, at equal training steps", [runs[0].rounds for runs in first])
    return Lines("atm", caption, [Plot("", x, unit.axis("mean test metric"), curves, levels)])


def rounds_axis(name: str, rounds: Sequence[int]) -> Axis:
    """In powers where they are far apart."""
    return Axis(name, log=max(rounds) > 8 * min(rounds), ticks=sorted({*rounds}))


_FIGURES = {
    "loss of the mean; dashed: mean of losses": ("loss_of_mean", "mean_of_losses"),
    "mean validation metric, %": ("validation",),
    "cosine within a round": ("cosine",),
}
"""What is drawn side by side, and the fields of rounds that it is."""


def _plots_of_rounds(of_regime: Sequence[Sequence[InRounds]]) -> Iterator[Plot]:
    """What happened from round to round, over the share of the budget that is spent."""
    for y, fields in _FIGURES.items():
        curves = [
            Curve(
                f"{rounds_in_words(runs[0].rounds)}{', mean of losses' if field == 'mean_of_losses' else ''}",
                points,
                rounds_in_words(runs[0].rounds),
                dashed=field == "mean_of_losses",
            )
            for runs in of_regime
            for field in fields
            if (points := _points(runs, field))
        ]
        if curves:  # a round without validation has no metric, one of a task no cosine
            yield Plot("", Axis("budget spent, %", low=0, high=100), Axis(y), curves)


def _points(runs: Sequence[InRounds], field: str) -> list[Dot]:
    """Of a field, over seeds; none where it is not known."""
    seeds = [{each.round: getattr(each, field) for each in run.history} for run in runs if run.history]
    scale = 100 if field == "validation" else 1
    return [
        Dot(100 * turn / runs[0].rounds, [scale * of[turn] for of in seeds if of.get(turn) is not None])
        for turn, value in (seeds[0] if seeds else {}).items()
        if value is not None
    ]
