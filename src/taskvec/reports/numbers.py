"""What cells of tables hold: numbers, which become text where a table is shown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

NOTHING = "–"


@dataclass(frozen=True)
class Mean:
    """The mean of values, such as one a seed; where there are several, ``±`` their standard deviation.

    Values that are not there (None) are left out; without any the cell is a dash.

    >>> print(Mean([0.5, 0.7], scale=100), Mean([0.25], ".2f"), Mean([-1.0], "+.1f"), Mean([None]))
    60.0 ± 14.1 0.25 −1.0 –

    Args:
        form: of the mean, as for ``format``.
        spread: show the deviation.
    """

    values: Sequence[float | None]
    form: str = ".1f"
    scale: float = 1
    spread: bool = True

    def __str__(self) -> str:
        values = [value for value in self.values if value is not None]
        if not values:
            return NOTHING
        mean = f"{self.scale * fmean(values):{self.form}}"
        if self.form.startswith("+"):
            mean = mean.replace("-", "−")
        if len(values) < 2 or not self.spread:
            return mean
        form = ".2g" if self.form.endswith("g") else self.form.removeprefix("+")
        return f"{mean} ± {self.scale * stdev(values):{form}}"


@dataclass(frozen=True)
class Range:
    """From the smallest to the largest of values, or the one that all of them are.

    >>> print(Range([0.3, 0.5, 0.3]), Range([4, 4]), Range([3, 4], by=" to "))
    0.3–0.5 4 3 to 4
    """

    values: Iterable[float]
    form: str = "g"
    by: str = "–"

    def __str__(self) -> str:
        low, high = (f"{value:{self.form}}" for value in (min(self.values), max(self.values)))
        return low if low == high else f"{low}{self.by}{high}"


@dataclass(frozen=True)
class Several:
    """Numbers that share a cell.

    >>> print(Several([Mean([0.9], scale=100), Mean([1.0], scale=100)]))
    90.0 / 100.0
    """

    parts: Sequence[object]
    by: str = " / "

    def __str__(self) -> str:
        return self.by.join(map(str, self.parts))


def percent(values: Sequence[float | None]) -> Mean:
    """Fractions as per cent."""
    return Mean(values, scale=100)
