"""Task negation: forget one task, keep the others."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Annotated, Literal

from pydantic import Field

from taskvec.arguments import checked
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.metrics import absolute
from taskvec.evaluation.points import Points
from taskvec.evaluation.search import Grid, search_negation
from taskvec.registry import nearest
from taskvec.reports.charts.dots import Dots, Row, Rows
from taskvec.reports.charts.scales import Axis
from taskvec.reports.numbers import NOTHING, Mean, Several, percent
from taskvec.reports.tables import Table
from taskvec.studies.charting import of_seeds
from taskvec.studies.experiment import Experiment
from taskvec.studies.measured import (
    Searched,
    coefficients,
    in_unit,
    mean_in_unit,
    reciprocal_note,
    search_inputs,
    search_note,
    titled,
    unit_note,
    units_of,
)
from taskvec.studies.record import Plain, Record
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Plan, Trial
from taskvec.tasks.score import LOWER_IS_BETTER, Score, utility
from taskvec.tasks.suite import Suite
from taskvec.vectors import TaskVector


class NegationSettings(Config):
    """Subtract the vectors of some tasks; keep the controls."""

    targets: tuple[str, ...] = Field(min_length=1)
    controls: tuple[str, ...] | None = None
    """Default: the suite's control task, or all other tasks of the experiment."""
    keep: float = Field(default=0.95, gt=0, le=1)
    """Share of the controls' mean validation value that must remain."""
    baselines: tuple[Literal["random", "ascent"], ...] = ("random", "ascent")
    complement: dict[str, str] = Field(default_factory=dict)
    """Target -> task of what the target is not, such as posts that are not offensive: a third baseline,
    fine-tuned on that."""
    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment."""


class Written(Record):
    """What is told of texts that a model wrote, beside their score."""

    metric: str
    share: float | None = None
    cut: float | None = None
    distinct_2: float | None = None


class Model(Record):
    """One model on the target and on the controls."""

    target: float
    """In the unit of the target's metric."""
    control: float
    """Mean over the controls, more is better."""
    target_recall: list[float | None] = Field(default_factory=list)
    """Of a classification."""
    target_score: Written | None = None
    trained_on: str | None = None
    """The task of the complement, for the model that is trained on that."""


class SearchedModel(Model, Searched):
    """One whose coefficient was searched."""


class Negated(Record):
    """What one target's negation gave: a row a model, the pre-trained one first."""

    cell = "negation"
    target: str
    controls: list[str]
    keep: float
    rows: dict[str, Annotated[SearchedModel | Model, Field(union_mode="left_to_right")]]


_TOLD = 3
"""Targets that a sentence has room for."""


