"""Scaling coefficients chosen on validation data."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import groupby, takewhile
from typing import Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from taskvec.arguments import checked
from taskvec.config import Config
from taskvec.errors import Diverged
from taskvec.evaluation.metrics import absolute, normalized

METHOD = "whole range, every hump"
"""How coefficients are searched: a part of the key of every result that a search decides."""

_LOST = 1e3
"""Objective of a coefficient that loses the controls: below that of any that keeps them."""

Values = Mapping[str, float]
Measure = Callable[[float], Values]


class Grid(Config):
    """Equally spaced coefficients from ``start`` to ``limit``, both included.

    :func:`maximize` searches all of it, every ``coarse``-th point first; with ``coarse=1`` every point is
    measured. ``stop`` does not end the search: it ends the range that one expects, and a best coefficient at
    or past it is remarked. ``stop`` and ``limit`` lie a whole number of steps from ``start``.
    """

    start: float = 0.0
    stop: float = 1.0
    step: PositiveFloat = 0.05
    limit: float = 2.0
    coarse: PositiveInt = 4

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.start < self.stop <= self.limit:
            raise ValueError("start < stop <= limit must hold")
        for name, end in {"stop": self.stop, "limit": self.limit}.items():
            steps = (end - self.start) / self.step
            if steps > 100_000:
                raise ValueError(f"{name} {end:g} is more than 100,000 steps of {self.step:g} away")
            if abs(steps - round(steps)) > 1e-6:
                raise ValueError(
                    f"{name} {end:g} is not a whole number of steps of {self.step:g} from {self.start:g}"
                )
        return self

    def point(self, index: int) -> float:
        """The coefficient at ``index``; computed so that 1.0 is 1.0 and not 1.0000000000000002."""
        return round(self.start + index * self.step, 10)

    @property
    def points(self) -> int:
        """Points up to ``stop``."""
        return round((self.stop - self.start) / self.step) + 1

    @property
    def last(self) -> int:
        """The index of ``limit``."""
        return round((self.limit - self.start) / self.step)

    def scaled(self, factor: float) -> "Grid":
        """The same points in a unit ``factor`` times as small."""
        ends = {name: getattr(self, name) * factor for name in ("start", "stop", "step", "limit")}
        return Grid(**ends, coarse=self.coarse)

    def widened(self, factor: float) -> "Grid":
        """From the same start by the same step to ends ``factor`` (1 or more) times as large, rounded up."""

        def end(value: float) -> float:
            steps = (max(value, value * factor) - self.start) / self.step
            return self.point(math.ceil(round(steps, 6)))

        return self.model_copy(update={"stop": end(self.stop), "limit": end(self.limit)})


@dataclass(frozen=True)
class Search:
    """The coefficient chosen, and how."""

    coefficient: float
    values: dict[str, float]
    """Validation values there, by task."""
    trace: list[tuple[float, float]]
    """(coefficient, objective) of every point measured, in order of coefficients; minus infinity where the
    model's outputs are not finite."""
    grid: Grid
    satisfied: bool = True
    """Some coefficient other than zero met the constraint (negation only)."""

    @property
    def extended(self) -> bool:
        """The coefficient lies at or past ``stop``, the end of the range that one expects."""
        return self.coefficient >= self.grid.point(self.grid.points - 1)

    @property
    def at_limit(self) -> bool:
        """It is the last of the grid: a larger coefficient may be better."""
        return self.coefficient == self.grid.point(self.grid.last)

    @property
    def open_ended(self) -> bool:
        """It, or the end of its plateau, is the last of the grid, and zero is worse."""
        end = self.plateau[1] if self.plateau else self.coefficient
        return end == self.grid.point(self.grid.last) and self.coefficient != 0

    @property
    def measured(self) -> int:
        """Points of the grid that were measured; where others are left, one of them may be better."""
        return len(self.trace)

    @property
    def points(self) -> int:
        """Points of the whole grid."""
        return self.grid.last + 1

    @cached_property
    def plateau(self) -> tuple[float, float] | None:
        """The first and the last of neighbouring measured points that are as good; the first is chosen."""
        best = dict(self.trace)[self.coefficient]
        onward = [(alpha, height) for alpha, height in self.trace if alpha >= self.coefficient]
        *_, (end, _) = takewhile(lambda measured: measured[1] == best, onward)
        return None if end == self.coefficient else (self.coefficient, end)

    def record(self) -> dict[str, object]:
        """Plain data, for a results record."""
        return {
            "coefficient": self.coefficient,
            "validation": self.values,
            "grid_extended": self.extended,
            "at_grid_limit": self.at_limit,
            "satisfied": self.satisfied,
            "plateau": self.plateau and list(self.plateau),
            "measured": self.measured,
            "points": self.points,
            "remark": self.remark,
            "trace": [(alpha, height if math.isfinite(height) else None) for alpha, height in self.trace],
        }

    @property
    def remark(self) -> str:
        """What a reader of the table must know about this coefficient; empty if nothing."""
        if not self.satisfied:
            return "no coefficient keeps the control"
        if self.coefficient == 0:
            return "no coefficient is better than none"
        return ", ".join(self._remarks())

    def _remarks(self) -> Iterator[str]:
        if self.at_limit:
            yield "at the limit of the grid"
        elif self.extended:
            yield "grid extended"
        if self.coefficient == self.grid.point(0):
            yield "at the start of the grid"
        if self.plateau:
            first, end = self.plateau
            limit = " (the limit of the grid)" if end == self.grid.point(self.grid.last) else ""
            yield f"plateau {first:g} to {end:g}{limit}"
        if lost := [alpha for alpha, height in self.trace if height == -math.inf]:
            yield f"outputs not finite at {', '.join(f'{alpha:g}' for alpha in lost)}"


