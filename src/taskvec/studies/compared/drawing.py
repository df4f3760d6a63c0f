"""Figures of methods side by side."""

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev, stdev
from typing import TYPE_CHECKING

from taskvec.reports.drawing import grid_of_axes, hide_spines, number_cells
from taskvec.studies.compared.records import Row, groups_of
from taskvec.studies.compared.tables import learned_coefficient
from taskvec.studies.measured import units_of
from taskvec.tasks.score import utility

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Metrics = Mapping[str, str]


def draw_methods(rows: Sequence[Row], metrics: Metrics) -> "Figure":
    """Every row a point with its deviation over seeds, absolute beside normalized, under heads."""
    groups = groups_of(rows)
    units = units_of(metrics.values())
    panels = ["absolute", "normalized"] if len(units) == 1 else ["normalized"]
    height = 1.0 + 0.19 * (len(rows) + len(groups))
    figure, [axes] = grid_of_axes(1, len(panels), 3.6, height, margin=2.6)
    for ax, panel in zip(axes, panels, strict=True):
        unit = units[0] if panel == "absolute" else ""
        _draw_panel(ax, groups, panel, unit)
        _name_axis(ax, panel, unit)
    _name_rows(axes, groups)
    return figure


def _draw_panel(ax: "Axes", groups: Mapping[str, Sequence[Row]], panel: str, unit: str) -> None:
    place = 0
    for number, rows in enumerate(groups.values()):
        place += 1  # the head
        for row in rows:
            values = [_shown(getattr(outcome, panel), unit) for outcome in row.outcomes]
            spread = stdev(values) if len(values) > 1 else pstdev(values)
            ax.errorbar(fmean(values), place, xerr=spread, fmt="o", ms=4, lw=1.2, color=f"C{number % 10}")
            place += 1
    for row in groups.get("nothing", ()):
        if row.name == "zero-shot":
            mean = fmean(_shown(getattr(outcome, panel), unit) for outcome in row.outcomes)
            ax.axvline(mean, color="0.6", lw=0.8, ls=":")


def _shown(value: float, unit: str) -> float:
    return utility(unit, value) if unit else 100 * value


def _name_axis(ax: "Axes", panel: str, unit: str) -> None:
    ax.set_xlabel(f"{unit.replace('_', ' ')} (less is better)" if unit else f"{panel}, %")
    ax.grid(axis="x", lw=0.4, color="0.85")
    ax.set_axisbelow(True)
    hide_spines(ax)


def _name_rows(axes: "Sequence[Axes]", groups: Mapping[str, Sequence[Row]]) -> None:
    """The same rows in all panels, from the top; names at the first."""
    names: list[str] = []
    heads = []
    for head, rows in groups.items():
        heads.append(len(names))
        names += [f"consumed: {head}", *(f"{row.name}  {_alpha(row)}".rstrip() for row in rows)]
    for ax in axes:
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names), fontsize="small")
        ax.tick_params(axis="y", length=0)
        for place in heads[1:]:
            ax.axhline(place - 0.5, color="0.7", lw=0.6)
    for place in heads:
        axes[0].get_yticklabels()[place].set_fontweight("bold")


def _alpha(row: Row) -> str:
    return "" if row.how == "none" else f"α {row.alpha}"


def draw_coefficients(rows: Sequence[Row], single: Row, metrics: Metrics) -> "Figure":
    """Learned coefficients of the tasks' vectors, beside what the models give on the tasks."""
    tasks = list(metrics)
    height = 1.1 + 0.3 * len(rows)
    figure, [axes] = grid_of_axes(1, 2, 1.0 + 0.5 * len(tasks), height, margin=2.0)
    learned = [[fmean(learned_coefficient(row, task)) for task in tasks] for row in rows]
    top = max(0.5, *(abs(value) for of in learned for value in of))
    axes[0].imshow(learned, vmin=-top, vmax=top, cmap="RdBu_r", aspect="auto")
    number_cells(axes[0], learned, "{:.2f}", lambda value: abs(value) > 0.6 * top)
    shares = [[fmean(_relative(row, single, task)) for task in tasks] for row in rows]
    axes[1].imshow(shares, vmin=40, vmax=110, cmap="Greens", aspect="auto")
    number_cells(axes[1], shares, "{:.0f}", lambda value: value > 85)
    for ax, title in zip(axes, ("coefficient", "% of the single model"), strict=True):
        ax.set_title(title, fontsize="medium")
        ax.set_xticks(range(len(tasks)), tasks, rotation=35, ha="right", fontsize="small")
        ax.set_yticks(
            range(len(rows)),
            [row.name for row in rows] if ax is axes[0] else [""] * len(rows),
            fontsize="small",
        )
    return figure


def _relative(row: Row, single: Row, task: str) -> list[float]:
    """What a row gives on a task, in per cent of the task's own model, one a seed."""
    pairs = zip(row.outcomes, single.outcomes, strict=True)
    return [
        100 * mine.values[task] / own.values[task] if own.values[task] > 0 else 0.0 for mine, own in pairs
    ]
