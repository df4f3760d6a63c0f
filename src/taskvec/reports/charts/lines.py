"""Lines over x, dots for seeds and bars for their deviation; without lines, a scatter."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import fmean, stdev

from taskvec.reports.charts.chart import (
    LINE,
    Chart,
    Key,
    Panel,
    frame_below,
    frame_beside,
    heading,
    places_of,
    reach,
    shown,
    told,
)
from taskvec.reports.charts.scales import Axis, Scale, is_shown, number
from taskvec.reports.charts.svg import Element, element, marker, path, width_of

_WIDTH, _HEIGHT = 340.0, 190.0
_DOTTED = 60
"""From how many points on a line has no dots."""


@dataclass(frozen=True)
class Dot:
    """Values at one x, such as one a seed; those that are none are left out."""

    x: float
    values: Sequence[float | None]
    name: str = ""
    """What a reader is told of it, beside the numbers."""


@dataclass(frozen=True)
class Curve:
    """A series of points.

    Args:
        hue: series of one hue share a colour; by default each has its own.
        dashed: the line.
        joined: by a line through the means.
        spread: show the deviation of a point's values; where they are no seeds, leave it out.
        thin: a line among many, such as one a seed.
    """

    name: str
    points: Sequence[Dot]
    hue: str = ""
    dashed: bool = False
    joined: bool = True
    spread: bool = True
    thin: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line, such as a model that does not depend on x."""

    name: str
    value: float
    hue: str = ""


@dataclass(frozen=True)
class Plot:
    """One panel.

    Args:
        marks: places on the x axis of vertical lines.
    """

    title: str
    x: Axis
    y: Axis
    curves: Sequence[Curve]
    levels: Sequence[Level] = ()
    marks: Sequence[float] = ()


@dataclass(frozen=True)
class Lines(Chart):
    """Plots that share their legend."""

    plots: Sequence[Plot] = field(default_factory=list)

    def panels(self) -> list[Panel]:
        """A drawing a plot; series of one name are of one colour in all."""
        names = places_of(series.name for series in self._series())
        return [_draw(plot, self.hues(), names) for plot in self.plots]

    def legend(self) -> list[Key]:
        """Every name once; none for a single one."""
        hues, series = self.hues(), {one.name: one for one in reversed(list(self._series()))}
        names = places_of(one.name for one in self._series())
        keys = [Key(name, hues[series[name].hue or name], _kind(series[name])) for name in names]
        return keys if len(keys) > 1 else []

    def hues(self) -> dict[str, int]:
        """The place of every hue."""
        return places_of(series.hue or series.name for series in self._series())

    def _series(self) -> Iterator[Curve | Level]:
        """Curves before levels, so that they get the first colours."""
        yield from chain.from_iterable(plot.curves for plot in self.plots)
        yield from chain.from_iterable(plot.levels for plot in self.plots)


def _kind(series: Curve | Level) -> str | None:
    """Of its line, if it has one."""
    if isinstance(series, Level):
        return "level"
    return ("dashed" if series.dashed else "") if series.joined else None


def _style(series: Curve | Level, hues: Mapping[str, int]) -> str:
    return Key(series.name, hues[series.hue or series.name], _kind(series)).style


def _draw(plot: Plot, hues: Mapping[str, int], names: Mapping[str, int]) -> Panel:
    points = [point for curve in plot.curves for point in curve.points]
    heights = [
        *(level.value for level in plot.levels),
        *(
            value
            for curve in plot.curves
            for point in curve.points
            for value in reach(point.values, plot.y.log, curve.spread)
        ),
    ]
    top = (LINE if plot.title else 0) + (LINE if plot.y.name else 0) + 8
    bottom = top + _HEIGHT
    y = Scale.over(plot.y, heights, (bottom, top))
    left = max(24.0, *(width_of(text) + 9 for _, text in y.ticks))
    x = Scale.over(plot.x, [*(point.x for point in points), *plot.marks], (left, _WIDTH - 10))
    shapes = [
        *heading(plot.title, _WIDTH),
        *frame_beside(plot.y, y, left, _WIDTH - 10),
        *frame_below(plot.x, x, top, bottom),
        *(element("path", class_="rule", d=f"M{x.at(of):g} {top:g}V{bottom:g}") for of in plot.marks),
        *(_level(of, y, left, hues, names) for of in plot.levels if is_shown(of.value, y.log)),
        *(_curve(of, x, y, hues, names) for of in plot.curves),
    ]
    return Panel(plot.title, _said(plot), _WIDTH, bottom + 32, shapes)


def _level(level: Level, y: Scale, left: float, hues: Mapping[str, int], names: Mapping[str, int]) -> Element:
    line = element(
        "path",
        element("title", f"{level.name}: {number(level.value)}"),
        class_="line mark",
        d=f"M{left:g} {y.at(level.value):g}H{_WIDTH - 10:g}",
    )
    return element("g", line, class_=_style(level, hues), data_key=names[level.name])


def _curve(curve: Curve, x: Scale, y: Scale, hues: Mapping[str, int], names: Mapping[str, int]) -> Element:
    hue = hues[curve.hue or curve.name]
    points = [
        (point, values)
        for point in curve.points
        if is_shown(point.x, x.log) and (values := shown(point.values, y.log))
    ]
    places = [(x.at(point.x), y.at(fmean(values))) for point, values in points]
    shapes = [_joined(curve, places)] if curve.joined and len(places) > 1 else []
    if (not curve.thin and len(points) <= _DOTTED) or len(points) == 1:
        for point, values in points:
            shapes += _dots(curve, hue, point, values, x, y)
    return element("g", *shapes, class_=_style(curve, hues), data_key=names[curve.name])


def _joined(curve: Curve, places: Sequence[tuple[float, float]]) -> Element:
    told_of = [element("title", curve.name)] if curve.thin else []
    kind = "line thin mark" if curve.thin else "line"
    return element("path", *told_of, class_=kind, d=path(*places))


def _dots(
    curve: Curve, hue: int, point: Dot, values: Sequence[float], x: Scale, y: Scale
) -> Iterator[Element]:
    """The mean, and where there are several values each of them and their deviation."""
    across, mean = x.at(point.x), fmean(values)
    if len(values) > 1:
        for value in values[:100]:
            yield element("circle", class_="seed", cx=across, cy=y.at(value), r=1.6)
    if len(values) > 1 and curve.spread and not y.log:
        half = stdev(values)
        yield element("path", class_="bar", d=f"M{across:g} {y.at(mean - half):g}V{y.at(mean + half):g}")
    where = point.name or f"at {number(point.x)}"
    said = told(values) if curve.spread else f"{number(mean)}, mean of {len(values)}"
    yield marker(hue, across, y.at(mean), f"{curve.name}, {where}: {said}")


def _said(plot: Plot) -> str:
    """The ends of every line, in words."""
    parts = []
    for curve in plot.curves[:12]:
        ends = [(point.x, fmean(known)) for point in curve.points if (known := shown(point.values))]
        if ends:
            (first, low), (last, high) = ends[0], ends[-1]
            parts.append(f"{curve.name}: {number(low)} at {number(first)}, {number(high)} at {number(last)}")
    missing = sum(not shown(point.values, plot.y.log) for curve in plot.curves for point in curve.points)
    more = [f"{missing} points without a finite number are left out"] if missing else []
    return f"{plot.y.name} over {plot.x.name}. {'; '.join([*parts, *more])}."
