"""Scaling coefficients chosen on validation data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from taskvec.arguments import checked
from taskvec.config import Config
from taskvec.evaluation.metrics import absolute, normalized

LOST = 1e3
"""Objective of a coefficient that loses the controls: below that of any that keeps them."""

Values = Mapping[str, float]
Measure = Callable[[float], Values]


class Grid(Config):
    """Equally spaced coefficients, both ends included, visited coarsely first.

    A search measures every ``coarse``-th point, then the neighbours of the best at half that distance, and so
    on down to one step. When the best point is the last, the grid is extended by its own step up to
    ``limit``. ``coarse=1`` visits every point. ``stop`` and ``limit`` lie a whole number of steps from
    ``start``.
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
        """The index that an extension never passes."""
        return round((self.limit - self.start) / self.step)


@dataclass(frozen=True)
class Search:
    """The coefficient chosen, and how."""

    coefficient: float
    values: dict[str, float]
    """Validation values there, by task."""
    trace: list[tuple[float, float]]
    """(coefficient, objective) of every point measured, in order of coefficients."""
    extended: bool
    """The best point lay on the upper edge of the grid, which was extended."""
    at_limit: bool
    """It lies on the edge even so: a larger coefficient may be better."""
    satisfied: bool = True
    """Some coefficient other than zero met the constraint (negation only)."""

    def record(self) -> dict[str, object]:
        """Plain data, for a results record."""
        return {
            "coefficient": self.coefficient,
            "validation": self.values,
            "grid_extended": self.extended,
            "at_grid_limit": self.at_limit,
            "satisfied": self.satisfied,
            "trace": self.trace,
        }

    @property
    def remark(self) -> str:
        """What a reader of the table must know about this coefficient; empty if nothing."""
        if not self.satisfied:
            return "no coefficient keeps the control"
        if self.coefficient == 0:
            return "no coefficient is better than none"
        if self.at_limit:
            return "at the limit of the grid"
        return "grid extended" if self.extended else ""


@checked
def search_addition(measure: Measure, single: Values, grid: Grid | None = None) -> Search:
    """The coefficient of largest mean normalized validation accuracy; ties go to the smaller one.

    Args:
        measure: validation value of each task at a coefficient; a pass over the data.
        single: validation value of each task's own model, the denominators.
    """
    return maximize(lambda values: normalized(values, single), measure, grid or Grid())


@dataclass(frozen=True)
class SearchEach:
    """A coefficient of its own for every task."""

    coefficients: dict[str, float]
    values: dict[str, float]
    """Validation values there, by task."""
    objective: float
    sweeps: int
    """Rounds over all tasks; the last one changed nothing."""

    def record(self) -> dict[str, object]:
        """Plain data, for a results record."""
        return {
            "coefficients": self.coefficients,
            "validation": self.values,
            "objective": self.objective,
            "sweeps": self.sweeps,
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
    height, sweeps, moved = normalized(values, single), 0, True
    while moved:
        sweeps, moved = sweeps + 1, False
        for task in start:
            here = at[task]
            tried = {choice: measure({**at, task: choice}) for choice in choices if choice != here}
            heights = {choice: normalized(found, single) for choice, found in tried.items()}
            best = max(heights, key=lambda choice: (heights[choice], -abs(choice - here), -choice))
            if heights[best] > height:
                at[task], values, height, moved = best, tried[best], heights[best], True
    return SearchEach(dict(at), dict(values), height, sweeps)


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
        return -values[target] if kept else -LOST - values[target]

    found = maximize(objective, measure, grid or Grid())
    kept = [alpha for alpha, height in found.trace if alpha != 0 and height > -LOST / 2]
    return replace(found, satisfied=bool(kept))


def maximize(objective: Callable[[Values], float], measure: Measure, grid: Grid) -> Search:
    """Coarse-to-fine search on ``grid``; every point is measured at most once."""
    values: dict[int, Values] = {}
    heights: dict[int, float] = {}

    def visit(index: int) -> None:
        if index not in heights:
            values[index] = measure(grid.point(index))
            heights[index] = objective(values[index])

    def best() -> int:
        return max(heights, key=lambda index: (heights[index], -index))

    edge = grid.points - 1
    for index in [*range(0, edge, grid.coarse), edge]:
        visit(index)
    extended = False
    while True:
        stride = grid.coarse
        while stride > 1:
            stride = (stride + 1) // 2
            around = best()
            for index in (around - stride, around + stride):
                if 0 <= index <= edge:
                    visit(index)
        if best() < edge or edge >= grid.last:
            break
        extended = True
        edge = min(edge + grid.coarse, grid.last)
        visit(edge)
    chosen = best()
    return Search(
        coefficient=grid.point(chosen),
        values=dict(values[chosen]),
        trace=[(grid.point(index), heights[index]) for index in sorted(heights)],
        extended=extended,
        at_limit=chosen == edge,
    )
