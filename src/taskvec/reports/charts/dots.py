"""Rows of dots with intervals over seeds: methods under heads, tasks before and after."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from taskvec.reports.charts.chart import (
    LINE,
    Chart,
    Key,
    Panel,
    frame_below,
    heading,
    places_of,
    reach,
    shown,
    told,
)
from taskvec.reports.charts.scales import Axis, Scale, is_shown, number
from taskvec.reports.charts.svg import Element, element, label, marker, style_of, width_of

_PLOT, _NAMES = 220.0, 230.0
"""Widths of the plot, and of names at most."""

Values = Sequence[float | None]


@dataclass(frozen=True)
class Row:
    """A name, and the values of every series there, such as one a seed.

    Args:
        interval: of their mean, in place of the values' deviation.
    """

    name: str
    values: Mapping[str, Values]
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Rows:
    """One panel.

    Args:
        groups: rows by their head; an empty one is not written.
        levels: values of vertical lines, by their names.
    """

    title: str
    axis: Axis
    groups: Mapping[str, Sequence[Row]]
    levels: Mapping[str, float] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """Of all groups."""
        return [row for rows in self.groups.values() for row in rows]


@dataclass(frozen=True)
class Dots(Chart):
    """Panels that share their legend; a single series is coloured by group."""

    parts: Sequence[Rows] = field(default_factory=list)

    def panels(self) -> list[Panel]:
        """A drawing a panel."""
        return [_draw(part, self._series()) for part in self.parts]

    def legend(self) -> list[Key]:
        """The series, if there are several."""
        series = self._series()
        return [Key(name, place) for name, place in series.items() if len(series) > 1]

    def _series(self) -> dict[str, int]:
        return places_of(name for part in self.parts for row in part.rows() for name in row.values)


def _draw(part: Rows, series: Mapping[str, int]) -> Panel:
    names = [row.name for row in part.rows()]
    left = min(_NAMES, max([40.0, *(width_of(name) + 10 for name in names)]))
    step = 16.0 if len(series) == 1 else min(34.0, 8.0 + 7.0 * len(series))
    heads = sum(LINE + 6 for head in part.groups if head)
    top = (LINE if part.title else 0) + 6
    bottom = top + heads + step * len(names)
    numbers = [
        value
        for row in part.rows()
        for values in row.values.values()
        for value in (*reach(values, part.axis.log, spread=row.interval is None), *(row.interval or ()))
    ]
    scale = Scale.over(part.axis, [*numbers, *part.levels.values()], (left + 4, left + _PLOT - 10), 4)
    width = left + _PLOT
    shapes = [
        *heading(part.title, width),
        *frame_below(part.axis, scale, top, bottom),
        *(_level(name, value, scale, top, bottom) for name, value in part.levels.items() if is_shown(value)),
        *_groups(part, series, scale, left, top, step),
    ]
    return Panel(part.title, _said(part), width, bottom + 32, shapes)


def _level(name: str, value: float, scale: Scale, top: float, bottom: float) -> Element:
    title = element("title", f"{name}: {number(value)}")
    return element("path", title, class_="rule dashed mark", d=f"M{scale.at(value):g} {top:g}V{bottom:g}")


def _groups(
    part: Rows, series: Mapping[str, int], scale: Scale, left: float, top: float, step: float
) -> Iterator[Element]:
    y = top
    for group, (head, rows) in enumerate(part.groups.items()):
        if head:
            y += LINE + 6
            yield label(head, 0, y - 5, left + _PLOT, class_="head small")
        for row in rows:
            yield label(row.name, left - 6, y + step / 2 + 4, left - 6, text_anchor="end")
            yield from _row(row, series, group, scale, y + step / 2, step)
            y += step


def _row(
    row: Row, series: Mapping[str, int], group: int, scale: Scale, middle: float, step: float
) -> Iterator[Element]:
    """Series side by side where there is room."""
    count = len(series)
    apart = 0.0 if count == 1 else min(7.0, (step - 6) / count)
    for name, given in row.values.items():
        values = shown(given, scale.log)
        place = series[name] if count > 1 else group
        y = middle + apart * (series[name] - (count - 1) / 2)
        if values:
            tip = f"{row.name}, {name}" if name else row.name
            shapes = _dot(tip, values, scale, y, place, row.interval)
            yield element("g", *shapes, class_=style_of(place), data_key=series[name])


def _dot(
    tip: str,
    values: Sequence[float],
    scale: Scale,
    y: float,
    place: int,
    interval: tuple[float, float] | None,
) -> Iterator[Element]:
    mean = fmean(values)
    half = stdev(values) if len(values) > 1 else 0.0
    low, high = interval or (mean - half, mean + half)
    if low < high and not scale.log:
        yield element("path", class_="bar", d=f"M{scale.at(low):g} {y:g}H{scale.at(high):g}")
    for value in values[:100] if len(values) > 1 else ():
        yield element("circle", class_="seed", cx=scale.at(value), cy=y, r=1.6)
    sure = f", 95 %: {number(low)} to {number(high)}" if interval else ""
    yield marker(place, scale.at(mean), y, f"{tip}: {told(values)}{sure}")


def _said(part: Rows) -> str:
    """The first rows in words."""
    parts = [
        f"{', '.join(filter(None, (row.name, name)))}: {number(fmean(known))}"
        for row in part.rows()[:8]
        for name, values in row.values.items()
        if (known := shown(values))
    ]
    more = ["…"] if len(part.rows()) > 8 else []
    return f"{part.axis.name}. {'; '.join([*parts[:24], *more])}."
