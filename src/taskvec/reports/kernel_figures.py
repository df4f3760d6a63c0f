"""The record of a kernel analysis as a table and figures."""

from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Any

from taskvec.reports.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

NAMES = {
    "local_energy": "local energy",
    "movement": "‖kernel solution‖²",
    "score": "‖J τ‖²",
}
"""What is said of every held-out example."""


def kernel_tables(record: Record) -> list[Table]:
    """How well each number tells task from control, and the accuracies."""
    task, control, settings = record["task"], record["control"], record["settings"]
    rows = [
        (
            NAMES[kind],
            f"{found['auroc']:.3f}",
            f"{median(found['task']):.3g}",
            f"{median(found['control']):.3g}",
            f"{median(found['task']) / max(median(found['control']), 1e-300):.2f}",
        )
        for kind, found in record["numbers"].items()
    ]
    examples = record["examples"]
    carried = sum(map(sum, record["carried"]))
    total = sum(map(len, record["spectrum"]))
    numbers = Table(
        f"Is it local? {task} against {control}",
        ("of a held-out example", "AUROC", f"median, {task}", f"median, {control}", "ratio"),
        tuple(rows),
        f"AUROC: probability that an example of {task} has the larger number than one of {control}. Local "
        f"energy over the {carried} of {total} eigenfunctions that hold {100 * record['carried_share']:.0f} "
        f"% of the solution. {examples['task']} and {examples['control']} test examples; kernel of "
        f"{examples['train']} training examples, {record['parameters']:,} parameters ({settings['params']}), "
        f"mode {settings['mode']}, ridge {settings['ridge']:g}.",
    )
    accuracies = Table(
        f"Accuracy on {task}",
        ("", "its training examples", "test examples"),
        tuple(
            (name, f"{100 * found['train']:.1f}", f"{100 * found['test']:.1f}")
            for name, found in record["accuracy"].items()
        ),
        "Per cent. Kernel: regression on these training examples alone; a vector has seen its own.",
    )
    return [numbers, accuracies]


def kernel_figures(record: Record) -> "dict[str, Figure]":
    """Histograms of each number for task and control, and the spectrum."""
    from matplotlib.figure import Figure

    kinds = list(record["numbers"])
    figure = Figure(figsize=(3.4 * (len(kinds) + 1), 3.2), layout="constrained")
    axes = figure.subplots(1, len(kinds) + 1)
    for ax, kind in zip(axes, kinds, strict=False):
        _histogram(ax, record, kind)
    axes[0].set_ylabel("share of test examples, %")
    axes[0].legend(frameon=False, fontsize="small")
    _spectrum(axes[-1], record)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    return {"figure": figure}


def _histogram(ax: "Axes", record: Record, kind: str) -> None:
    found = record["numbers"][kind]
    top = max(*found["task"], *found["control"])
    bins = [top * place / 24 for place in range(25)]
    for side, color in (("task", "C0"), ("control", "C1")):
        values = found[side]
        weights = [100 / len(values)] * len(values)
        ax.hist(values, bins=bins, weights=weights, color=color, alpha=0.6, label=record[side])
    ax.set_xlim(0, top)
    ax.set_xlabel(NAMES[kind])
    ax.set_title(f"AUROC {found['auroc']:.3f}", fontsize="medium")


def _spectrum(ax: "Axes", record: Record) -> None:
    """Eigenvalues of all blocks; those that carry the solution stand out."""
    pairs = [
        (value, carried)
        for values, marks in zip(record["spectrum"], record["carried"], strict=True)
        for value, carried in zip(values, marks, strict=True)
    ]
    pairs = sorted((pair for pair in pairs if pair[0] > 0), reverse=True)
    places = range(1, len(pairs) + 1)
    ax.plot(places, [value for value, _ in pairs], color="0.6", lw=1, zorder=1)
    marked = {place: value for place, (value, carried) in zip(places, pairs, strict=True) if carried}
    ax.scatter(list(marked), list(marked.values()), s=9, color="C3", zorder=2, label="carry the solution")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel("eigenfunction")
    ax.set_ylabel("eigenvalue")
    ax.legend(frameon=False, fontsize="small")
