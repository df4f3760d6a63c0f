"""From numbers to places on a chart: axes, ticks, and how numbers are written."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

_FAR = 1e100
"""What is larger is left out as infinite values are: differences of such numbers overflow."""


def is_shown(value: float | None, log: bool = False) -> TypeGuard[float]:
    """Whether a number has a place on an axis."""
    return value is not None and abs(value) < _FAR and (value > 1 / _FAR or not log)


@dataclass(frozen=True)
class Axis:
    """A name with its unit, and what must be on the axis whatever the numbers are.

    Args:
        low, high: the ends, unless numbers lie beyond them.
        ticks: in place of round numbers.
    """

    name: str = ""
    low: float | None = None
    high: float | None = None
    log: bool = False
    ticks: Sequence[float] = ()


@dataclass(frozen=True)
class Scale:
    """A map from numbers between two ends, which are logarithms if ``log``, to places."""

    ends: tuple[float, float]
    places: tuple[float, float]
    log: bool
    ticks: Sequence[tuple[float, str]]
    """Places and labels."""

    @classmethod
    def over(
        cls, axis: Axis, values: Iterable[float | None], places: tuple[float, float], ticks: int = 5
    ) -> "Scale":
        """The scale on which all numbers have a place.

        Args:
            ticks: about how many.
        """
        fixed = (axis.low, axis.high, *axis.ticks)
        known = [value for value in (*values, *fixed) if is_shown(value, axis.log)]
        known = known or ([1.0, 10.0] if axis.log else [0.0, 1.0])
        low, high = _padded(axis, *(_moved(value, axis.log) for value in (min(known), max(known))))
        scale = cls((low, high), places, axis.log, ())
        chosen = [(value, number(value)) for value in axis.ticks] or _ticks(low, high, axis.log, ticks)
        return cls((low, high), places, axis.log, [(scale.at(value), label) for value, label in chosen])

    def at(self, value: float) -> float:
        """The place of a number, to a tenth."""
        (low, high), (start, end) = self.ends, self.places
        share = (_moved(value, self.log) - low) / (high - low)
        return round(start + share * (end - start), 1)


def _moved(value: float, log: bool) -> float:
    return math.log10(value) if log else value


def _padded(axis: Axis, low: float, high: float) -> tuple[float, float]:
    """Room at the ends that are not fixed, and between ends that are one number."""
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        room = 0.1 * abs(low) or 0.5
        return low - room, high + room
    room = 0.04 * (high - low)
    fixed = [None if end is None else _moved(end, axis.log) for end in (axis.low, axis.high)]
    return low - room * (low != fixed[0]), high + room * (high != fixed[1])


def _ticks(low: float, high: float, log: bool, count: int) -> list[tuple[float, str]]:
    if not log:
        return nice_ticks(low, high, count)
    powers = [10.0**power for power in range(math.floor(low), math.ceil(high) + 1)]
    factors = (1,) if high - low > 2 else (1, 2, 5)
    inside = [
        power * factor
        for power in powers
        for factor in factors
        if low - 1e-9 <= math.log10(power * factor) <= high + 1e-9
    ]
    if len(inside) < 2:
        return nice_ticks(10.0**low, 10.0**high, count)
    return [(value, number(value)) for value in inside[:: max(1, len(inside) // (count + 1))]]


def nice_ticks(low: float, high: float, count: int = 5) -> list[tuple[float, str]]:
    """About ``count`` round numbers from ``low`` to ``high``, with the digits that tell them apart.

    >>> [label for _, label in nice_ticks(0.0, 1.0)]
    ['0.0', '0.2', '0.4', '0.6', '0.8', '1.0']
    """
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * (1 - 1e-9))
    places = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    plain = digits <= 6 and max(abs(low), abs(high)) < 1e6
    return [
        (place * step, _signed(f"{place * step + 0.0:.{digits}f}") if plain else number(place * step))
        for place in places
    ]


def number(value: float) -> str:
    """A number as readers write it, of about four digits.

    >>> number(0.12345), number(-12345.6), number(1e-7)
    ('0.1235', '−12346', '1e−7')
    """
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return _signed(f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}")
    mantissa, _, power = f"{value:.3g}".partition("e")
    return _signed(f"{mantissa}e{int(power)}" if power else mantissa)


def _signed(text: str) -> str:
    return text.replace("-", "−")
