"""A few labelled examples of a task, drawn by a seed."""

import torch
from torch import Tensor

from taskvec.evaluation.evaluator import Evaluator
from taskvec.tasks.kinds.classification import Classifying
from taskvec.tasks.source import SplitName
from taskvec.tasks.split import Split
from taskvec.tasks.task import Task


def draw_shots(split: Split, shots: int, seed: int, *, by_class: bool) -> Tensor:
    """Places of ``shots`` examples of each class, or of ``shots`` examples in all; in increasing order.

    A class with fewer gives all that it has. With the same seed, fewer shots are some of more.
    """
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    if not by_class:
        return order[:shots].sort().values
    labels = split.labels[order]
    present = sorted(set(labels.tolist()))
    return torch.cat([order[labels == label][:shots] for label in present]).sort().values


def shots_of(
    evaluator: Evaluator, task: str, shots: int, seed: int, split: SplitName
) -> tuple[Split, Tensor]:
    """A few examples of a split of a task, and their places in it; of a classification, of each class."""
    whole = evaluator.objective(task).examples(evaluator.backbone, evaluator.split(task, split))
    places = draw_shots(whole, shots, seed, by_class=has_classes(evaluator, task))
    return whole.at(places), places


def labels_of_head(evaluator: Evaluator, task: str) -> int:
    """Labels that the task's frozen head was fitted on: of a probe, all of the training split."""
    asked = evaluator.task(task)
    return len(asked.split("train")) if has_probe(asked) else 0


def has_probe(task: Task) -> bool:
    """Whether a task's frozen head is fitted on its training labels."""
    return getattr(task, "head", None) == "linear-probe"


def has_classes(evaluator: Evaluator, task: str) -> bool:
    """Whether shots of a task are of each class."""
    return isinstance(evaluator.objective(task), Classifying)
