"""Records of analyses as figures."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Record = Mapping[str, Any]
Rows = Sequence[Sequence[float]]

_NONE = float("nan")


def disentanglement_figures(record: Record) -> "dict[str, Figure]":
    """One pair: its maps. Several: a matrix of pairs, and the maps of each in a figure of its own."""
    maps = {"-".join(pair["tasks"]): _maps(record, pair) for pair in record["pairs"]}
    if len(maps) == 1:
        return {"figure": next(iter(maps.values()))}
    return {"figure": _matrices(record), **maps}


def _maps(record: Record, pair: Record) -> "Figure":
    """Prediction error above, distance of representations below; a column a panel, one scale a row."""
    figure, axes = _grid(2, len(pair["panels"]), 3.3, 3.2)
    kinds = {
        "prediction": ("ξ (0 to 2)", 2.0),
        "feature_kl": ("representations: KL", None),
    }
    for row, (kind, (label, ceiling)) in zip(axes, kinds.items(), strict=True):
        drawn = {name: panel["maps"][kind] for name, panel in pair["panels"].items()}
        top = max(max(map(max, values)) for values in drawn.values()) or 1.0
        for ax, (name, values) in zip(row, drawn.items(), strict=True):
            image = _map(ax, values, record["grid"], pair["tasks"], min(top, ceiling or top))
            ax.set_title(name, fontsize="medium")
        row[0].set_ylabel(_coefficient(pair["tasks"][1]), fontsize="large")
        figure.colorbar(image, ax=row, label=label, shrink=0.9)
    return figure


def _map(ax: "Axes", values: Rows, grid: Sequence[float], tasks: Sequence[str], top: float) -> "AxesImage":
    """The first task's coefficient runs to the right, the second's upwards; cells are centred on points."""
    step = grid[1] - grid[0]
    edges = (grid[0] - step / 2, grid[-1] + step / 2)
    upwards = list(zip(*values, strict=True))
    image = ax.imshow(
        upwards, origin="lower", extent=(*edges, *edges), vmin=0, vmax=top, cmap="viridis", aspect="equal"
    )
    ax.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color="red", lw=1.5)
    ax.set_xlim(*edges)
    ax.set_ylim(*edges)
    ax.set_xlabel(_coefficient(tasks[0]), fontsize="large")
    return image


def _coefficient(task: str) -> str:
    """Alpha with the task as its index."""
    escaped = task.replace("_", r"\_").replace("-", "\N{HYPHEN}")
    return rf"$\alpha_\mathrm{{{escaped}}}$"


def _matrices(record: Record) -> "Figure":
    """Mean prediction error of every pair of tasks: in (0, 1]² above the diagonal, in [-1, 1]² below."""
    tasks = record["tasks"]
    panels = list(record["panels"])
    values = {name: _by_pair(record, name) for name in panels}
    top = max([1e-9, *(value for rows in values.values() for row in rows for value in row if value == value)])
    figure, axes = _grid(1, len(panels), 1.6 + 0.55 * len(tasks), 1.3 + 0.55 * len(tasks))
    for ax, name in zip(axes[0], panels, strict=True):
        image = ax.imshow(values[name], vmin=0, vmax=top, cmap="viridis")
        _write_cells(ax, values[name], "{:.2f}", lambda value: value < 0.6 * top)
        _names(ax, tasks)
        ax.set_title(name, fontsize="medium")
    figure.colorbar(image, ax=axes[0], label="mean ξ (0 to 2)", shrink=0.8)
    figure.supxlabel("above the diagonal: over (0, 1]²; below: over [−1, 1]²", fontsize="small")
    return figure


def _by_pair(record: Record, panel: str) -> list[list[float]]:
    place = {task: index for index, task in enumerate(record["tasks"])}
    values = [[_NONE] * len(place) for _ in place]
    for pair in record["pairs"]:
        i, j = sorted(place[task] for task in pair["tasks"])
        found = pair["panels"][panel]["summary"]
        for row, column, key in ((i, j, "quadrant"), (j, i, "box")):
            if found[key] is not None:
                values[row][column] = found[key]
    return values


def linearity_figures(record: Record) -> "dict[str, Figure]":
    """The gap of every regime, then the accuracies in both spaces, a panel a regime."""
    regimes, values = record["regimes"], record["coefficients"]
    figure, [(gap, *accuracies)] = _grid(1, 1 + len(regimes), 3.6, 3.4)
    for index, (name, regime) in enumerate(regimes.items()):
        lines = [[100 * (one or 0) for one in found["gap"]] for found in regime["tasks"].values()]
        _lines_and_mean(gap, [0.0, *values], [[0.0, *line] for line in lines], f"C{index}", name)
    gap.set_xlabel("coefficient α")
    gap.set_ylabel("distance from the linearization, %\nof the distance moved")
    gap.set_ylim(bottom=0)
    gap.set_title("features", fontsize="medium")
    gap.legend(frameon=False, fontsize="small")
    start = [100 * value for value in record["pretrained"].values()]
    for index, (ax, (name, regime)) in enumerate(zip(accuracies, regimes.items(), strict=True)):
        for key, style, label in (("accuracy", "-", "f"), ("accuracy_linear", "--", "linearized")):
            lines = [
                [before, *(100 * one for one in found[key])]
                for before, found in zip(start, regime["tasks"].values(), strict=True)
            ]
            _lines_and_mean(ax, [0.0, *values], lines, f"C{index}", label, style)
        ax.set_xlabel("coefficient α")
        ax.set_title(f"{name}: mean of tasks", fontsize="medium")
        ax.legend(frameon=False, fontsize="small")
        ax.sharey(accuracies[0])
    accuracies[0].set_ylabel("accuracy, %")
    return {"figure": figure}


def _lines_and_mean(
    ax: "Axes", at: Sequence[float], lines: Rows, color: str, label: str, style: str = "-"
) -> None:
    """Every line thin, their mean thick."""
    if len(lines) > 1:
        for line in lines:
            ax.plot(at, line, style, color=color, lw=0.6, alpha=0.5)
    ax.plot(at, [fmean(column) for column in zip(*lines, strict=True)], style, color=color, lw=2, label=label)
    ax.spines[["top", "right"]].set_visible(False)


def gradients_figures(record: Record) -> "dict[str, Figure]":
    """What multi-task gradients leave of the sum of task vectors, against the learning rate."""
    figure, [[ax]] = _grid(1, 1, 5.0, 4.0)
    exact = [k for k, found in record["steps"].items() if found["exact"]]
    for index, (k, found) in enumerate(record["steps"].items()):
        if k in exact:
            continue
        for kind, style, named in (("first", "o-", "gradients"), ("second", "s--", "and Hessian term")):
            order = found["slopes"][kind]
            label = f"k = {k}, {named}" + ("" if order is None else f": slope {order:.2f}")
            ax.loglog(found["rates"], found[kind], style, ms=4, color=f"C{index}", label=label)
    ax.set_xlabel("learning rate η")
    ax.set_ylabel("‖ Σ τ − multi-task steps ‖")
    ax.set_xticks(record["rates"], [f"{rate:g}" for rate in record["rates"]])
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
    if exact:
        ax.set_title(f"nothing but rounding is left at k = {', '.join(exact)}", fontsize="medium")
    if len(exact) < len(record["steps"]):
        ax.legend(frameon=False, fontsize="small", loc="lower right")
    return {"figure": figure}


def similarity_figures(record: Record) -> "dict[str, Figure]":
    """Cosines and sign conflicts of pairs above; norms, ranks and cosines by layer below."""
    from matplotlib.figure import Figure

    names, layers = record["vectors"], record["layers"]
    label, tick = (0.09 * max(map(len, words)) for words in (names, layers))
    side = 0.42 * len(names) + label
    width, below = max(2 * side + 3.5, 3 * (0.24 * len(layers) + 1.2), 9), 3.4 + tick
    figure = Figure(figsize=(width, side + below), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[side, below])  # an array; its stub says one
    axes = {**halves[0].subplot_mosaic("AB"), **halves[1].subplot_mosaic("CDE")}
    _cosines(axes["A"], names, record["cosine"])
    _conflicts(axes["B"], names, [[100 * value for value in row] for row in record["conflict"]])
    for index, name in enumerate(names):
        style = {"marker": "o", "ms": 3.5, "lw": 0.5, "label": name, "color": f"C{index % 10}"}
        norms = [layer["norms"][index] or _NONE for layer in layers.values()]
        ranks = [layer["effective_rank"][index] for layer in layers.values()]
        axes["C"].plot(norms, **style)
        axes["D"].plot([_NONE if rank is None else 100 * rank for rank in ranks], **style)
    for place, layer in enumerate(layers.values()):
        pairs = [value for i, row in enumerate(layer["cosine"]) for value in row[:i]]
        axes["E"].plot([place] * len(pairs), pairs, "o", ms=3.5, color="black", alpha=0.35)
    axes["E"].axhline(0, lw=0.8, color="grey")
    for key, said in {"C": "norm", "D": "effective rank, % of full", "E": "cosine of every pair"}.items():
        axes[key].set_ylabel(said)
        axes[key].set_xticks(range(len(layers)), list(layers), rotation=60, ha="right", fontsize="small")
        axes[key].spines[["top", "right"]].set_visible(False)
        if key != "E":
            axes[key].set_ylim(bottom=0)
    handles = axes["C"].get_legend_handles_labels()
    halves[1].legend(*handles, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return {"figure": figure}


def _cosines(ax: "Axes", names: Sequence[str], values: Rows) -> None:
    top = max([0.1, *(abs(value) for i, row in enumerate(values) for value in row[:i])])
    image = ax.imshow(values, vmin=-top, vmax=top, cmap="RdBu_r")
    _write_cells(ax, values, "{:.2f}", lambda value: abs(value) > 0.6 * top)
    _names(ax, names)
    ax.figure.colorbar(image, ax=ax, label="cosine", shrink=0.8)


def _conflicts(ax: "Axes", names: Sequence[str], values: Rows) -> None:
    """White at 50 %, where signs are unrelated."""
    reach = max([5.0, *(abs(value - 50) for i, row in enumerate(values) for value in row[:i])])
    image = ax.imshow(values, vmin=50 - reach, vmax=50 + reach, cmap="PuOr_r")
    _write_cells(ax, values, "{:.0f}", lambda value: abs(value - 50) > 0.6 * reach)
    _names(ax, names)
    ax.figure.colorbar(image, ax=ax, label="opposite signs, %", shrink=0.8)


def _grid(rows: int, columns: int, width: float, height: float) -> "tuple[Figure, list[list[Axes]]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns + 0.6, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def _names(ax: "Axes", names: Sequence[str]) -> None:
    ax.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize="small")
    ax.set_yticks(range(len(names)), names, fontsize="small")


def _write_cells(ax: "Axes", values: Rows, form: str, dark: Callable[[float], bool]) -> None:
    """Numbers on the cells of a matrix, in white where the cell is dark."""
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value == value:
                color = "white" if dark(value) else "black"
                ax.text(j, i, form.format(value), ha="center", va="center", fontsize=7, color=color)
