"""Joint training: one model trained on all tasks at once, with or without a combiner of their gradients."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Annotated, Any

from pydantic import BeforeValidator, PositiveFloat, PositiveInt

from taskvec.code import check_allowed, names_code
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.reports.charts.chart import Chart
from taskvec.reports.charts.dots import Dots, Row, Rows
from taskvec.reports.charts.lines import Curve, Dot, Lines, Plot
from taskvec.reports.charts.scales import Axis
from taskvec.reports.numbers import Mean, percent
from taskvec.reports.tables import Table
from taskvec.studies.charting import measures, of_seeds
from taskvec.studies.entry import JOINT, Entry
from taskvec.studies.experiment import Experiment
from taskvec.studies.hits import without_hits
from taskvec.studies.measured import (
    Edit,
    Measured,
    both,
    greatest_is_best,
    in_unit,
    measure_point,
    reciprocal_note,
    titled,
)
from taskvec.studies.record import Plain, Record
from taskvec.studies.single import own_models
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.suite import Suite
from taskvec.training.joint import combiner_for
from taskvec.training.penalties.settings import foreign
from taskvec.vectors import TaskVector

_POINTS = 100
"""Places of a training's course that a record keeps: means over steps where there are more."""

Chosen = dict[str, Any] | None
"""A combiner with its parameters; none for training without one."""


def _listed(value: object) -> object:
    """A list of combiners from what may stand for it: one by name, with parameters, or a list of these."""
    several = value if isinstance(value, list | tuple) else [] if value is None else [value]
    return tuple({"combiner": one} if isinstance(one, str) else one for one in several)


class Differing(Config):
    """Settings of trainings by a combiner that differ from the regime's: steps that hold more examples may go
    further, or hold fewer of each task."""

    lr: PositiveFloat | None = None
    steps: PositiveInt | None = None
    batch_size: PositiveInt | None = None


class JointSettings(Config):
    """Train one model on all tasks at once: the upper reference of addition."""

    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment, each in its own space."""
    combiner: Annotated[tuple[Chosen, ...], BeforeValidator(_listed)] = ()
    """What makes one gradient of the tasks': a name, a mapping with parameters, or a list of these, in which
    null stands for training without a combiner for as long. By default one model without a combiner."""
    training: Differing = Differing()
    """What trainings by a combiner have in place of the regime's settings."""


def _switch(value: object) -> object:
    if isinstance(value, bool):
        return JointSettings() if value else None
    return value


class Course(Record):
    """A training by a combiner, at some places of it: means over the steps up to there."""

    steps: list[int]
    conflict_rate: list[float]
    weights: dict[str, list[float]]


class Joined(Measured):
    """The model trained on all tasks, on test data."""

    cell = "joint"
    combiner: str = ""
    """What a table calls it; of a model trained without one in a list, that."""
    seconds: float = 0.0
    """Of all training steps."""
    course: Course | None = None


class _Added(Edit):
    """What addition says of the sum of all tasks' vectors."""

    cell = "addition"
    tasks: list[str]


class _Alternated(Record):
    """What ATM says of some number of rounds."""

    cell = "atm"
    rounds: int
    plain: Measured
    tuned: Edit


