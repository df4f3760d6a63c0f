"""What an experiment finds out about tangent space and disentanglement, as tables."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from taskvec.reports.cells import both, percent, seeds_by_regime, whole_set
from taskvec.reports.tables import Table

Result = Mapping[str, Any]
Regimes = Mapping[str, Sequence[Result]]


def space_tables(results: Result) -> list[Table]:
    """Those that the results fill."""
    regimes, tasks = seeds_by_regime(results), results["tasks"]
    return [
        *_coefficients(regimes, tasks),
        *_contributions(regimes, tasks),
        *_advantages(regimes, tasks),
        *_disentanglement(regimes),
        *_costs(results),
    ]


def _wholes(seeds: Sequence[Result], tasks: Sequence[str]) -> list[Result]:
    """The additions of all tasks that were searched for every task."""
    found = (whole_set(seed, tasks) for seed in seeds)
    return [whole for whole in found if whole is not None and "each" in whole]


def _coefficients(regimes: Regimes, tasks: Sequence[str]) -> Iterator[Table]:
    rows = []
    for regime, seeds in regimes.items():
        if wholes := _wholes(seeds, tasks):
            each = [whole["each"] for whole in wholes]
            shown = (_range([one["coefficients"][task] for one in each]) for task in tasks)
            rows.append((regime, *shown, both(each), both(wholes)))
    if rows:
        note = (
            "Addition of all tasks in tangent space. α of each task: coordinate ascent on the mean "
            "normalized validation metric from the shared α, to where no single α can be changed for the "
            "better; absolute / normalized on test, per cent."
        )
        columns = ("α of", *tasks, "an α each", "one α")
        yield Table("A coefficient for every task", columns, tuple(rows), note)


def _contributions(regimes: Regimes, tasks: Sequence[str]) -> Iterator[Table]:
    known = {regime: wholes for regime, seeds in regimes.items() if (wholes := _wholes(seeds, tasks))}
    if not known:
        return
    rows = []
    for task in tasks:
        cells = []
        for wholes in known.values():
            own = [_gain(whole, task, task) for whole in wholes]
            others = [fmean(_gain(whole, task, s) for s in tasks if s != task) for whole in wholes]
            cells += [_points(own), _points(others)]
        rows.append((task, *cells))
    columns = [column for regime in known for column in (f"{regime}: own", f"{regime}: others")]
    note = (
        "Points of the test metric that the task's vector adds to the sum at the shared α: to its own task, "
        "and on average to the others."
    )
    yield Table("What each vector contributes", ("", *columns), tuple(rows), note)


def _gain(whole: Result, left_out: str, task: str) -> float:
    found: float = whole["test"][task]["value"] - whole["without"][left_out]["values"][task]
    return found


def _advantages(regimes: Regimes, tasks: Sequence[str]) -> Iterator[Table]:
    rows = []
    for regime, seeds in regimes.items():
        known = [seed["nonlinear_advantage"] for seed in seeds if "nonlinear_advantage" in seed]
        if known:
            by_task = [[100 * one[task] for one in known] for task in tasks]
            means = [fmean(100 * one[task] for task in tasks) for one in known]
            rows.append((f"over {regime}", *(_signed(values) for values in (*by_task, means))))
    if rows:
        note = (
            "(accuracy in ordinary space − accuracy in tangent space) / (1 − 1/C) of each task's own model, "
            "per cent, test: what leaving the tangent space gains."
        )
        yield Table("Non-linear advantage", ("", *tasks, "mean"), tuple(rows), note)


def _disentanglement(regimes: Regimes) -> Iterator[Table]:
    known = {
        regime: [seed["disentanglement"] for seed in seeds]
        for regime, seeds in regimes.items()
        if "disentanglement" in seeds[0]
    }
    if not known:
        return
    first = next(iter(known.values()))[0]
    columns, rows = [""], []
    for pair in first:
        named = " + ".join(pair["tasks"])
        columns += [f"{named}: [−1, 1]²", "(0, 1]²"]
    for regime, of_seeds in known.items():
        cells = []
        for place in range(len(first)):
            for key in ("box", "quadrant"):
                values = [maps[place]["summary"][key] for maps in of_seeds]
                cells.append("–" if None in values else percent(values))
        rows.append((regime, *cells))
    sizes = sorted({size for pair in first for size in pair["examples"]})
    note = (
        "Mean of ξ over the square of coefficients and over its positive quadrant, per cent: the share of "
        "predictions that the other task's vector changes, summed over both tasks (0 to 200), lower is "
        f"better; {'–'.join(map(str, sizes))} test examples a task."
    )
    yield Table("Weight disentanglement error", tuple(columns), tuple(rows), note)


def _costs(results: Result) -> Iterator[Table]:
    if "costs" not in results:
        return
    known = results["costs"]["regimes"]
    name, unit = next(iter(known.items()))
    rows = tuple(
        (
            regime,
            f"{cost['seconds']:.2g}",
            f"{cost['seconds'] / unit['seconds']:.2f}",
            f"{cost['peak_bytes'] / 2**20:.0f}",
            f"{cost['peak_bytes'] / unit['peak_bytes']:.2f}",
        )
        for regime, cost in known.items()
    )
    note = (
        f"On one batch of {results['costs']['task']}, the regimes taking turns. Memory: most bytes allocated "
        "at once within a step, above weights, optimizer state and data."
    )
    columns = ("a training step", "seconds", f"× {name}", "memory, MiB", f"× {name}")
    yield Table("Training cost", columns, rows, note)


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def _points(values: Sequence[float]) -> str:
    return _signed([100 * value for value in values])


def _signed(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):+.1f}{spread}".replace("-", "−", 1)
