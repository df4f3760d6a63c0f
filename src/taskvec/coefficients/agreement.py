"""Agreement with the tasks' own models, as a signal without labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from taskvec.coefficients.rows import Rows
from taskvec.coefficients.signals import Signal
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.points import TangentPoint
from taskvec.tasks.objective import Batch, Objective
from taskvec.tasks.source import SplitName
from taskvec.training.regimes import Space
from taskvec.vectors import TaskVector


def agreement(logits: Tensor, labels: Tensor, confidence: Tensor) -> Tensor:
    """The cross entropy to what a task's own model answers, where that is to be believed.

        mean of -log p(y_own),  over rows where  argmax p = y_own  or  p_own(y_own) >= max p

    Args:
        logits: (R, C) of the merged model; differentiable in them.
        labels: (R,), int64, y_own, the likeliest class by the task's own model.
        confidence: (R,), p_own(y_own).

    Returns: a scalar; 0 with zero gradient where no row is believed.
    Source: SyMerge (arXiv:2412.19098), without its trained heads.
    """
    with torch.no_grad():
        sure, likeliest = logits.softmax(dim=-1).max(dim=-1)
        believed = (likeliest == labels) | (confidence >= sure)
    losses = cross_entropy(logits[believed], labels[believed], reduction="sum")
    return losses / max(1, int(believed.sum()))


@dataclass(frozen=True)
class Answers:
    """What a task's own model answers on a split, by row.

    Args:
        labels: (R,), int64, the likeliest class.
        confidence: (R,), its probability.
    """

    labels: Tensor
    confidence: Tensor
    rows: Rows

    @classmethod
    def of(cls, labels: Tensor, confidence: Tensor, index: Tensor) -> "Answers":
        """Of rows as they came, ``index`` (R,) telling whose example each is."""
        rows = Rows.of(index)
        return cls(labels[rows.order], confidence[rows.order], rows)

    def on(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and confidence of a batch's rows, whose examples ``index`` names."""
        places = self.rows.places(index)
        return self.labels[places], self.confidence[places]


@torch.no_grad()
def answers_of(
    evaluator: Evaluator, task: str, vector: TaskVector, split: SplitName, space: Space
) -> Answers:
    """What the model with a task's own vector answers on a split, computed once.

    Raises: InputError for a kind of task that predicts no distribution.
    """
    point = evaluator.points({task: vector}, space=space).at({task: 1.0})
    objective = evaluator.objective(task)
    objective = objective if isinstance(point, TangentPoint) else objective.at(point)
    labels, confidence, index = list[Tensor](), list[Tensor](), list[Tensor]()
    for outputs, batch in evaluator.outputs(point, task, split):
        sure, likeliest = objective.on(outputs.device).logits(outputs).softmax(dim=-1).max(dim=-1)
        for kept, found in ((labels, likeliest), (confidence, sure), (index, batch.index)):
            kept.append(found.cpu())
    return Answers.of(*map(torch.cat, (labels, confidence, index)))


def agreement_signal(
    evaluator: Evaluator,
    vectors: Mapping[str, TaskVector],
    tasks: Sequence[str],
    split: SplitName,
    space: Space = "ordinary",
) -> Signal:
    """The signal of a step: agreement with each task's own model, which its vector makes.

    Raises: InputError for a task without a vector of its name.
    """
    for task in tasks:
        if task not in vectors:
            raise InputError(
                f"{task}: signal agreement asks the task's own model, and no vector has the name of the task "
                f"(vectors: {', '.join(vectors)}); name its vector so, or take signal: entropy"
            )
    answers = {task: answers_of(evaluator, task, vectors[task], split, space) for task in tasks}

    def signal(task: str, objective: Objective, outputs: Tensor, batch: Batch) -> Tensor:
        labels, confidence = answers[task].on(batch.index.cpu())
        return agreement(objective.logits(outputs), labels.to(outputs.device), confidence.to(outputs))

    return signal
