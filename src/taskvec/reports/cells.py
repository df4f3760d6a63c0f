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
