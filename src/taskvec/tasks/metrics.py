"""What a task is measured by: from labels and predictions to a figure."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.arguments import brief
from taskvec.code import named_callable, names_code
from taskvec.errors import InputError, TaskvecError
from taskvec.reading import printable, shortened
from taskvec.registry import nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from taskvec.tasks.intervals import Interval

    Metric = Callable[[Tensor, Tensor], float]

OwnMetric = Callable[[Any, Any], Any]
"""A metric of the user's: of labels and predictions, tensors or lists of texts, to a number."""


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


def check_metric(name: str) -> str:
    """A name of ``METRICS``, or ``module:function``. Raises: ValueError."""
    if name not in METRICS and not names_code(name):
        raise ValueError(f"no metric called {name!r}; {nearest(name, METRICS)}")
    return name


def metric_called(name: str, where: str = "metric", folder: Path | None = None) -> OwnMetric:
    """The function behind the name of a metric, imported if it is the user's own.

    Args:
        where, folder: see ``named_callable``.

    Raises: InputError for one that there is not.
    """
    if name in METRICS:
        return METRICS[name]
    if names_code(name):
        return named_callable(name, where, folder)
    raise InputError(f"no metric called {name!r}; {nearest(name, METRICS)}")


def figure_of(name: str, metric: OwnMetric, labels: Any, predicted: Any) -> float:
    """A metric of labels and predictions, N each.

    Raises: InputError if it raises; TaskvecError if it gives no finite number.
    """
    try:
        result = metric(labels, predicted)
    except Exception as error:
        reason = printable(shortened(" ".join(str(error).split()), 160))
        raise InputError(
            f"metric {name!r}: raised {type(error).__name__}: {reason}, given {len(labels)} labels and "
            "predictions; expected a number"
        ) from error
    try:
        figure = float(result)
    except (TypeError, ValueError):
        raise TaskvecError(f"metric {name!r}: gave {brief(result)}, expected a number") from None
    if not math.isfinite(figure):
        raise TaskvecError(
            f"metric {name!r}: gave {figure} on {len(labels)} examples, expected a finite number"
        )
    return figure


def own_interval(metric: OwnMetric, labels: Any, predicted: Any) -> "Interval | None":
    """The bootstrap's 95 % interval of any metric; none where it has no figure on most of what is drawn."""
    from taskvec.tasks.intervals import of_function

    def drawn(places: "NDArray[Any]") -> float:
        return float(metric(_at(labels, places), _at(predicted, places)))

    return of_function(len(labels), drawn)


def _at(values: Any, places: "NDArray[Any]") -> Any:
    return [values[place] for place in places] if isinstance(values, list) else values[places]