class Negation(Study[NegationSettings]):
    """Every target by itself, in every regime."""

    settings = NegationSettings

    def check(self, experiment: Experiment, suite: Suite) -> None:
        experiment.check_regimes("negation", self.block.regimes)
        self._check_complements(suite)
        for target in self.block.targets:
            if not self._controls(experiment, suite, target):
                raise InputError(f"negation: no control task is left for the target {target!r}")

    def _check_complements(self, suite: Suite) -> None:
        for target, other in self.block.complement.items():
            if target not in self.block.targets:
                raise InputError(
                    f"negation.complement: {target!r} is no target; {nearest(target, self.block.targets)}"
                )
            if suite.task(other).name == target:
                raise InputError(f"negation.complement: {target!r} is no complement of itself")

    def tasks(self, experiment: Experiment, suite: Suite) -> Iterator[str]:
        yield from self.compared(experiment, suite)
        yield from self.block.complement.values()

    def compared(self, experiment: Experiment, suite: Suite) -> Iterator[str]:
        for target in self.block.targets:
            yield from (target, *self._controls(experiment, suite, target))

    def _controls(self, experiment: Experiment, suite: Suite, target: str) -> list[str]:
        """The tasks that negation of ``target`` must leave alone."""
        default = [suite.control] if suite.control is not None else experiment.task_names(suite)
        chosen = default if self.block.controls is None else self.block.controls
        return [name for name in chosen if name != target]

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        experiment, block = trial.experiment, self.block
        if trial.regime not in (block.regimes or experiment.regimes):
            return
        chosen = block.model_dump(include={"keep", "baselines"}, mode="json")
        for target in block.targets:
            controls = self._controls(experiment, trial.plan.suite, target)
            job = partial(_negate, target=target, controls=controls, settings=block)
            inputs = {**search_inputs(experiment.search), "controls": controls, **chosen}
            others = [block.complement[target]] if target in block.complement else []
            more = {"complement": others[0]} if others else {}
            tasks = list(dict.fromkeys([target, *controls, *others]))
            yield trial.cell(Negated, job, tasks, **inputs, **more)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        targets = results.stored(Negated, regime, seed)
        return {"negation": targets} if targets else {}

    def headline(self, results: Results) -> str:
        said = []
        for place, target in enumerate(_targets(results)):
            view = _View(results.plan, target)
            models = {(regime, label): of for regime, label, of in _models(results, place)}
            negated = {regime: of for (regime, label), of in models.items() if label == "negative fine-tuned"}
            before = next(of for (_, label), of in models.items() if label == "pretrained")
            said += [view.headline(regime, before, of) for regime, of in negated.items()]
        more = f"; and {len(said) - _TOLD} more" if len(said) > _TOLD else ""
        return f"{'; '.join(said[:_TOLD])}{more}"

    def tables(self, results: Results) -> Iterator[Table]:
        for place, target in enumerate(_targets(results)):
            rows: list[tuple[object, ...]] = []
            searches: dict[str, Sequence[Searched]] = {}
            view = _View(results.plan, target)
            for regime, label, models in _models(results, place):
                name = f"{regime}: {label}"
                if label == "pretrained":
                    space = results.plan.experiment.space(regime)
                    name = "pre-trained" if space == "ordinary" else f"pre-trained, {space} space"
                searched = [model for model in models if isinstance(model, SearchedModel)]
                if searched:
                    searches[name] = searched
                rows.append((name, coefficients(searched) if searched else "", *view.figures(models)))
            yield Table(f"Negation of {target.target}", ("", "α", *view.heads), rows, view.note(searches))

    def charts(self, results: Results) -> Iterator[Dots]:
        if _targets(results):
            yield _chart(results)


@checked
def negation(
    evaluator: Evaluator,
    points: Points,
    target: str,
    controls: Sequence[str],
    *,
    subtract: Sequence[str],
    measure: Sequence[str] = (),
    grid: Grid | None = None,
    keep: float = 0.95,
) -> dict[str, object]:
    """Subtract vectors from the pre-trained model until the target is forgotten or the controls suffer.

        theta = theta_0 - alpha * tau,   alpha = argmin of the target's validation value
                                         subject to controls >= keep * controls of theta_0

    Args:
        points: vectors by label.
        target: the task to forget.
        controls: tasks to keep; the constraint is on their mean.
        subtract: labels of vectors to subtract with a searched coefficient: the target's own task vector, and
            a random vector of the same norms as the baseline.
        measure: labels of vectors to add at coefficient 1 for comparison: the fine-tuned model, the one
            trained by gradient ascent.

    Returns: the record: one row a model (``pretrained``, then every label), each with the target's and the
        controls' test scores; rows of ``subtract`` hold their search, and say so when nothing satisfied it.
    Raises: InputError if the target is among the controls or there is no control.
    Source: Ilharco et al. 2022 (arXiv:2212.04089), section 3.
    """
    if target in controls or not controls:
        raise InputError(
            f"negation of {target!r} needs control tasks other than itself, not {list(controls)}"
        )
    tasks = [target, *controls]
    before = evaluator.values(points.at({}), tasks, "validation")
    rows = {"pretrained": _row(evaluator.scores(points.at({}), tasks, "test"), target)}
    for label in measure:
        rows[label] = _row(evaluator.scores(points.at({label: 1.0}), tasks, "test"), target)
    for label in subtract:
        search = search_negation(
            lambda alpha, label=label: evaluator.values(points.at({label: -alpha}), tasks, "validation"),  # type: ignore[misc]
            target,
            before,
            grid,
            keep,
        )
        scores = evaluator.scores(points.at({label: -search.coefficient}), tasks, "test")
        rows[f"negative {label}"] = {**search.record(), **_row(scores, target)}
    return {"target": target, "controls": list(controls), "keep": keep, "rows": rows}


