"""What a task is measured by: from labels and predicted classes to a figure."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    Metric = Callable[[Tensor, Tensor], float]


def accuracy(labels: "Tensor", predicted: "Tensor") -> float:
    """Share of the predictions that are right."""
    return int((predicted == labels).sum()) / len(labels)


def macro_f1(labels: "Tensor", predicted: "Tensor") -> float:
    """Mean over classes of the F1 score."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels.numpy(), predicted.numpy(), average="macro", zero_division=0.0))


def matthews(labels: "Tensor", predicted: "Tensor") -> float:
    """Matthews' correlation coefficient, -1 to 1."""
    from sklearn.metrics import matthews_corrcoef

    if len(set(labels.tolist()) | set(predicted.tolist())) == 1:
        return 0.0  # what scikit-learn gives too, with a warning about a matrix that nobody asked for
    return float(matthews_corrcoef(labels.numpy(), predicted.numpy()))


METRICS: "dict[str, Metric]" = {"accuracy": accuracy, "macro_f1": macro_f1, "matthews": matthews}
"""From labels (N,) and predicted classes (N,), int64, to a finite figure of which more is better.

Put your own in before the suites that name it are loaded: ``METRICS["kappa"] = kappa``. Tasks with
``metric: kappa`` then report it, are searched by it, and are normalized by it; the other figures of a score
stay as they are. Records know a metric by its name, so give a changed one another name.
"""