@checked
def search_addition(measure: Measure, single: Values, grid: Grid | None = None) -> Search:
    """The coefficient of largest mean normalized validation accuracy; ties go to the smaller one.

    Args:
        measure: validation value of each task at a coefficient; a pass over the data.
        single: validation value of each task's own model, the denominators.
    """
    return maximize(lambda values: normalized(values, single), measure, grid or Grid())


@checked
def search_scale(measure: Measure, single: Values, grid: Grid | None = None) -> Search:
    """As :func:`search_addition`, for vectors of any length: while the best coefficient, or the end of its
    plateau, is the grid's last, the grid is doubled, three times at most."""
    known = cache(measure)
    search = search_addition(known, single, grid)
    for _ in range(3):
        if not search.open_ended:
            break
        search = search_addition(known, single, search.grid.widened(2))
    return search


@dataclass(frozen=True)
class SearchEach:
    """A coefficient of its own for every task."""

    coefficients: dict[str, float]
    values: dict[str, float]
    """Validation values there, by task."""
    objective: float
    sweeps: int
    """Rounds over all tasks; the last one changed nothing."""
    measured: int
    """Points that were measured, of (points of the grid) to the power of the number of tasks."""

    def record(self) -> dict[str, object]:
        """Plain data, for a results record."""
        return {
            "coefficients": self.coefficients,
            "validation": self.values,
            "objective": self.objective,
            "sweeps": self.sweeps,
            "measured": self.measured,
            "optimum": "no single coefficient can be changed for the better",
        }


@checked
def search_each(
    measure: Callable[[Mapping[str, float]], Values],
    single: Values,
    start: Mapping[str, float],
    grid: Grid | None = None,
) -> SearchEach:
    """One coefficient a task, by coordinate ascent on the objective of :func:`search_addition`.

    Task by task, every point of the grid up to its limit is tried with the others held; sweeps go on until
    one changes nothing. A coefficient moves only to a strictly better place, and of equal ones to the
    nearest, so that flat stretches of a metric do not carry it away. Never worse than ``start``.

    Every line along one coefficient is searched whole, and so the end is the best on each of the T lines
    through it. It may still be a local optimum: two coefficients changed at once may be better.

    Args:
        measure: validation value of each task at a point; called T times the grid a sweep, so it had better
            be cheap, as it is in tangent space.
        single: validation value of each task's own model, the denominators.
        start: where to begin, such as the best shared coefficient for every task.
    """
    grid = grid or Grid()
    choices = [grid.point(index) for index in range(grid.last + 1)]
    at = dict(start)
    values = measure(at)
    height, sweeps, measured, moved = normalized(values, single), 0, 1, True
    while moved:
        sweeps, moved = sweeps + 1, False
        for task in start:
            here = at[task]
            tried = {choice: measure({**at, task: choice}) for choice in choices if choice != here}
            measured += len(tried)
            heights = {choice: normalized(outcome, single) for choice, outcome in tried.items()}
            best = max(heights, key=lambda choice: (heights[choice], -abs(choice - here), -choice))
            if heights[best] > height:
                at[task], values, height, moved = best, tried[best], heights[best], True
    return SearchEach(dict(at), dict(values), height, sweeps, measured)