def _row(scores: Mapping[str, Score], target: str) -> dict[str, object]:
    kept = {task: score for task, score in scores.items() if task != target}
    recall = getattr(scores[target], "recall", None)
    return {
        "target": scores[target].value,
        "control": absolute({task: score.utility for task, score in kept.items()}),
        "controls": {task: score.value for task, score in kept.items()},
        **({} if recall is None else {"target_recall": recall}),
        "target_score": scores[target].record(),
    }


def _negate(trial: Trial, target: str, controls: Sequence[str], settings: NegationSettings) -> Plain:
    vectors = {"fine-tuned": trial.vector(target)}
    if "random" in settings.baselines:
        vectors["random"] = TaskVector.random_like(vectors["fine-tuned"], seed=trial.seed)
    if "ascent" in settings.baselines:
        vectors["ascent"] = trial.vector(target, ascend=True)
    other = settings.complement.get(target)
    if other is not None:
        vectors["complement"] = trial.vector(other)
    record = negation(
        trial.evaluator,
        trial.points_of(vectors),
        target,
        controls,
        subtract=[label for label in ("fine-tuned", "random") if label in vectors],
        measure=[label for label in ("fine-tuned", "ascent", "complement") if label in vectors],
        grid=trial.experiment.search,
        keep=settings.keep,
    )
    if other is None:
        return record
    rows: dict[str, dict[str, object]] = record["rows"]  # type: ignore[assignment]
    trained = {"complement": {**rows["complement"], "trained_on": other, "consumed": _CONSUMED.format(other)}}
    return {**record, "rows": {**rows, **trained}}


_CONSUMED = "the training split of {}"
"""What the baseline of the complement consumed, beside the target's and the controls' figures."""


def _targets(results: Results) -> list[Negated]:
    """As the first regime and seed have them."""
    return [seeds[0] for seeds in next(iter(results.by_regime(Negated).values()), [])]


def _models(results: Results, place: int) -> Iterator[tuple[str, str, list[Model]]]:
    """Regime, label and records over seeds of the models of one target.

    The pre-trained model comes once for each space: in bf16 it is not the same in both.
    """
    spaces = set[str]()
    for regime, targets in results.by_regime(Negated).items():
        space = results.plan.experiment.space(regime)
        for label in targets[place][0].rows:
            if label != "pretrained" or space not in spaces:
                yield regime, label, [negated.rows[label] for negated in targets[place]]
        spaces.add(space)


