"""95 % intervals by the bootstrap: the figure on examples drawn again, with replacement."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Interval = tuple[float, float]

DRAWS = 1000
"""Times that examples are drawn again, where a figure is a sum or comes from a table."""

_FEW = 200
"""The same for a function of labels and predictions, which may take its time."""

_SHARE = (2.5, 97.5)


def of_ratio(above: "NDArray[np.float64]", below: "NDArray[np.float64]", seed: int = 0) -> Interval:
    """Of ``sum(above) / sum(below)``, both (N,): a mean for ones below, a loss a token for counts of tokens.

    A draw that has nothing below counts as none.
    """
    draw = np.random.default_rng(seed)
    ratios = np.empty(DRAWS)
    for at in range(DRAWS):
        places = draw.integers(len(above), size=len(above))
        ratios[at] = above[places].sum() / (below[places].sum() or np.nan)
    return percentiles(ratios)


def of_mean(values: "Sequence[float] | NDArray[np.float64]", seed: int = 0) -> Interval:
    """Of the mean of values (N,)."""
    given = np.asarray(values, dtype=np.float64)
    return of_ratio(given, np.ones(len(given)), seed)


def of_table(
    table: "NDArray[np.int64]", figure: "Callable[[NDArray[np.float64]], NDArray[np.float64]]", seed: int = 0
) -> Interval:
    """Of a figure of the confusion matrix, (C, C) counts; ``figure`` maps (D, C, C) to (D,).

    Examples of one cell are alike, so drawing them again is drawing the cells' counts: one multinomial.
    """
    filled = table > 0
    counts = table[filled]
    total = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(total, counts / total, size=DRAWS)
    figures = np.empty(DRAWS)
    piece = max(1, (1 << 24) // table.size)  # of a large table, few at a time
    for start in range(0, DRAWS, piece):
        tables = np.zeros((len(drawn[start : start + piece]), *table.shape))
        tables[:, filled] = drawn[start : start + piece]
        figures[start : start + piece] = figure(tables)
    return percentiles(figures)


def of_function(count: int, figure: "Callable[[NDArray[np.int64]], float]", seed: int = 0) -> Interval | None:
    """Of any figure of the examples at some places; none where it is no number on most of what is drawn.

    Args:
        count: of examples.
        figure: of places (N,); what it raises on a draw, such as one without a class, leaves the draw out.
    """
    draw = np.random.default_rng(seed)
    figures = np.array([_number(figure, draw.integers(count, size=count)) for _ in range(_FEW)])
    return percentiles(figures) if np.isfinite(figures).sum() > _FEW // 2 else None


def percentiles(figures: "NDArray[np.float64]") -> Interval:
    """The middle 95 % of the finite ones."""
    low, high = np.percentile(figures[np.isfinite(figures)], _SHARE)
    return float(low), float(high)


def _number(figure: "Callable[[NDArray[np.int64]], float]", places: "NDArray[np.int64]") -> float:
    try:
        return float(figure(places))
    except Exception:  # whatever a user's function meets in a draw that its data do not hold
        return float("nan")


def macro_f1(tables: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Mean F1 score (D,) over the classes that occur, of confusion matrices (D, C, C)."""
    both = tables.sum(1) + tables.sum(2)
    score = 2 * np.diagonal(tables, axis1=1, axis2=2) / np.where(both > 0, both, 1)
    return np.asarray(score.sum(1) / (both > 0).sum(1))


def matthews(tables: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Matthews' correlation coefficient (D,) of confusion matrices (D, C, C); 0 where it is undefined."""
    true, predicted = tables.sum(2), tables.sum(1)
    total, right = true.sum(1), np.trace(tables, axis1=1, axis2=2)
    covariance = right * total - (true * predicted).sum(1)
    spread = (total**2 - (true**2).sum(1)) * (total**2 - (predicted**2).sum(1))
    return np.asarray(covariance / np.sqrt(np.where(spread > 0, spread, np.inf)))
