"""What a set of predictions is worth."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from taskvec.arguments import brief, checked
from taskvec.errors import InputError, TaskvecError
from taskvec.registry import nearest
from taskvec.tasks.metrics import METRICS

_STANDARD = ("accuracy", "macro_f1", "matthews")
"""The metrics that every score holds, whatever the task's own is."""


@dataclass(frozen=True)
class Score:
    """All figures of one model on one split; fractions, not per cent."""

    metric: str
    """The task's own metric, of ``METRICS``: the one that ``value`` holds and that protocols compare."""
    value: float
    accuracy: float
    interval: tuple[float, float]
    """95 % Wilson interval of the accuracy."""
    macro_f1: float
    matthews: float
    perplexity: float
    """exp of the mean cross entropy of the labels."""
    recall: tuple[float | None, ...]
    """Per class, in class order; none for a class without examples."""
    examples: int

    def record(self) -> dict[str, object]:
        """The figures as plain data."""
        return asdict(self)


@checked
def score(logits: Tensor, labels: Tensor, metric: str = "accuracy") -> Score:
    """Compare ``logits`` (N, C), any float dtype, with ``labels`` (N,), int64.

    Raises: InputError for no examples, or a metric that is not one of ``METRICS``.
    """
    from sklearn.metrics import recall_score  # imports as much as torch does: only what scores pays for it

    figures = {name: value(logits, labels, name) for name in _STANDARD}
    recall = recall_score(
        labels.numpy(),
        logits.argmax(dim=1).numpy(),
        labels=list(range(logits.shape[1])),
        average=None,
        zero_division=math.nan,
    )
    loss = cross_entropy(logits.float(), labels).item()
    return Score(
        metric=metric,
        value=value(logits, labels, metric),
        interval=wilson(round(figures["accuracy"] * len(labels)), len(labels)),
        perplexity=math.exp(min(loss, 700.0)),
        recall=tuple(None if math.isnan(r) else float(r) for r in recall),
        examples=len(labels),
        **figures,
    )


def value(logits: Tensor, labels: Tensor, metric: str) -> float:
    """One metric of ``logits`` (N, C) against ``labels`` (N,), int64.

    Raises: InputError for no examples, or a metric that is not one of ``METRICS``; TaskvecError for one that
        gives no finite number.
    """
    if len(labels) == 0:
        raise InputError("nothing to score: the split is empty")
    if metric not in METRICS:
        raise InputError(f"no metric called {metric!r}; {nearest(metric, METRICS)}")
    result = METRICS[metric](labels, logits.argmax(dim=1))
    try:
        figure = float(result)
    except (TypeError, ValueError):
        raise TaskvecError(f"metric {metric!r}: gave {brief(result)}, expected a number") from None
    if not math.isfinite(figure):
        raise TaskvecError(
            f"metric {metric!r}: gave {figure} on {len(labels)} examples, expected a finite number"
        )
    return figure


def wilson(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a proportion; ``z`` standard deviations, 95 % by default."""
    p = hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


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
