"""What values on several tasks are worth together."""

from collections.abc import Mapping
from statistics import fmean

import torch
from torch import Tensor

from taskvec.errors import InputError
from taskvec.tasks.kinds.classification import score, value
from taskvec.tasks.score import wilson

__all__ = ["absolute", "majority", "normalized", "score", "value", "wilson"]


def majority(labels: Tensor) -> float:
    """Share of the most frequent class: what a constant answer reaches at best."""
    return float(torch.bincount(labels).max()) / len(labels)


def absolute(values: Mapping[str, float]) -> float:
    """Mean over tasks."""
    return fmean(values.values())


def normalized(values: Mapping[str, float], single: Mapping[str, float]) -> float:
    """Mean over tasks of value / single-task value: a mean of ratios, not a ratio of means.

    Args:
        values: of the edited model.
        single: of each task's own model, same regime, same split.

    A task whose single-task value is not positive has no ratio and is left out.

    Raises: InputError if no task has a ratio.
    Source: the protocol of Ilharco et al. 2022 (arXiv:2212.04089).
    """
    ratios = [value / single[task] for task, value in values.items() if single[task] > 0]
    if not ratios:
        raise InputError(
            f"{', '.join(values)}: no single-task score is positive, so nothing can be normalized; "
            "train the tasks better"
        )
    return fmean(ratios)