class Joint(Study[JointSettings]):
    """Shown as a column of addition's table and a line in ATM's figure; of combiners, as a table and a figure
    of their own."""

    title = "Joint training"
    settings = Annotated[JointSettings | None, BeforeValidator(_switch)]

    def check(self, experiment: Experiment, suite: Suite) -> None:
        experiment.check_regimes("joint", self.block.regimes)
        for regime in self.block.regimes or experiment.regimes:
            if foreign(experiment.settings(regime, experiment.seeds[0]).penalty):
                raise InputError(
                    f"joint: the penalty of {regime!r} uses the inputs of other tasks, and joint training "
                    "leaves none; name the other regimes under 'regimes' of 'joint'"
                )
        tasks = experiment.task_names(suite)
        for place, chosen in enumerate(self.block.combiner):
            if chosen is None:
                continue
            if chosen in self.block.combiner[:place]:
                raise InputError(f"joint: combiner {name_of(chosen)} is listed twice; leave one of them out")
            kind = chosen.get("combiner")
            if isinstance(kind, str) and names_code(kind):
                check_allowed(kind, "joint: combiner")
            try:
                combiner_for(chosen, tasks)
            except InputError as error:
                raise type(error)(f"joint: {error}") from None

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        if trial.regime not in (self.block.regimes or trial.experiment.regimes):
            return
        if not self.block.combiner:
            yield trial.cell(Joined, _train_jointly, trial.tasks)
        for chosen in self.block.combiner:
            settings = self.block.training.model_dump(exclude_none=True) if chosen else {}
            job = partial(_combine, chosen=chosen, settings=settings)
            more = {"joint": settings} if settings else {}
            cell = trial.cell(Joined, job, trial.tasks, combiner=chosen, **more)
            yield replace(cell, label=f"{name_of(chosen)}, {cell.label}")

    def entries(self, results: Results) -> Iterator[Entry]:
        for regime, cells in results.by_seed(Joined):
            steps = results.plan.experiment.settings(regime, results.plan.experiment.seeds[0]).steps
            for models in cells:
                name = _entry_name(next(iter(models.values())).combiner, shorter=steps is not None)
                seconds = {seed: of.seconds for seed, of in models.items() if of.seconds}
                yield Entry(name, regime, models, ("training",), seconds=seconds)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        models = [
            {key: value for key, value in without_hits(model).items() if key not in _unsaid(model)}
            for model in results.stored(Joined, regime, seed)
        ]
        listed = {"combiners": models} if any("combiner" in model for model in models) else {}
        return {"joint": models[0], **listed} if models else {}

    def tables(self, results: Results) -> Iterator[Table]:
        for regime, models in _combined(results).items():
            yield _table(results, regime, models, self.block.training)

    def charts(self, results: Results) -> Iterator[Chart]:
        for number, (regime, models) in enumerate(_combined(results).items()):
            end = f"-{number}" if number else ""
            courses = {of[0].combiner: [model.course for model in of if model.course] for of in models}
            known = {name: of for name, of in courses.items() if of}
            yield _chart_of_models(f"joint-models{end}", results, regime, models)
            if known:
                yield _chart_of_conflicts(f"joint{end}", regime, known)
            if weighing := {name: of for name, of in known.items() if _weighs(of)}:
                yield _chart_of_weights(f"joint-weights{end}", regime, weighing)


def name_of(chosen: Chosen) -> str:
    """What tables call a combiner."""
    if chosen is None:
        return "a task a step"
    params = ", ".join(f"{key} {_shown(value)}" for key, value in chosen.items() if key != "combiner")
    return f"{chosen.get('combiner')}{f' ({params})' if params else ''}"


def _shown(value: object) -> str:
    """A parameter as tables and figures have it; a mapping as its names and values."""
    return (
        ", ".join(f"{key} {each}" for key, each in value.items())
        if isinstance(value, Mapping)
        else f"{value}"
    )


def _unsaid(model: Plain) -> set[str]:
    """Fields that are too much for readers, or differ from run to run, so that they stay in the records."""
    return {"course"} if "combiner" in model else {"seconds"}


def _entry_name(combiner: str, *, shorter: bool) -> str:
    """What the main table calls a model: the same in every study that trains it."""
    if not combiner:
        return f"{JOINT}, as long as one task" if shorter else JOINT
    return JOINT if combiner == name_of(None) else f"{JOINT}, {combiner}"


def _train_jointly(trial: Trial) -> Plain:
    seconds: list[float] = []
    vector = trial.vector(*trial.tasks, told=lambda _, figures: seconds.append(figures.get("seconds", 0)))
    return {**_measure(trial, vector), "seconds": sum(seconds)}