@checked
def search_negation(
    measure: Measure, target: str, before: Values, grid: Grid | None = None, keep: float = 0.95
) -> Search:
    """The coefficient of lowest target value that keeps the controls at ``keep`` of what they were.

    Args:
        measure: validation values of target and controls with the vector subtracted ``coefficient`` times.
        target: the task to forget; all other tasks in ``before`` are controls, judged by their mean.
        before: validation values of the pre-trained model.
        keep: share of the controls' mean value that must remain.

    Returns: coefficient 0 when nothing else is better; with ``satisfied=False`` when no other coefficient
        keeps the controls.
    Source: Ilharco et al. 2022 (arXiv:2212.04089), section 3; the threshold of Ortiz-Jimenez et al. 2023.
    """
    controls = [task for task in before if task != target]
    floor = keep * absolute({task: before[task] for task in controls})

    def objective(values: Values) -> float:
        kept = absolute({task: values[task] for task in controls}) >= floor
        return -values[target] if kept else -_LOST - values[target]

    search = maximize(objective, measure, grid or Grid())
    kept = [alpha for alpha, height in search.trace if alpha != 0 and height > -_LOST / 2]
    return replace(search, satisfied=bool(kept))


def maximize(objective: Callable[[Values], float], measure: Measure, grid: Grid) -> Search:
    """The best point of the grid: a coarse pass over all of it, then every point where it may be.

    1. Every ``coarse``-th point is measured, and the last.
    2. A *hump* is a run of these, equal among themselves, whose neighbours on either side are lower. From the
       highest hump down, all points are measured between its neighbours. A hump is passed over if
       ``coarse - 1`` times as much as it rises within two strides would not lift it to the best point so far.

    Every point is measured at most once; of equal ones the smallest is chosen. A point where the model's
    outputs are not finite is worse than any other.

    Guarantee, for any function: the neighbours of the chosen point are measured too, and not better. No point
    of the grid is better, and no equal one smaller, if the function is constant in pieces of ``coarse``
    points or more; or peaks with straight flanks of ``coarse`` steps or more, as far apart at their feet, on
    one floor; or in general if the best point lies in a stretch of ``coarse`` points or more in which the
    function rises, then falls, with as many points on either side (up to the ends of the grid) that are
    lower than all of the stretch, and step 2 does not pass it over. What is narrower may lie between points
    of the coarse pass: unless all were measured (``measured == points``), a better one may be missed.

    Raises: Diverged if there is no point with finite outputs.
    """
    values: dict[int, Values] = {}
    heights: dict[int, float] = {}

    def visit(index: int) -> None:
        if index not in heights:
            try:
                values[index] = measure(grid.point(index))
                heights[index] = objective(values[index])
            except Diverged:
                heights[index] = -math.inf

    coarse = [*range(0, grid.last, grid.coarse), grid.last]
    for index in coarse:
        visit(index)
    humps = _humps([heights[index] for index in coarse])
    for height, rise, first, last in sorted(humps, key=lambda hump: (-hump[0], hump[2])):
        if height + (grid.coarse - 1) * rise >= max(heights.values()):
            for index in range(coarse[max(first - 1, 0)], coarse[min(last + 1, len(coarse) - 1)]):
                visit(index)
    if not values:
        raise Diverged(
            f"the model's outputs are finite at no coefficient from {grid.start:g} to {grid.limit:g}; "
            "choose smaller ones"
        )
    chosen = max(heights, key=lambda index: (heights[index], -index))
    trace = [(grid.point(index), heights[index]) for index in sorted(heights)]
    return Search(grid.point(chosen), dict(values[chosen]), trace, grid)


def _humps(heights: Sequence[float]) -> Iterator[tuple[float, float, int, int]]:
    """Runs of equal heights without a higher neighbour: height, rise within two places, first and last."""
    first = 0
    for height, group in groupby(heights):
        last = first + len(list(group)) - 1
        around = heights[max(first - 2, 0) : last + 3]
        if height == max(heights[max(first - 1, 0) : last + 2]) and height > -math.inf:
            yield height, height - min(around), first, last
        first = last + 1
