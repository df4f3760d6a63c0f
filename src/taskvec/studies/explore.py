"""Coefficients that a reader moves: what decides predictions at every point of a tangent space."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, PositiveInt

from taskvec.config import Config
from taskvec.errors import InputError, TaskvecError
from taskvec.evaluation.linear import LinearFeatures
from taskvec.evaluation.points import TangentPoints
from taskvec.models.heads import Head
from taskvec.reports.block import Block
from taskvec.studies.experiment import Experiment
from taskvec.studies.explored import Explored
from taskvec.studies.exploring import measured_blocks, slider_blocks
from taskvec.studies.numerics.affine import AffineScores, affine_scores
from taskvec.studies.outputs import write_arrays
from taskvec.studies.record import Plain, Record
from taskvec.studies.store import key_of
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial, folder_of
from taskvec.tasks.kinds.classification import Classification
from taskvec.tasks.suite import Suite
from taskvec.tasks.task import Task

ROOM = 600_000
"""Characters of a page for the numbers of all regimes together; one number takes four."""

_FEWEST = 20
"""Examples of a task below which an accuracy that moves says too little."""

_SEED = 0
"""Of the draw of examples."""


class ExploreSettings(Config):
    """Keep what sliders on the page need, of regimes evaluated in tangent space and the first seed."""

    regimes: tuple[str, ...] | None = None
    """Default: the first two whose vectors addition moves one by one, where this computes nothing more."""
    examples: PositiveInt = 500
    """Test examples of each task, drawn at random; fewer where a page has no room for so many numbers."""


def _switch(value: object) -> object:
    if isinstance(value, bool):
        return ExploreSettings() if value else None
    return value


class Explore(Study[ExploreSettings]):
    """Sliders: every coefficient moves, and all accuracies follow."""

    settings = Annotated[ExploreSettings | None, BeforeValidator(_switch)]
    default = ExploreSettings()
    title = "Coefficients, moved by hand"

    def check(self, experiment: Experiment, suite: Suite) -> None:
        experiment.check_regimes("explore", self.block.regimes)
        for regime in self.block.regimes or ():
            if experiment.space(regime) != "tangent":
                raise InputError(
                    f"explore.regimes: {regime!r} is evaluated in ordinary space, where outputs are not "
                    "affine in the coefficients; name regimes of tangent space"
                )

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        regimes = self._regimes(trial.experiment, len(trial.tasks))
        if trial.seed != trial.experiment.seeds[0] or trial.regime not in regimes:
            return
        if all(_why_not(trial.plan.suite.task(task)) for task in trial.tasks):
            return
        most, room = self.block.examples, ROOM // len(regimes)
        keep = partial(_keep, most=most, room=room)
        cell = trial.cell(Explored, keep, trial.tasks, examples=most, room=room)
        place = Path(
            f"seed{trial.seed}", f"{folder_of(trial.regime)}-{key_of(cell.kind.cell, cell.inputs)[:8]}"
        )
        yield replace(cell, compute=partial(keep, place=place), instead=partial(_nothing, tasks=trial.tasks))

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        found = results.of(Explored, regime, seed)
        if not found:
            return {}
        counts = {task: {"examples": of.examples, "of": of.of} for task, of in found[0].tasks.items()}
        return {"explored": {"tasks": counts, "left_out": found[0].left_out}}

    def charts(self, results: Results) -> Iterator[Block]:
        yield from slider_blocks(results)
        yield from measured_blocks(results)

    def _regimes(self, experiment: Experiment, tasks: int) -> Sequence[str]:
        """Those that are explored."""
        if self.block.regimes is not None:
            return self.block.regimes
        addition = getattr(experiment, "addition", None)
        return [
            regime
            for regime in experiment.regimes
            if experiment.space(regime) == "tangent"
            and (addition.searches_each(experiment, regime) if addition else tasks == 1)
        ][:2]


def _why_not(task: Task) -> str:
    """Why sliders cannot show a task; empty for one that they can."""
    if not isinstance(task, Classification):
        return f"is of kind {task.kind}, which has no accuracy"
    return "" if task.metric == "accuracy" else f"is measured by {task.metric}, not by accuracy"


def _why_not_behind(head: Head) -> str:
    """Why what an argmax needs is not affine behind a head."""
    if head.before is None and type(head).forward is Head.forward:
        return ""
    return "has a head of several layers, behind which outputs are not affine in the coefficients"


def _nothing(error: TaskvecError, tasks: Sequence[str]) -> Plain:
    return {"vectors": list(tasks), "tasks": {}, "left_out": dict.fromkeys(tasks, str(error))}


def _keep(trial: Trial, most: int, room: int, place: Path = Path()) -> Plain:
    heads, left_out = _heads(trial)
    numbers = sum(_numbers(head, len(trial.tasks)) for head in heads.values())
    count = min(most, room // (4 * numbers)) if heads else 0
    if count < min(most, _FEWEST):
        left_out |= dict.fromkeys(heads, "has too many classes, for so many vectors, to fit into a page")
        heads = {}
    tasks, arrays = dict[str, Plain](), dict[str, NDArray[Any]]()
    for task, head in heads.items():
        tasks[task], kept = _sample(trial, task, head, count)
        arrays |= {f"{task}.{name}": array for name, array in kept.items()}
    file = write_arrays(trial.lab.store.folder, place, arrays) if arrays else {}
    return {"vectors": list(trial.tasks), "tasks": tasks, "left_out": left_out, **file}


def _heads(trial: Trial) -> tuple[dict[str, Head], dict[str, str]]:
    """The heads of tasks that sliders can show, and why they cannot show the others."""
    left_out = {task: _why_not(trial.evaluator.task(task)) for task in trial.tasks}
    heads = {task: trial.evaluator.head(task) for task, reason in left_out.items() if not reason}
    left_out |= {task: _why_not_behind(head) for task, head in heads.items()}
    heads = {task: head for task, head in heads.items() if not left_out[task]}
    return heads, {task: reason for task, reason in left_out.items() if reason}


def _numbers(head: Head, vectors: int) -> int:
    """How many numbers an example has."""
    lengths = 1 + vectors if head.normalize and head.bias is not None else 0
    return (1 + vectors) * (len(head.classes) - 1 + lengths)


def _sample(trial: Trial, task: str, head: Head, count: int) -> tuple[Plain, dict[str, NDArray[Any]]]:
    """What a record says of a task's examples, and their arrays."""
    assert isinstance(trial.points, TangentPoints)
    features = trial.evaluator.linear_features(trial.points, task, "test")
    index = trial.evaluator.order(task, "test")
    order = np.random.default_rng(_SEED).permutation(len(index))[:count]
    rows = index.numpy().argsort()[order]
    scores = affine_scores(
        _stacked(features, trial.tasks, rows),
        features.labels.numpy()[rows],
        head.weight.double().numpy(),
        None if head.bias is None else head.bias.double().numpy(),
        normalize=head.normalize,
    )
    told = {
        "examples": len(rows),
        "of": len(index),
        "classes": scores.classes,
        "offsets": None if scores.offsets is None else scores.offsets.tolist(),
        "differing": _differing(trial, task, scores, rows),
    }
    return told, {"numbers": scores.numbers, "labels": scores.labels, "places": order}


def _stacked(features: LinearFeatures, vectors: Sequence[str], rows: NDArray[Any]) -> NDArray[np.float64]:
    """(N, T + 1, d) of some rows; a vector that moves nothing has slope 0."""
    base = features.base.double().numpy()[rows]
    slopes = [features.slopes.get(frozenset({task})) for task in vectors]
    moved = [np.zeros_like(base) if slope is None else slope.double().numpy()[rows] for slope in slopes]
    return np.stack([base, *moved], axis=1)


def _differing(trial: Trial, task: str, scores: AffineScores, rows: NDArray[Any]) -> int:
    """Predictions that the evaluation makes otherwise, at 0, 1/T and 1."""
    count, differing = len(trial.tasks), 0
    for coefficient in (0.0, 1 / count, 1.0):
        point = trial.points.at(dict.fromkeys(trial.tasks, coefficient))
        logits = trial.evaluator.logits(point, task, "test")[0][rows]
        there = logits.argmax(dim=1).numpy()
        differing += int((there != scores.predictions([coefficient] * count)).sum())
    return differing