class _View:
    """How the figures of one target are shown: each metric in its own unit, and what else its kind tells."""

    def __init__(self, plan: Plan, negated: Negated) -> None:
        self.negated = negated
        self.metric = plan.suite.task(negated.target).metric
        self.controls = [plan.suite.task(name).metric for name in negated.controls]
        first = negated.rows["pretrained"]
        self.classes = len(first.target_recall)
        self.written = first.target_score if self.metric == "score" else None
        self.complement = next((row.trained_on for row in negated.rows.values() if row.trained_on), None)

    @property
    def heads(self) -> list[str]:
        """Heads of the columns that :meth:`figures` fills."""
        control = titled("control", self.controls[0] if len(units_of(self.controls)) == 1 else "")
        forget = f"{self.negated.target} {'↑' if self.metric in LOWER_IS_BETTER else '↓'}"
        more = [f"at {self.written.cut:g} or above ↓", "distinct-2"] if self.written else []
        return [forget, *more, control, *(["recall by class"] if self.classes else [])]

    def figures(self, models: Sequence[Model]) -> list[object]:
        """Target, control, and recall by class or what is told of texts, of one model over seeds."""
        target = [utility(self.metric, model.target) for model in models]
        told = [model.target_score for model in models if model.target_score is not None]
        more = [percent([of.share for of in told]), Mean([of.distinct_2 for of in told], ".3f")]
        return [
            in_unit(self.metric, target),
            *(more if self.written else []),
            mean_in_unit(self.controls, [model.control for model in models]),
            *([_recalls(models)] if self.classes else []),
        ]

    def headline(self, regime: str, before: Sequence[Model], after: Sequence[Model]) -> str:
        """What negation made of the target and the controls."""
        alpha = coefficients([model for model in after if isinstance(model, SearchedModel)])
        values = (
            in_unit(self.metric, [utility(self.metric, model.target) for model in models])
            for models in (before, after)
        )
        controls = (
            mean_in_unit(self.controls, [model.control for model in models]) for models in (before, after)
        )
        return (
            f"negation of {self.negated.target} in regime {regime} at α {alpha} takes its {self.metric} from "
            f"{' to '.join(map(str, values))}, and the control from {' to '.join(map(str, controls))}"
        )

    def utility(self, model: Model, kind: str) -> float:
        """``target`` or ``control`` of a model, more is better."""
        return utility(self.metric, model.target) if kind == "target" else model.control

    def note(self, searches: Mapping[str, Sequence[Searched]]) -> str:
        """How to read the table."""
        best = "highest" if self.metric in LOWER_IS_BETTER else "lowest"
        more = f" Complement: fine-tuned on {self.complement}." if self.complement else ""
        names = ", ".join(self.negated.controls)
        return (
            f"{unit_note([self.metric, *self.controls])}, test. Control: mean of {names}."
            f"{reciprocal_note(self.controls)}{more} α is the one of {best} target value on validation data "
            f"that keeps {100 * self.negated.keep:.0f} % of the control: {search_note(searches)}."
        )


def _recalls(models: Sequence[Model]) -> object:
    recalls = zip(*(model.target_recall for model in models), strict=True)
    classes = [Mean(recall, ".0f", scale=100, spread=False) for recall in recalls]
    return Several(classes, " ") if len(classes) <= 6 else NOTHING


def _chart(results: Results) -> Dots:
    targets = _targets(results)
    views = [_View(results.plan, target) for target in targets]
    relative = any(units_of([view.metric, *view.controls]) != [""] for view in views)
    axis = Axis("test metric, % of pre-trained" if relative else "test metric, %", low=0)
    parts = []
    for place, (target, view) in enumerate(zip(targets, views, strict=True)):
        models = dict(_bars(results, place))
        values = {
            kind: {name: [view.utility(model, kind) for model in of] for name, of in models.items()}
            for kind in ("target", "control")
        }
        units = {kind: fmean(next(iter(of.values()))) if relative else 1.0 for kind, of in values.items()}
        rows = [
            Row(
                name,
                {
                    kind: [100 * value / units[kind] if units[kind] else 0.0 for value in of[name]]
                    for kind, of in values.items()
                },
            )
            for name in models
        ]
        parts.append(Rows(f"forget {target.target}", axis, {"": rows}))
    caption = f"Negation: the target falls, the control stays. {of_seeds(len(results.plan.experiment.seeds))}"
    return Dots("negation", caption, parts)


def _bars(results: Results, place: int) -> Iterator[tuple[str, list[Model]]]:
    """The pre-trained model of each space, and each negated one."""
    for regime, label, models in _models(results, place):
        space = results.plan.experiment.space(regime)
        if label == "pretrained":
            yield "pre-trained" if space == "ordinary" else f"pre-trained, {space}", models
        elif label.startswith("negative"):
            yield f"{regime}, {'random' if 'random' in label else 'negated'}", models
