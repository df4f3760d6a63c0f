"""Few-shot adaptation: what a pool of vectors gives a new task that has a few labelled examples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from taskvec.coefficients.adapting import adapt
from taskvec.coefficients.presets import few_shot
from taskvec.coefficients.settings import CoefficientSettings
from taskvec.coefficients.shots import has_probe, shots_of
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.reports.charts.lines import Curve, Dot, Level, Lines, Plot
from taskvec.reports.charts.scales import Axis
from taskvec.reports.numbers import Mean
from taskvec.reports.tables import Table
from taskvec.studies.charting import Unit, unit_of
from taskvec.studies.experiment import Experiment
from taskvec.studies.measured import in_unit, mean_in_unit, titled, unit_note
from taskvec.studies.numerics.few_shot import COEFFICIENTS, FOLDS, Note, best_single, choose_steps, probe
from taskvec.studies.record import Plain, Record
from taskvec.studies.single import OwnModels, baselines
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.split import Split
from taskvec.tasks.suite import Suite
from taskvec.training.finetune import finetune
from taskvec.vectors import TaskVector
from taskvec.vectors.expression import names_in, parse_expression

ADAPTED, TUNED, PROBED, SINGLE = "adapted", "fine-tuned", "linear probe", "best single vector"
ROWS = (ADAPTED, TUNED, PROBED, SINGLE)


class FewShotSettings(Config):
    """Adapt the vectors of other tasks to a task with a few labelled examples."""

    shots: tuple[PositiveInt, ...] = Field(default=(1, 2, 4, 8, 16), min_length=1)
    """Examples of each class; of a task without classes, in all."""
    targets: tuple[str, ...] | None = None
    """Default: every task of the experiment in turn."""
    pool: Literal["others"] | tuple[str, ...] = "others"
    """Tasks, or expressions over tasks such as ``a - b``; what names the target is left out for it."""
    draws: PositiveInt = 1
    """Draws of shots for each seed."""
    coefficients: dict[str, Any] = Field(default_factory=dict)
    """Settings of learned coefficients that differ from those of ``taskvec adapt``."""
    steps: tuple[PositiveInt, ...] = Field(default=(1, 2, 5, 10, 20), min_length=1)
    """Of fine-tuning on the shots; one of these numbers or 0 is chosen by cross-validation on the shots."""
    strength: PositiveFloat = 10.0
    """C of the linear probe's logistic regression."""
    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment."""

    @property
    def learning(self) -> CoefficientSettings:
        """All settings of the coefficients. Raises: InputError."""
        return few_shot(self.coefficients)


class Few(Record):
    """One task with its shots: by row, the value on test data of which more is better."""

    cell = "few_shot"
    target: str
    shots: int
    draw: int
    examples: int
    values: dict[str, float | None]
    steps: int
    """Of fine-tuning, as chosen."""
    single: str
    """The best vector by itself."""
    coefficients: dict[str, float]
    """Of the adapted model, by vector, their means."""


class FewShot(Study[FewShotSettings]):
    """Shots against what they give: adaptation, fine-tuning, a linear probe, the best single vector."""

    title = "Few-shot adaptation"
    settings = FewShotSettings

    def check(self, experiment: Experiment, suite: Suite) -> None:
        experiment.check_regimes("few_shot", self.block.regimes)
        tasks = experiment.task_names(suite)
        for target in self.block.targets or ():
            if target not in tasks:
                raise InputError(f"few_shot.targets: {target!r} is not among the tasks ({', '.join(tasks)})")
        try:
            learning = self.block.learning
        except InputError as error:
            raise type(error)(f"few_shot.coefficients: {error}") from None
        if learning.split != "train" or learning.signal != "labels":
            raise InputError(
                "few_shot.coefficients: expected signal: labels and split: train, of which shots are; leave "
                "both out"
            )
        for regime in self.block.regimes or experiment.regimes:
            for target in self._targets(tasks):
                if experiment.settings(regime, experiment.seeds[0], target).lr == "auto":
                    raise InputError(
                        f"few_shot: lr: auto of regime {regime!r} reads the whole validation split, and "
                        f"shots are all that tuning may read; set lr to a number, for {target!r} at least"
                    )
        for target in self._targets(tasks):
            if not entries_of(self.block.pool, tasks, target):
                raise InputError(
                    f"few_shot.pool: nothing is left for {target!r}; name vectors of other tasks"
                )

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        block = self.block
        if trial.regime not in (block.regimes or trial.experiment.regimes):
            return
        for target in self._targets(trial.tasks):
            entries = entries_of(block.pool, trial.tasks, target)
            tasks = [target, *dict.fromkeys(task for names in entries.values() for task in names)]
            for shots in block.shots:
                for draw in range(block.draws):
                    job = partial(_compare, target=target, shots=shots, draw=draw, block=block)
                    decisive = {"target": target, "shots": shots, "draw": draw, "pool": list(entries)}
                    decisive |= {"coefficients": block.learning.model_dump()}
                    decisive |= {"steps": list(block.steps), "strength": block.strength}
                    cell = trial.cell(Few, job, tasks, **decisive)
                    label = f"{trial.regime} {target}, {shots} shots, draw {draw + 1} of {block.draws}"
                    yield replace(cell, label=label)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        found = results.stored(Few, regime, seed)
        return {"few_shot": found} if found else {}

    def tables(self, results: Results) -> Iterator[Table]:
        metrics = results.plan.metrics
        for regime, cells in results.by_regime(Few).items():
            found = [few for of in cells for few in of]
            targets, shots = _distinct(few.target for few in found), _distinct(few.shots for few in found)
            groups: dict[str, Sequence[Sequence[object]]] = {}
            for target in targets:
                rows: list[Sequence[object]] = [
                    (row, *(in_unit(metrics[target], _values(found, row, k, target)) for k in shots))
                    for row in ROWS
                ]
                zero, own = _references(results, regime, target)
                same: list[Sequence[object]] = [
                    ("zero-shot", *[in_unit(metrics[target], [zero])] * len(shots)),
                    ("own vector, all labels", *[in_unit(metrics[target], own)] * len(shots)),
                ]
                groups[titled(target, metrics[target])] = [*rows, *same]
            if len(targets) > 1:
                of_mean = [(row, *(_mean(found, row, k, targets, metrics) for k in shots)) for row in ROWS]
                groups = {"mean of the targets": of_mean, **groups}
            yield Table.grouped(
                f"Few-shot adaptation, {regime}",
                (_counted(results, targets, "labels"), *map(str, shots)),
                groups,
                self._note(results, found),
            )

    def charts(self, results: Results) -> Iterator[Lines]:
        regimes = results.by_regime(Few)
        if regimes:
            seeds = len(results.plan.experiment.seeds) * self.block.draws
            caption = (
                "A few labelled examples of each class, and what they give: mean of the targets. "
                f"{_of_draws(seeds)}"
            )
            plots = [
                _plot(results, regime, [few for of in cells for few in of])
                for regime, cells in regimes.items()
            ]
            yield Lines("few-shot", caption, plots)

    def _targets(self, tasks: Sequence[str]) -> Sequence[str]:
        return self.block.targets or tasks

    def _note(self, results: Results, found: Sequence[Few]) -> str:
        draws, seeds = self.block.draws, len(results.plan.experiment.seeds)
        over = f"; mean ± standard deviation over {draws * seeds} draws of shots" if draws * seeds > 1 else ""
        offered, taken = (
            ", ".join(map(str, sorted(steps)))
            for steps in ({0, *self.block.steps}, {few.steps for few in found})
        )
        probed = [
            task for task in self._targets(results.plan.tasks) if has_probe(results.plan.suite.task(task))
        ]
        heads = (
            f" But for the heads of {', '.join(probed)}: they are probes of the whole training split, which "
            "all rows but the linear probe stand on."
            if probed
            else ""
        )
        factors = ", ".join(f"{value:.2g}" for value in COEFFICIENTS)
        return (
            f"{unit_note(results.plan.metrics.values())} on test{over}. The first four rows read the same "
            f"labels and no others.{heads} Fine-tuning takes the steps, of {offered}, with the least loss in "
            f"{FOLDS}-fold cross-validation on the shots (chosen: {taken}). The probe is a logistic "
            f"regression on frozen features with C = {self.block.strength:g}. The best single vector and its "
            f"coefficient, of {factors}, have the least loss on the shots."
        )


def entries_of(pool: str | Sequence[str], tasks: Sequence[str], target: str) -> dict[str, list[str]]:
    """The entries of a pool for a target, each with the tasks that it names.

    Raises: InputError for an entry that names none of the tasks.
    """
    listed = list(tasks) if isinstance(pool, str) else list(pool)
    named = {entry: [entry] if entry in tasks else names_in(entry) for entry in listed}
    for entry, names in named.items():
        for name in names or [entry]:
            if name not in tasks:
                raise InputError(
                    f"few_shot.pool: {entry!r} names no task of the experiment ({', '.join(tasks)})"
                )
    return {entry: names for entry, names in named.items() if target not in names}


def _compare(trial: Trial, target: str, shots: int, draw: int, block: FewShotSettings) -> Plain:
    evaluator, seed = trial.evaluator, 1000 * trial.seed + draw
    held, _ = shots_of(evaluator, target, shots, seed, "train")
    few = evaluator.on_examples("train", {target: held})
    pool = {
        entry: trial.vectors[entry] if entry in trial.vectors else parse_expression(entry, trial.vectors)
        for entry in entries_of(block.pool, trial.tasks, target)
    }
    learned = adapt(evaluator, pool, target, shots, settings=block.learning, space=trial.space, seed=seed)
    tune = partial(_tune, trial, target, seed)
    steps = choose_steps(evaluator, target, held, trial.space, block.steps, tune)
    name, coefficient = best_single(few, target, pool, trial.space)
    made = {ADAPTED: learned.vector, SINGLE: coefficient * pool[name]}
    if steps:
        made[TUNED] = tune(held, steps, None)
    values = {row: _value(trial, vector, target) for row, vector in made.items()}
    if not steps:
        values[TUNED] = evaluator.score(evaluator.pretrained, target, "test").utility
    return {
        "target": target,
        "shots": shots,
        "draw": draw,
        "examples": len(held),
        "values": {**values, PROBED: probe(few, target, block.strength)},
        "steps": steps,
        "single": name,
        "coefficients": {label: fmean(of.values()) for label, of in learned.coefficients.items()},
    }


def _value(trial: Trial, vector: TaskVector, target: str) -> float:
    point = trial.points_of({"v": vector}).at({"v": 1.0})
    return trial.evaluator.score(point, target, "test").utility


def _tune(trial: Trial, target: str, seed: int, examples: Split, steps: int, note: Note | None) -> TaskVector:
    """Fine-tuned on examples at a constant rate, so that fewer steps are the beginning of more."""
    own = trial.experiment.settings(trial.regime, trial.seed, target)
    constant = {"steps": steps, "schedule": "constant", "warmup": 0.0, "seed": seed}
    done = 0

    def validate(vector: TaskVector) -> dict[str, float]:
        nonlocal done
        done += 1
        if note:
            note(done, vector)
        return {}

    return finetune(
        trial.evaluator.backbone,
        replace(trial.evaluator.part(target), split=examples),
        regime=trial.trains,
        references=[trial.evaluator.part(task) for task in trial.references(target)],
        keep=trial.keep,
        settings=own.model_copy(update={**constant, "validations": steps if note else 0}),
        validate=validate if note else None,
    )


def _counted(results: Results, targets: Sequence[str], what: str) -> str:
    """What a number of shots is of: of a task without classes, in all."""
    classes = [results.plan.suite.task(target).kind == "classification" for target in targets]
    return what + (" of each class" if all(classes) else " (of each class)" if any(classes) else "")


def _distinct(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))


def _values(found: Sequence[Few], row: str, shots: int, target: str) -> list[float]:
    """One a seed and draw; none where the row does not exist."""
    of = [few.values[row] for few in found if (few.shots, few.target) == (shots, target)]
    return [value for value in of if value is not None]


def _mean(
    found: Sequence[Few], row: str, shots: int, targets: Sequence[str], metrics: Mapping[str, str]
) -> object:
    means = _means(found, row, shots, targets)
    return mean_in_unit([metrics[target] for target in targets], means) if means else Mean([])


def _means(found: Sequence[Few], row: str, shots: int, targets: Sequence[str]) -> list[float]:
    """Over targets, one a seed and draw."""
    columns = [_values(found, row, shots, target) for target in targets]
    return list(map(fmean, zip(*columns, strict=True))) if all(columns) else []


def _references(results: Results, regime: str, target: str) -> tuple[float, list[float]]:
    """The value before any training, and of the target's own vector at each seed."""
    own = [of for seed in results.plan.experiment.seeds for of in results.of(OwnModels, regime, seed)]
    return baselines(results)[target].test.utility, [models.test[target] for models in own]


def _of_draws(count: int) -> str:
    return "One draw of shots, so no intervals." if count == 1 else f"Means of {count} draws of shots."


def _plot(results: Results, regime: str, found: Sequence[Few]) -> Plot:
    targets, shots = _distinct(few.target for few in found), _distinct(few.shots for few in found)
    unit = unit_of(results.plan.metrics[target] for target in targets) or Unit()
    curves = [
        Curve(row, [Dot(k, unit.of(_means(found, row, k, targets)), f"{k} shots") for k in shots])
        for row in ROWS
    ]
    zeros, owns = zip(*(_references(results, regime, target) for target in targets), strict=True)
    before, after = unit.of([fmean(zeros), fmean(map(fmean, owns))])
    levels = [Level("zero-shot", before), Level("own vector, all labels", after)]
    x = Axis(_counted(results, targets, "labelled examples"), log=True, ticks=shots)
    return Plot(regime, x, unit.axis("mean test metric"), curves, levels)
