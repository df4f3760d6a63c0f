"""Heat maps over a plane of two coefficients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from taskvec.reports.charts.chart import Chart, Panel, frame_below, frame_beside, heading, shown
from taskvec.reports.charts.matrix import Numbers, Tint, round_to, shaded
from taskvec.reports.charts.scales import Axis, Scale, is_shown, number
from taskvec.reports.charts.svg import Element, element, written

_SIDE, _TOP, _LEFT = 216.0, 34.0, 34.0


@dataclass(frozen=True)
class Plane:
    """One panel: rows are values of the first coefficient, which runs to the right."""

    title: str
    values: Numbers


@dataclass(frozen=True)
class Heat(Chart):
    """Panels of one scale of colours, on one grid of coefficients.

    Args:
        names: of the two coefficients.
        square: corners of a square that the reader is to see, such as where coefficients mostly lie.
    """

    names: tuple[str, str] = ("", "")
    grid: Sequence[float] = ()
    planes: Sequence[Plane] = field(default_factory=list)
    tint: Tint = field(default_factory=lambda: Tint(0.0, 1.0))
    square: tuple[float, float] | None = (-1.0, 1.0)

    def panels(self) -> list[Panel]:
        """A drawing a plane; none on a grid without points."""
        return [self._draw(plane) for plane in self.planes] if self.grid else []

    def data(self) -> Mapping[str, Any]:
        """The grid, and the numbers of every plane from its lower left, row by row."""
        return {
            "grid": [round_to(value) for value in self.grid],
            "names": list(self.names),
            "unit": self.tint.unit,
            "heat": [
                [[round_to(value) for value in row] for row in zip(*plane.values, strict=True)]
                for plane in self.planes
            ],
        }

    def _draw(self, plane: Plane) -> Panel:
        half = (self.grid[-1] - self.grid[0]) / (2 * max(1, len(self.grid) - 1)) or 0.5
        ends = (self.grid[0] - half, self.grid[-1] + half)
        x_axis, y_axis = (Axis(name, *ends) for name in self.names)
        x = Scale.over(x_axis, (), (_LEFT, _LEFT + _SIDE))
        y = Scale.over(y_axis, (), (_TOP + _SIDE, _TOP))
        place = {"left": _LEFT, "top": _TOP, "wide": _SIDE / len(self.grid), "high": _SIDE / len(self.grid)}
        told_of = {f"data-{name}": f"{value:.6g}" for name, value in place.items()}
        shapes = [
            *heading(plane.title, _LEFT + _SIDE),
            *frame_beside(y_axis, y, _LEFT, _LEFT + _SIDE),
            *frame_below(x_axis, x, _TOP, _TOP + _SIDE),
            Element("g", {"class": "heat", **told_of}, self._cells(plane)),
            *self._square(x, y),
            *self.tint.legend(_LEFT, _TOP + _SIDE + 38, _SIDE),
        ]
        return Panel(plane.title, self._said(plane), _LEFT + _SIDE + 10, _TOP + _SIDE + 64, shapes)

    def _cells(self, plane: Plane) -> list[Element]:
        """A path a shade: neighbours of one shade in a row are one rectangle."""
        side = _SIDE / len(self.grid)
        shades: dict[tuple[str, float], list[str]] = {}
        for row, values in enumerate(zip(*plane.values, strict=True)):
            column, y = 0, _TOP + _SIDE - side * (row + 1)
            for shade, run in groupby(values, self.tint.shade):
                count = len(list(run))
                across = written(side * count)
                box = f"M{written(_LEFT + side * column)} {written(y)}h{across}v{written(side)}h-{across}z"
                shades.setdefault(shade, []).append(box)
                column += count
        return [
            element("path", class_=kind, d="".join(boxes), fill_opacity=shaded(opacity))
            for (kind, opacity), boxes in shades.items()
        ]

    def _square(self, x: Scale, y: Scale) -> list[Element]:
        if self.square is None or not self.grid[0] <= self.square[0] < self.square[1] <= self.grid[-1]:
            return []
        low, high = self.square
        d = f"M{x.at(low):g} {y.at(low):g}H{x.at(high):g}V{y.at(high):g}H{x.at(low):g}z"
        return [element("path", class_="square", d=d)]

    def _said(self, plane: Plane) -> str:
        known = [
            (value, first, second)
            for first, values in zip(self.grid, plane.values, strict=True)
            for second, value in zip(self.grid, values, strict=True)
            if is_shown(value)
        ]
        if not known:
            return f"{self.tint.unit}: no finite number."
        low, high = min(known), max(known)
        where = [f"{number(of[0])} at ({number(of[1])}, {number(of[2])})" for of in (low, high)]
        return f"{self.tint.unit} over {' and '.join(self.names)}: lowest {where[0]}, highest {where[1]}."


def all_values(planes: Sequence[Plane]) -> list[float]:
    """The finite numbers of all planes, for their scale."""
    return [value for plane in planes for row in plane.values for value in shown(row)]
