"""Learned coefficients as a map: parts of the model down, vectors across."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from taskvec.reading import shortened
from taskvec.reports.drawing import Drawing, grid_of_axes, number_cells

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 60
"""Groups up to which each has its name written."""
_NUMBERED = 12
"""Vectors up to which each cell has its number written."""


def map_of(coefficients: Mapping[str, Mapping[str, float]]) -> Drawing:
    """The map; blue below zero, white at it."""
    caption = "Learned coefficients of each vector (across) in each part of the model (down), first to last."
    return Drawing("coefficients", caption, lambda: _draw(coefficients))


def _draw(coefficients: Mapping[str, Mapping[str, float]]) -> "Figure":
    columns = [list(of.values()) for of in coefficients.values()]
    rows, groups = list(zip(*columns, strict=True)), list(next(iter(coefficients.values())))
    top = max(1e-9, *(abs(value) for row in rows for value in row))
    names = [shortened(group, 60) for group in groups] if len(groups) <= _NAMED else []
    width = 2.5 + 0.5 * len(columns) + 0.07 * max(map(len, names), default=0)
    figure, [[ax]] = grid_of_axes(1, 1, width, min(14.0, 2 + 0.2 * len(groups)))
    image = ax.imshow(rows, cmap="RdBu_r", vmin=-top, vmax=top, aspect="auto")
    ax.set_xticks(range(len(columns)), list(coefficients), rotation=45, ha="right")
    ax.set_yticks(range(len(names)), names, fontsize="x-small")
    ax.set_ylabel("" if names else f"{len(groups)} parts of the model")
    if len(columns) <= _NUMBERED and names:
        number_cells(ax, rows, "{:.2f}", lambda value: abs(value) > 0.7 * top)
    figure.colorbar(image, label="coefficient")
    return figure
