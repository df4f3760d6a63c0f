"""Maps of numbers: matrices with the numbers in their cells, and layers by tasks without."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskvec.reports.charts.chart import LINE, Chart, Panel, heading, shown
from taskvec.reports.charts.scales import is_shown, number
from taskvec.reports.charts.svg import Element, element, label, width_of, written

Numbers = Sequence[Sequence[float | None]]

_NAMES, _HEIGHT = 150.0, 20.0
_LEVELS = 20
"""Shades of a colour."""
_APART = 24
"""The most columns of a map without numbers whose cells are shapes of their own."""


@dataclass(frozen=True)
class Tint:
    """What colours mean: from ``low`` to ``high`` one hue, or a hue each below and above 0.

    Args:
        unit: what the legend calls the numbers.
    """

    low: float
    high: float
    unit: str = ""
    diverging: bool = False

    @classmethod
    def around_zero(cls, values: Sequence[float | None], unit: str = "", least: float = 0.0) -> "Tint":
        """The same shade for a number and its negative."""
        top = max([least, *map(abs, shown(values))]) or 1.0
        return cls(-top, top, unit, diverging=True)

    @classmethod
    def between(
        cls,
        values: Sequence[float | None],
        unit: str = "",
        low: float | None = None,
        high: float | None = None,
    ) -> "Tint":
        """From the smallest number, or ``low``, to the largest, or ``high``."""
        known = shown(values) or [0.0, 1.0]
        bottom, top = min(known) if low is None else low, max(known) if high is None else high
        return cls(bottom, top if top > bottom else bottom + 1.0, unit)

    def shade(self, value: float | None) -> tuple[str, float]:
        """The class of a number's colour, and its opacity in steps."""
        if not is_shown(value):
            return "none", 1.0
        if self.diverging:
            return ("minus" if value < 0 else "plus"), self._step(abs(value) / self.high)
        return "plus", self._step((value - self.low) / (self.high - self.low))

    def _step(self, share: float) -> float:
        return round(min(1.0, max(0.0, share)) * _LEVELS) / _LEVELS

    def legend(self, x: float, y: float, width: float) -> Iterator[Element]:
        """A strip of all shades with the numbers at its ends."""
        count = 2 * _LEVELS if self.diverging else _LEVELS
        side = width / count
        for place in range(count):
            value = self.low + (place + 0.5) / count * (self.high - self.low)
            name, opacity = self.shade(value)
            yield element(
                "rect",
                class_=name,
                x=x + side * place,
                y=y,
                width=side,
                height=8,
                fill_opacity=shaded(opacity),
            )
        yield element("text", number(self.low), class_="end", x=x, y=y + 20)
        yield label(self.unit, x + width / 2, y + 20, 0.6 * width, class_="name", text_anchor="middle")
        yield element("text", number(self.high), class_="end", x=x + width, y=y + 20, text_anchor="end")


