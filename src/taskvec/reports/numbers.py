"""What cells of tables hold: numbers, which become text where a table is shown."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Protocol, runtime_checkable

NOTHING = "–"


@runtime_checkable
class Number(Protocol):
    """A cell that is one number, or several in the place of one."""

    @property
    def value(self) -> float | None:
        """What it is sorted by."""

    @property
    def detail(self) -> str:
        """The numbers behind it; nothing where they are seen already."""


def number_of(cell: object) -> float | None:
    """What a cell is sorted by; none for words.

    >>> number_of(Mean([0.5, 0.7], scale=100)), number_of("−1.5 ± 0.2*"), number_of("3 tasks"), number_of("x")
    (60.0, -1.5, 3.0, None)
    """
    if isinstance(cell, Number):
        value = cell.value
    elif isinstance(cell, int | float):
        value = float(cell)
    else:
        found = re.match(r"[+−-]?\d+(\.\d+)?(e[+-]?\d+)?(?=$|[ %*])", str(cell))
        value = float(found[0].replace("−", "-")) if found else None
    return None if value is None or math.isnan(value) else value


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

    @property
    def value(self) -> float | None:
        """The mean."""
        values = [value for value in self.values if value is not None]
        return self.scale * fmean(values) if values else None

    @property
    def detail(self) -> str:
        """Every value."""
        return _listed([f"{self.scale * value:{self.form}}" for value in self.values if value is not None])


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

    @property
    def value(self) -> float | None:
        """The smallest."""
        return float(min(self.values))

    @property
    def detail(self) -> str:
        """Every value, where they differ."""
        values = [f"{value:{self.form}}" for value in self.values]
        return _listed(values) if len(set(values)) > 1 else ""


@dataclass(frozen=True)
class Interval:
    """From one number to another, such as the 95 % of a mean.

    >>> print(Interval(0.89, 0.908, scale=100), Interval(11.5, 12.25, ".4g"))
    [89.0, 90.8] [11.5, 12.25]
    """

    low: float
    high: float
    form: str = ".1f"
    scale: float = 1

    def __str__(self) -> str:
        low, high = (f"{self.scale * end:{self.form}}" for end in (self.low, self.high))
        return f"[{low}, {high}]"

    @property
    def value(self) -> float | None:
        """The middle."""
        return self.scale * (self.low + self.high) / 2

    @property
    def detail(self) -> str:
        """Both ends are seen."""
        return ""


@dataclass(frozen=True)
class Probability:
    """A p-value.

    >>> print(Probability(0.0312), Probability(0.00004), Probability(1.0))
    0.031 <0.001 1.000
    """

    value: float | None

    def __str__(self) -> str:
        if self.value is None:
            return NOTHING
        return f"{self.value:.3f}" if self.value >= 0.001 else "<0.001"

    @property
    def detail(self) -> str:
        """More of its digits."""
        return "" if self.value is None else f"p = {self.value:.3g}"


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

    @property
    def value(self) -> float | None:
        """The first that is a number."""
        return next((value for part in self.parts if (value := number_of(part)) is not None), None)

    @property
    def detail(self) -> str:
        """A line a part."""
        details = [part.detail for part in self.parts if isinstance(part, Number)]
        return "\n".join(filter(None, details))


def _listed(values: Sequence[str]) -> str:
    """Values in their order, the first of many; nothing of one, which is seen already."""
    if len(values) < 2:
        return ""
    more = ", …" if len(values) > _LISTED else ""
    return f"{len(values)} values: {', '.join(values[:_LISTED]).replace('-', '−')}{more}"


_LISTED = 20
"""So many values a tooltip holds."""


def percent(values: Sequence[float | None]) -> Mean:
    """Fractions as per cent."""
    return Mean(values, scale=100)