def _measure(trial: Trial, vector: TaskVector) -> Plain:
    point = trial.points_of({"joint": vector}).at({"joint": 1.0})
    return measure_point(trial.evaluator, point, trial.tasks, own_models(trial).test)


def _combine(trial: Trial, chosen: Chosen, settings: Mapping[str, Any]) -> Plain:
    """The model trained with a combiner, or without for as many examples, and how the training went."""
    steps: list[Mapping[str, float]] = []

    def told(step: int, figures: Mapping[str, float]) -> None:
        steps.append(figures)

    if chosen is None:
        vector = trial.joint_vector(told)
    else:
        vector = trial.vector(*trial.tasks, settings=settings, combiner=chosen, told=told)
    seconds = sum(figures.get("seconds", 0) for figures in steps)
    told_of = {"combiner": name_of(chosen), "seconds": seconds, "course": _course(steps, trial.tasks)}
    return {**_measure(trial, vector), **told_of}


def _course(steps: Sequence[Mapping[str, float]], tasks: Sequence[str]) -> Plain | None:
    """A training's figures at some places of it."""
    names = {task: f"weight/{task}" for task in tasks}
    known = [(step, of) for step, of in enumerate(steps, 1) if all(name in of for name in names.values())]
    if not known:
        return None
    size = -(-len(known) // _POINTS)
    pieces = [known[start : start + size] for start in range(0, len(known), size)]
    return {
        "steps": [piece[-1][0] for piece in pieces],
        "conflict_rate": [fmean(of.get("conflict_rate", 0.0) for _, of in piece) for piece in pieces],
        "weights": {
            task: [fmean(of[name] for _, of in piece) for piece in pieces] for task, name in names.items()
        },
    }


_LINES = 6
"""Most combiners whose lines a reader can tell apart."""

_FAR = 20.0
"""From how many times the smallest weight on weights are drawn as powers of ten."""


def _combined(results: Results) -> dict[str, list[list[Joined]]]:
    """By regime, the models of listed combiners, each a record a seed."""
    models = results.by_regime(Joined)
    return {regime: of for regime, of in models.items() if of[0][0].combiner}


def _table(results: Results, regime: str, models: Sequence[Sequence[Joined]], differing: Differing) -> Table:
    metrics, tasks = results.plan.metrics, results.plan.tasks
    rows: list[Sequence[object]] = [
        (name, both(edits, metrics), *_by_task(edits, metrics), "", "")
        for name, edits in _others(results, regime)
    ]
    for of in models:
        conflicts = [fmean(model.course.conflict_rate) for model in of if model.course]
        rows.append(
            (
                of[0].combiner,
                both(of, metrics),
                *_by_task(of, metrics),
                percent(conflicts),
                Mean([model.seconds for model in of], ".3g"),
            )
        )
    columns = ("", "mean", *(titled(task, metrics[task]) for task in tasks), "conflicts, %", "seconds")
    compared = (*greatest_is_best(metrics.values(), 1), *range(2, len(tasks) + 2))
    return Table(f"Joint training, {regime}", columns, rows, _note(metrics, differing), compared=compared)


def _note(metrics: Mapping[str, str], differing: Differing) -> str:
    own = differing.model_dump(exclude_none=True)
    alike = " All rows read as many training examples; meta reads a batch more a step."
    return (
        "Mean: absolute / normalized, per cent; then the test metric of every task."
        f"{reciprocal_note(metrics.values())}{'' if own.keys() & {'steps', 'batch_size'} else alike}"
        f"{f' Trainings by a combiner: {_listed_settings(own)}.' if own else ''}"
        " Conflicts: pairs of tasks whose gradients point against each other, over all steps."
    )


def _listed_settings(own: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in own.items())


def _by_task(edits: Sequence[Measured], metrics: Mapping[str, str]) -> Iterator[object]:
    return (in_unit(metric, [edit.values[task] for edit in edits]) for task, metric in metrics.items())


def _others(results: Results, regime: str) -> Iterator[tuple[str, Sequence[Measured]]]:
    """What the same experiment says of vectors that were trained apart, for as many examples."""
    sums = [of for of in results.by_regime(_Added).get(regime, []) if of[0].tasks == results.plan.tasks]
    for of in sums:
        yield "addition, best α", of
    for runs in results.by_regime(_Alternated).get(regime, []):
        name = f"ATM, {runs[0].rounds} round{'s' if runs[0].rounds > 1 else ''}"
        yield name, [run.plain for run in runs]
        yield f"{name}, best factor", [run.tuned for run in runs]


def _chart_of_models(name: str, results: Results, regime: str, models: Sequence[Sequence[Joined]]) -> Dots:
    """Every model beside what vectors that were trained apart give."""
    groups: dict[str, Mapping[str, Sequence[Measured]]] = {
        "trained apart": dict(_others(results, regime)),
        "trained together": {of[0].combiner: of for of in models},
    }
    parts = [
        Rows(
            measure,
            of.axis(measure),
            {
                head: [
                    Row(label, {"": of.of([getattr(edit, measure) for edit in edits])})
                    for label, edits in rows.items()
                ]
                for head, rows in groups.items()
                if rows
            },
        )
        for measure, of in measures(results.plan.metrics.values()).items()
    ]
    caption = f"Joint training, {regime}: means over tasks. {of_seeds(len(models[0]))}"
    return Dots(name, caption, parts, filed=False)


def _chart_of_conflicts(name: str, regime: str, courses: Mapping[str, Sequence[Course]]) -> Chart:
    """Over the steps; of more combiners than lines can be told apart, the mean over all steps."""
    caption = f"Joint training, {regime}: gradients of tasks that point against each other, by combiner."
    shares = {
        label: [[100 * share for share in one.conflict_rate] for one in of] for label, of in courses.items()
    }
    axis = Axis("conflicts, % of pairs")
    if len(shares) > _LINES:
        rows = [Row(label, {"": list(map(fmean, seeds))}) for label, seeds in shares.items()]
        return Dots(name, f"{caption} Means over all steps.", [Rows("", axis, {"": rows})])
    curves = [Curve(label, _points(courses[label][0].steps, seeds)) for label, seeds in shares.items()]
    return Lines(name, caption, [Plot("", Axis("step"), axis, curves)])


def _chart_of_weights(name: str, regime: str, courses: Mapping[str, Sequence[Course]]) -> Lines:
    plots = []
    for label, of in courses.items():
        curves = [
            Curve(task, _points(of[0].steps, [one.weights[task] for one in of])) for task in of[0].weights
        ]
        plots.append(Plot(label, Axis("step"), Axis("weight", log=_spread(of) > _FAR), curves))
    caption = f"Joint training, {regime}: the weights that tasks' gradients got. Means over seeds."
    return Lines(name, caption, plots)


def _points(steps: Sequence[int], seeds: Sequence[Sequence[float]]) -> list[Dot]:
    """Means over seeds, which are a line."""
    return [Dot(step, [value]) for step, value in zip(steps, _mean_of(seeds), strict=False)]


def _spread(courses: Sequence[Course]) -> float:
    """The largest weight over the smallest, for weights above 0; 0 for others."""
    weights = [weight for course in courses for of in course.weights.values() for weight in of]
    return max(weights) / min(weights) if min(weights) > 0 else 0.0


def _weighs(courses: Sequence[Course]) -> bool:
    """Whether weights ever differ."""
    return len({weight for course in courses for of in course.weights.values() for weight in of}) > 1


def _mean_of(seeds: Iterable[Sequence[float]]) -> list[float]:
    return [fmean(values) for values in zip(*seeds, strict=True)]
