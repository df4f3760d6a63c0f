"""The same charts by matplotlib, for files."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from taskvec.reports.charts.chart import Chart, places_of, shown
from taskvec.reports.charts.dots import Dots, Rows
from taskvec.reports.charts.heat import Heat
from taskvec.reports.charts.lines import Curve, Lines, Plot
from taskvec.reports.charts.matrix import Matrix, Tint
from taskvec.reports.charts.scales import Axis, number
from taskvec.reports.charts.stacked import Stacked
from taskvec.reports.drawing import (
    axes_in_a_row,
    draw_heat_map,
    grid_of_axes,
    hide_spines,
    name_ticks,
    number_cells,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def paint(chart: Chart) -> "Figure":
    """A figure of matplotlib that shows what the chart does."""
    match chart:
        case Lines():
            return _paint_lines(chart)
        case Dots():
            return _paint_dots(chart)
        case Matrix():
            return _paint_matrix(chart)
        case Heat():
            return _paint_heat(chart)
        case Stacked():
            return _paint_stacked(chart)
    raise TypeError(f"{type(chart).__name__}: no such chart is painted")


def _name(text: str) -> str:
    """Text in which dollars are no formulas."""
    return text.replace("$", r"\$")


def _name_axis(ax: "Axes", axis: Axis, which: str) -> None:
    getattr(ax, f"set_{which}label")(_name(axis.name))
    if axis.log:
        getattr(ax, f"set_{which}scale")("log")
    if axis.ticks:
        getattr(ax, f"set_{which}ticks")(list(axis.ticks), list(map(number, axis.ticks)))
        ax.minorticks_off()


def _place_legend(figure: "Figure", axes: Sequence["Axes"], chart: Chart) -> None:
    """Every name once, beside the axes."""
    handles = {
        name: handle for ax in axes for handle, name in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    if len(handles) > 1:
        figure.legend(
            handles.values(), map(_name, handles), loc="outside right center", frameon=False, fontsize="small"
        )


def _paint_lines(chart: Lines) -> "Figure":
    columns = min(4, len(chart.plots))
    rows = -(-len(chart.plots) // columns)
    figure, grid = grid_of_axes(rows, columns, 3.6, 3.0, margin=1.6)
    axes = [ax for row in grid for ax in row]
    for ax, plot in zip(axes, chart.plots, strict=False):
        _paint_plot(ax, plot, chart.hues())
    for ax in axes[len(chart.plots) :]:
        ax.set_visible(False)
    _place_legend(figure, axes, chart)
    return figure


def _paint_plot(ax: "Axes", plot: Plot, hues: Mapping[str, int]) -> None:
    hide_spines(ax)
    ax.set_title(_name(plot.title), fontsize="medium")
    for curve in plot.curves:
        _paint_curve(ax, curve, f"C{hues[curve.hue or curve.name] % 10}")
    for level in plot.levels:
        color = f"C{hues[level.hue or level.name] % 10}"
        ax.axhline(level.value, lw=1, ls=":", color=color, label=level.name)
    for mark in plot.marks:
        ax.axvline(mark, lw=0.8, color="0.6")
    _name_axis(ax, plot.x, "x")
    _name_axis(ax, plot.y, "y")


def _paint_curve(ax: "Axes", curve: Curve, color: str) -> None:
    points = [(point.x, values) for point in curve.points if (values := shown(point.values))]
    spread = [stdev(values) if curve.spread and len(values) > 1 else 0.0 for _, values in points]
    style = ("--" if curve.dashed else "-") if curve.joined else ""
    ax.errorbar(
        [x for x, _ in points],
        [fmean(values) for _, values in points],
        spread if any(spread) else None,
        ls=style or "none",
        marker="" if curve.thin else "o",
        ms=3,
        lw=0.8 if curve.thin else 1.3,
        capsize=2,
        color=color,
        label=curve.name,
    )
    for x, values in points:
        if len(values) > 1 and not curve.thin:
            ax.plot([x] * len(values), values, ".", ms=3, alpha=0.35, color=color)


def _paint_dots(chart: Dots) -> "Figure":
    series = places_of(name for part in chart.parts for row in part.rows() for name in row.values)
    lines = max(sum(1 + len(rows) for rows in part.groups.values()) for part in chart.parts)
    height = 1.0 + (0.12 + 0.07 * len(series)) * lines
    figure, [axes] = grid_of_axes(1, len(chart.parts), 3.6, height, margin=2.6)
    for ax, part in zip(axes, chart.parts, strict=True):
        _paint_rows(ax, part, series, named=ax is axes[0])
    _place_legend(figure, axes, chart)
    return figure


def _spread(
    values: Sequence[float], interval: tuple[float, float] | None
) -> float | list[list[float]] | None:
    """How far bars reach to both sides of the mean."""
    if interval is None:
        return stdev(values) if len(values) > 1 else None
    mean = fmean(values)
    return [[max(0.0, mean - interval[0])], [max(0.0, interval[1] - mean)]]


def _paint_rows(ax: "Axes", part: Rows, series: Mapping[str, int], named: bool) -> None:
    names: list[str] = []
    for group, (head, rows) in enumerate(part.groups.items()):
        names += [head] if head else []
        for row in rows:
            for name, given in row.values.items():
                if values := shown(given):
                    color = f"C{(series[name] if len(series) > 1 else group) % 10}"
                    y = len(names) + (series[name] - (len(series) - 1) / 2) * 0.8 / len(series)
                    spread = _spread(values, row.interval)
                    ax.errorbar(
                        fmean(values), y, xerr=spread, fmt="o", ms=4, lw=1.2, color=color, label=name or None
                    )
            names.append(row.name)
    for value in part.levels.values():
        ax.axvline(value, color="0.6", lw=0.8, ls=":")
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_yticks(
        range(len(names)), list(map(_name, names)) if named else [""] * len(names), fontsize="small"
    )
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", lw=0.4, color="0.85")
    ax.set_title(_name(part.title), fontsize="medium")
    hide_spines(ax)
    _name_axis(ax, part.axis, "x")


def _paint_matrix(chart: Matrix) -> "Figure":
    rows, columns = (max(len(getattr(grid, side)) for grid in chart.grids) for side in ("rows", "columns"))
    size = (0.9 + min(0.42 * columns, 8.0), 1.3 + min(0.32 * rows, 12.0))
    figure, [axes] = grid_of_axes(1, len(chart.grids), *size, margin=2.0)
    for ax, grid in zip(axes, chart.grids, strict=True):
        numbers = [[float("nan") if value is None else value for value in row] for row in grid.values]
        image = ax.imshow(
            numbers, vmin=chart.tint.low, vmax=chart.tint.high, cmap=_colours(chart.tint), aspect="auto"
        )
        if chart.form:
            number_cells(ax, numbers, f"{{:{chart.form}}}", lambda value: chart.tint.shade(value)[1] > 0.6)
        name_ticks(ax, [], "small")
        ax.set_yticks(range(len(grid.rows)), list(map(_name, grid.rows)), fontsize="small")
        if len(grid.columns) <= 24:
            ax.set_xticks(
                range(len(grid.columns)),
                list(map(_name, grid.columns)),
                rotation=35,
                ha="right",
                fontsize="small",
            )
        ax.set_title(_name(grid.title), fontsize="medium")
    figure.colorbar(image, ax=axes, label=chart.tint.unit, shrink=0.7)
    return figure


def _colours(tint: Tint) -> str:
    return "RdBu_r" if tint.diverging else "Blues"


def _paint_heat(chart: Heat) -> "Figure":
    figure, [axes] = grid_of_axes(1, len(chart.planes), 3.3, 3.2)
    for ax, plane in zip(axes, chart.planes, strict=True):
        values = [[float("nan") if value is None else value for value in row] for row in plane.values]
        image = draw_heat_map(ax, values, chart.grid, chart.tint.high)
        ax.set_title(_name(plane.title), fontsize="medium")
        ax.set_xlabel(_name(chart.names[0]))
    axes[0].set_ylabel(_name(chart.names[1]))
    figure.colorbar(image, ax=axes, label=chart.tint.unit, shrink=0.9)
    return figure


def _paint_stacked(chart: Stacked) -> "Figure":
    figure, [ax] = axes_in_a_row(1, 6.0, 1.0 + 0.3 * len(chart.rows))
    parts = places_of(name for row in chart.rows.values() for name in row)
    starts = {
        row: dict(zip(of, accumulate(of.values(), initial=0.0), strict=False))
        for row, of in chart.rows.items()
    }
    for part in parts:
        widths = [of.get(part, 0.0) for of in chart.rows.values()]
        ax.barh(
            list(map(_name, chart.rows)),
            widths,
            left=[starts[row].get(part, 0.0) for row in chart.rows],
            label=part,
        )
    ax.invert_yaxis()
    ax.set_xlabel(_name(chart.axis.name))
    _place_legend(figure, [ax], chart)
    return figure
