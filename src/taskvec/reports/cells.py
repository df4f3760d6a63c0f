"""What cells of tables hold: figures over seeds, as text."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

Result = Mapping[str, Any]


def seeds_by_regime(results: Result) -> dict[str, list[Result]]:
    """The results of every regime, one a seed."""
    seeds = list(results["seeds"].values())
    return {regime: [seed[regime] for seed in seeds] for regime in seeds[0]}


def whole_set(seed: Result, tasks: Sequence[str]) -> Result | None:
    """The addition of all tasks, if there is one."""
    return next((edit for edit in seed["addition"] if len(edit["tasks"]) == len(tasks)), None)


def percent(values: Sequence[float]) -> str:
    """Mean over seeds, with the standard deviation where there are several."""
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}"


def both(cells: Sequence[Result]) -> str:
    """Absolute / normalized."""
    absolute, normalized = ([cell[which] for cell in cells] for which in ("absolute", "normalized"))
    return f"{percent(absolute)} / {percent(normalized)}"


def coefficients(cells: Sequence[Result]) -> str:
    """The coefficient, or its range over seeds."""
    values = sorted({cell["coefficient"] for cell in cells})
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g}–{values[-1]:g}"


def search_note(cells: Mapping[str, Sequence[Result]]) -> str:
    """What a reader must know of the searches of labelled rows: how much they measured, every remark."""
    said = [f"{label}: {cell['remark']}" for label, of in cells.items() for cell in of if cell["remark"]]
    return "; ".join(dict.fromkeys([_measured([cell for of in cells.values() for cell in of]), *said]))


def tally_note(searches: Sequence[Result]) -> str:
    """The same for searches that are too many to be listed: how many end where."""
    kinds = {
        "at 0": [search["coefficient"] == 0 for search in searches],
        "at the limit of the grid": [search["at_grid_limit"] for search in searches],
        "on a plateau, whose smallest coefficient is taken": [bool(search["plateau"]) for search in searches],
    }
    said = [f"{sum(of)} of {len(of)} searches end {kind}" for kind, of in kinds.items() if any(of)]
    return "; ".join([_measured(searches), *said])


def _measured(searches: Sequence[Result]) -> str:
    counts, points = ([search[which] for search in searches] for which in ("measured", "points"))
    missed = "" if counts == points else ", so that one between them may be better"
    return f"{_range(counts)} of {_range(points)} points of the grid were measured{missed}"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"
