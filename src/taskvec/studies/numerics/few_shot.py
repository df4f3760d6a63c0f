"""What few-shot adaptation is compared with, each from the same shots and nothing else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.points import Point
from taskvec.models.heads import linear_probe
from taskvec.tasks.kinds.classification import Classifying
from taskvec.tasks.objective import Batch
from taskvec.tasks.score import utility
from taskvec.tasks.source import SplitName
from taskvec.tasks.split import Split
from taskvec.training.regimes import Space
from taskvec.vectors import TaskVector

Note = Callable[[int, TaskVector], None]

Tuned = Callable[[Split, int, Note | None], TaskVector]
"""Fine-tuning on examples for some steps; told of the vector after each step."""

FOLDS = 3
COEFFICIENTS = (1 / 3, 2 / 3, 1.0)
"""Of a single vector."""


@torch.no_grad()
def mean_loss(evaluator: Evaluator, point: Point, task: str, split: SplitName) -> float:
    """The task's loss over the rows of a split."""
    asked, total, rows = evaluator.objective(task).training(), 0.0, 0
    for outputs, batch in evaluator.outputs(point, task, split):
        moved = asked.on(outputs.device)
        moved = moved.at(point) if isinstance(point, Mapping) else moved
        total += float(moved.loss(outputs, batch)) * len(batch.labels)
        rows += len(batch.labels)
    return total / rows


def choose_steps(
    evaluator: Evaluator, task: str, shots: Split, space: Space, steps: Sequence[int], tune: Tuned
) -> int:
    """Of 0 and ``steps``, the number with the least loss on folds of the shots that are held out in turn."""
    totals = dict.fromkeys((0, *steps), 0.0)
    for fold in range(min(FOLDS, len(shots))):
        place = torch.arange(len(shots))
        out = place % FOLDS == fold
        if bool(out.all()):
            return 0  # of one example, nothing is left to train on
        held = evaluator.on_examples("validation", {task: shots.at(place[out])})
        count = int(out.sum())

        def note(step: int, vector: TaskVector, held: Evaluator = held, count: int = count) -> None:
            if step in totals:
                point = held.points({"v": vector}, space=space).at({"v": 1.0})
                totals[step] += count * mean_loss(held, point, task, "validation")

        totals[0] += count * mean_loss(held, held.pretrained, task, "validation")
        tune(shots.at(place[~out]), max(steps), note)
    return min(totals, key=lambda step: totals[step])


def best_single(
    evaluator: Evaluator, task: str, pool: Mapping[str, TaskVector], space: Space
) -> tuple[str, float]:
    """The vector and the coefficient with the least loss on the training split."""
    points = evaluator.points(pool, space=space)
    losses = {
        (name, coefficient): mean_loss(evaluator, points.at({name: coefficient}), task, "train")
        for name in pool
        for coefficient in COEFFICIENTS
    }
    return min(losses, key=lambda choice: losses[choice])


def probe(shots: Evaluator, task: str, strength: float) -> float | None:
    """The test metric of a linear probe on frozen features, as protocols compare it.

    Args:
        shots: whose training split is read.
        strength: C of scikit-learn's ``LogisticRegression``, on features of length 1.

    Returns: none for a task without classes, or with shots of one class.
    """
    asked = shots.objective(task)
    if not isinstance(asked, Classifying):
        return None
    features, labels = shots.features(shots.pretrained, task, "train")
    if len(labels.unique()) < 2:  # type: ignore[no-untyped-call]
        return None
    fitted = replace(asked, head=linear_probe(features, labels, asked.head.classes, strength=strength))
    features, labels = shots.features(shots.pretrained, task, "test")
    with torch.no_grad():
        tally = fitted.tally(features, Batch({}, labels, torch.arange(len(labels))))
    return utility(asked.metric, fitted.value(tally))
