"""95 % intervals by the bootstrap: the figure on examples drawn again, with replacement."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Figure = Callable[[Array, Array, Array], Array]

Interval = tuple[float, float]

DRAWS = 1000
"""Times that examples are drawn again, where a figure is made of sums."""

_FEW = 200
"""The same for a function of labels and predictions, which may take its time."""

_SHARE = (2.5, 97.5)


def of_ratio(above: "Array", below: "Array", seed: int = 0) -> Interval:
    """Of ``sum(above) / sum(below)``, both (N,): a mean for ones below, a loss a token for counts of tokens.

    A draw that has nothing below counts as none.
    """
    draw = np.random.default_rng(seed)
    ratios = np.empty(DRAWS)
    for at in range(DRAWS):
        places = draw.integers(len(above), size=len(above))
        ratios[at] = above[places].sum() / (below[places].sum() or np.nan)
    return percentiles(ratios)


def of_mean(values: "Sequence[float] | Array", seed: int = 0) -> Interval:
    """Of the mean of values (N,)."""
    given = np.asarray(values, dtype=np.float64)
    return of_ratio(given, np.ones(len(given)), seed)


def of_classes(
    labels: "Array", predicted: "Array", classes: int, figures: "Mapping[str, Figure]", seed: int = 0
) -> dict[str, Interval]:
    """Of figures of a classification; labels and predictions are (N,), places in the classes.

    Examples of one label and prediction are alike, so drawing them again is drawing how many there are of
    each: one multinomial.
    """
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

    cells, counts = np.unique(labels * classes + predicted, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(labels), counts / len(labels), size=DRAWS)
    at, true, said = np.arange(len(cells)), cells // classes, cells % classes
    shape = (len(cells), classes)
    sums = [
        drawn @ csr_array((weights, (at, columns)), shape=shape)
        for weights, columns in (
            (np.ones(len(cells)), true),
            (np.ones(len(cells)), said),
            (true == said, said),
        )
    ]
    return {name: percentiles(figure(*sums)) for name, figure in figures.items()}


def of_function(count: int, figure: "Callable[[Array], float]", seed: int = 0) -> Interval | None:
    """Of any figure of the examples at some places; none where it is no number on most of what is drawn.

    Args:
        count: of examples.
        figure: of places (N,); what it raises on a draw, such as one without a class, leaves the draw out.
    """
    draw = np.random.default_rng(seed)
    figures = np.array([_number(figure, draw.integers(count, size=count)) for _ in range(_FEW)])
    return percentiles(figures) if np.isfinite(figures).sum() > _FEW // 2 else None


def percentiles(figures: "Array") -> Interval:
    """The middle 95 % of the finite ones."""
    low, high = np.percentile(figures[np.isfinite(figures)], _SHARE)
    return float(low), float(high)


def _number(figure: "Callable[[Array], float]", places: "Array") -> float:
    try:
        return float(figure(places))
    except Exception:  # whatever a user's function meets in a draw that its data do not hold
        return float("nan")


def macro_f1(true: "Array", predicted: "Array", right: "Array") -> "Array":
    """Mean F1 score (D,) over the classes that occur, of numbers of examples (D, C) by class."""
    both = true + predicted
    return np.asarray((2 * right / np.where(both > 0, both, 1)).sum(1) / (both > 0).sum(1))


def matthews(true: "Array", predicted: "Array", right: "Array") -> "Array":
    """Matthews' correlation coefficient (D,) of numbers of examples (D, C) by class; 0 where undefined."""
    total = true.sum(1)
    covariance = right.sum(1) * total - (true * predicted).sum(1)
    spread = (total**2 - (true**2).sum(1)) * (total**2 - (predicted**2).sum(1))
    return np.asarray(covariance / np.sqrt(np.where(spread > 0, spread, np.inf)))


FIGURES: "Mapping[str, Figure]" = {"macro_f1": macro_f1, "matthews": matthews}
"""By the name of the metric, of how many examples of each class there are, are predicted, and rightly so."""