def shaded(opacity: float) -> str:
    """As an attribute has it."""
    return f"{opacity:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Map:
    """One panel: numbers by row and column, and what they are called."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Numbers


@dataclass(frozen=True)
class Matrix(Chart):
    """Panels of one scale of colours.

    Args:
        form: of the numbers in the cells; empty for cells without.
        across, down: what columns and rows are.
    """

    grids: Sequence[Map] = field(default_factory=list)
    tint: Tint = field(default_factory=lambda: Tint(0.0, 1.0))
    form: str = ".2f"
    across: str = ""
    down: str = ""

    def panels(self) -> list[Panel]:
        """A drawing a grid."""
        return [self._draw(grid) for grid in self.grids]

    def data(self) -> Mapping[str, Any]:
        """The numbers, with names of rows and columns."""
        return {
            "maps": [
                {
                    "rows": list(grid.rows),
                    "columns": list(grid.columns),
                    "values": [[round_to(value) for value in row] for row in grid.values],
                }
                for grid in self.grids
            ]
        }

    def _draw(self, grid: Map) -> Panel:
        wide = self._width(grid)
        left = min(_NAMES, max([24.0, *(width_of(name) + 8 for name in grid.rows)]))
        tilted = min(90.0, max([12.0, *(0.75 * width_of(name) + 6 for name in grid.columns)]))
        named = tilted if wide >= 14 else LINE
        top = (LINE if grid.title else 0) + named + 4
        width = left + wide * len(grid.columns)
        full = max(width + (0.75 * tilted if wide >= 14 else 4), 200.0)
        bottom = top + _HEIGHT * len(grid.rows)
        place = {"left": left, "top": top, "wide": wide, "high": _HEIGHT}
        told_of = {f"data-{name}": f"{value:g}" for name, value in place.items()}
        rows = [
            self._row(name, values, left, top + _HEIGHT * turn, wide)
            for turn, (name, values) in enumerate(zip(grid.rows, grid.values, strict=True))
        ]
        shapes = [
            *heading(grid.title, full),
            *self._columns(grid, left, top, wide),
            Element("g", {"class": "map", **told_of}, rows),
            *self.tint.legend(left, bottom + 8, max(min(width - left, 240.0), 120.0)),
        ]
        return Panel(grid.title, self._said(grid), max(full, left + 124.0), bottom + 32, shapes)

    def _width(self, grid: Map) -> float:
        """Of a cell: room for its number, or for as many columns as there are."""
        if self.form:
            longest = max([1, *(len(f"{value:{self.form}}") for row in grid.values for value in shown(row))])
            return max(26.0, 6.6 * longest + 6)
        return max(4.0, min(26.0, 320 / max(1, len(grid.columns))))

    def _columns(self, grid: Map, left: float, top: float, wide: float) -> Iterator[Element]:
        """Names over the columns, tilted; of narrow columns what they are, from the first to the last."""
        if wide < 14:
            text = f"{self.across}: {grid.columns[0]} → {grid.columns[-1]}" if grid.columns else ""
            yield label(text, left, top - 5, max(200.0, wide * len(grid.columns)), class_="name")
            return
        for place, name in enumerate(grid.columns):
            x, y = left + wide * (place + 0.5), top - 5
            yield label(
                name,
                0,
                0,
                110,
                class_="column",
                transform=f"translate({x:g} {y:g})rotate(-40)",
            )

    def _row(self, name: str, values: Sequence[float | None], left: float, y: float, wide: float) -> Element:
        cells = self._cells if self.form or len(values) <= _APART else self._runs
        head = label(name, left - 5, 14, left - 5, text_anchor="end", class_="row")
        return element("g", head, *cells(values, left, wide), transform=f"translate(0 {y:g})")

    def _cells(self, values: Sequence[float | None], left: float, wide: float) -> Iterator[Element]:
        """Each by itself."""
        for place, value in enumerate(values):
            kind, opacity = self.tint.shade(value)
            size = {"width": wide - 1, "height": _HEIGHT - 1}
            cell = [element("rect", class_=kind, fill_opacity=shaded(opacity), **size)]
            if self.form:
                text = f"{value:z{self.form}}".replace("-", "−") if is_shown(value) else "–"
                deep = "deep" if opacity > 0.55 and kind != "none" else None
                cell += [element("text", text, class_=deep, x=wide / 2 - 0.5, y=14, text_anchor="middle")]
            yield element("g", *cell, class_="cell", transform=f"translate({left + wide * place:g} 0)")

    def _runs(self, values: Sequence[float | None], left: float, wide: float) -> Iterator[Element]:
        """A path a shade, for many columns."""
        shades: dict[tuple[str, float], list[str]] = {}
        for place, value in enumerate(values):
            run = f"M{written(left + wide * place)} 0h{written(wide)}v{_HEIGHT - 1:g}h-{written(wide)}z"
            shades.setdefault(self.tint.shade(value), []).append(run)
        for (kind, opacity), runs in shades.items():
            yield element("path", class_=kind, d="".join(runs), fill_opacity=shaded(opacity))

    def _said(self, grid: Map) -> str:
        known = [
            (value, row, column)
            for row, values in zip(grid.rows, grid.values, strict=True)
            for column, value in zip(grid.columns, values, strict=True)
            if is_shown(value) and row != column
        ]
        size = f"{len(grid.rows)} rows by {len(grid.columns)} columns"
        about = ", ".join(filter(None, (self.down, self.across)))
        ends = (
            [
                f"{word} {number(value)} at {row}, {column}"
                for word, (value, row, column) in (("lowest", min(known)), ("highest", max(known)))
            ]
            if known
            else []
        )
        return f"{'; '.join(filter(None, [about, size, *ends]))}."


def round_to(value: float | None) -> float | None:
    """Four digits, for the script."""
    return float(f"{value:.4g}") if is_shown(value) else None
