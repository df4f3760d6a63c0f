"""Task negation: forget one task, keep the others."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from taskvec.arguments import checked
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.metrics import absolute
from taskvec.evaluation.points import Points
from taskvec.evaluation.search import Grid, search_negation
from taskvec.reports.drawing import Drawing, axes_in_a_row
from taskvec.reports.numbers import NOTHING, Mean, Several, percent
from taskvec.reports.tables import Table
from taskvec.studies.experiment import Experiment
from taskvec.studies.measured import Searched, coefficients, search_inputs, search_note
from taskvec.studies.record import Plain, Record
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.score import Score
from taskvec.tasks.suite import Suite
from taskvec.vectors import TaskVector

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NegationSettings(Config):
    """Subtract the vectors of some tasks; keep the controls."""

    targets: tuple[str, ...] = Field(min_length=1)
    controls: tuple[str, ...] | None = None
    """Default: the suite's control task, or all other tasks of the experiment."""
    keep: float = Field(default=0.95, gt=0, le=1)
    """Share of the controls' mean validation value that must remain."""
    baselines: tuple[Literal["random", "ascent"], ...] = ("random", "ascent")
    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment."""


class Model(Record):
    """One model on the target and on the controls."""

    target: float
    control: float
    target_recall: list[float | None]


class SearchedModel(Model, Searched):
    """One whose coefficient was searched."""


class Negated(Record):
    """What one target's negation gave: a row a model, the pre-trained one first."""

    cell = "negation"
    target: str
    controls: list[str]
    keep: float
    rows: dict[str, Annotated[SearchedModel | Model, Field(union_mode="left_to_right")]]


class Negation(Study[NegationSettings]):
    """Every target by itself, in every regime."""

    settings = NegationSettings

    def check(self, experiment: Experiment, suite: Suite) -> None:
        experiment.check_regimes("negation", self.block.regimes)
        for target in self.block.targets:
            if not self._controls(experiment, suite, target):
                raise InputError(f"negation: no control task is left for the target {target!r}")

    def tasks(self, experiment: Experiment, suite: Suite) -> Iterator[str]:
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
            yield trial.cell(Negated, job, [target, *controls], **inputs)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        targets = results.stored(Negated, regime, seed)
        return {"negation": targets} if targets else {}

    def tables(self, results: Results) -> Iterator[Table]:
        for place, target in enumerate(_targets(results)):
            rows: list[tuple[object, ...]] = []
            searches: dict[str, Sequence[Searched]] = {}
            for regime, label, models in _models(results, place):
                name = f"{regime}: {label}"
                if label == "pretrained":
                    space = results.plan.experiment.space(regime)
                    name = "pre-trained" if space == "ordinary" else f"pre-trained, {space} space"
                searched = [model for model in models if isinstance(model, SearchedModel)]
                if searched:
                    searches[name] = searched
                rows.append((name, coefficients(searched) if searched else "", *_figures(models)))
            note = (
                f"Per cent, test. Control: mean of {', '.join(target.controls)}. α is the one of lowest "
                f"target value on validation data that keeps {100 * target.keep:.0f} % of the control: "
                f"{search_note(searches)}."
            )
            columns = ("", "α", f"{target.target} ↓", "control", "recall by class")
            yield Table(f"Negation of {target.target}", columns, rows, note)

    def drawings(self, results: Results) -> Iterator[Drawing]:
        if _targets(results):
            caption = "Negation: the target falls, the control stays."
            yield Drawing("negation", caption, partial(_draw, results))


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
    kept = {task: score.value for task, score in scores.items() if task != target}
    return {
        "target": scores[target].value,
        "control": absolute(kept),
        "controls": kept,
        "target_recall": scores[target].recall,
        "target_score": scores[target].record(),
    }


def _negate(trial: Trial, target: str, controls: Sequence[str], settings: NegationSettings) -> Plain:
    vectors = {"fine-tuned": trial.vector(target)}
    if "random" in settings.baselines:
        vectors["random"] = TaskVector.random_like(vectors["fine-tuned"], seed=trial.seed)
    if "ascent" in settings.baselines:
        vectors["ascent"] = trial.vector(target, ascend=True)
    return negation(
        trial.evaluator,
        trial.points_of(vectors),
        target,
        controls,
        subtract=[label for label in ("fine-tuned", "random") if label in vectors],
        measure=[label for label in ("fine-tuned", "ascent") if label in vectors],
        grid=trial.experiment.search,
        keep=settings.keep,
    )


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


def _figures(models: Sequence[Model]) -> tuple[object, object, object]:
    """Target, control and recall by class of one model, over seeds."""
    recalls = zip(*(model.target_recall for model in models), strict=True)
    classes = [Mean(recall, ".0f", scale=100, spread=False) for recall in recalls]
    return (
        percent([model.target for model in models]),
        percent([model.control for model in models]),
        Several(classes, " ") if len(classes) <= 6 else NOTHING,
    )


def _draw(results: Results) -> "Figure":
    targets = _targets(results)[:4]
    bars = [dict(_bars(results, place)) for place in range(len(targets))]
    wide = len(bars[0])
    upright = wide > 5
    figure, axes = axes_in_a_row(len(targets), max(3.6, 0.7 + 0.4 * wide), 4.6 if upright else 3.2)
    for ax, target, models in zip(axes, targets, bars, strict=True):
        for shift, kind in ((-0.2, "target"), (0.2, "control")):
            heights = [100 * fmean(getattr(model, kind) for model in seeds) for seeds in models.values()]
            ax.bar([i + shift for i in range(wide)], heights, 0.4, label=kind)
        ax.set_xticks(range(wide), list(models), fontsize="small", rotation=90 if upright else 0)
        ax.set_title(f"forget {target.target}", fontsize="medium")
        ax.set_ylim(0, 118)  # room for the legend
    axes[0].set_ylabel("test metric, %")
    axes[0].legend(frameon=False, ncols=2, loc="upper left")
    return figure


def _bars(results: Results, place: int) -> Iterator[tuple[str, list[Model]]]:
    """The pre-trained model of each space, and each negated one."""
    for regime, label, models in _models(results, place):
        space = results.plan.experiment.space(regime)
        if label == "pretrained":
            yield "pre-trained" if space == "ordinary" else f"pre-trained,\n{space}", models
        elif label.startswith("negative"):
            yield f"{regime}\n{'random' if 'random' in label else 'negated'}", models
