"""What protocols share: figures of an edit, the search of its coefficient, and how tables show them.

Protocols compare values of which more is better, as ``tasks/score.py`` has them: those of metrics of which
less is better are reciprocals. Tables show every metric in its own unit.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from pydantic import Field

from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.metrics import absolute, normalized
from taskvec.evaluation.points import Point
from taskvec.evaluation.search import METHOD, Grid
from taskvec.reports.numbers import NOTHING, Mean, Range, Several, percent
from taskvec.studies.hits import Hits, values_and_hits
from taskvec.studies.record import Record
from taskvec.tasks.score import LOWER_IS_BETTER, utility


class Scored(Record):
    """A model on one split of one task."""

    metric: str
    value: float
    examples: int

    @property
    def utility(self) -> float:
        """The value as protocols compare it: more is better."""
        return utility(self.metric, self.value)


class Measured(Record):
    """An edit on several tasks, in values of which more is better."""

    absolute: float
    normalized: float
    values: dict[str, float]
    """By task."""
    hits: dict[str, str] = Field(default_factory=dict)
    """Which test examples are right, by task, see ``hits.py``; of runs from before there were any, none."""


class Searched(Record):
    """A coefficient chosen on validation data, and how."""

    coefficient: float
    remark: str
    at_grid_limit: bool
    plateau: tuple[float, float] | None
    measured: int
    """Points of the grid that were measured, of all its ``points``."""
    points: int


class Edit(Measured, Searched):
    """An edit at the coefficient that was chosen for it."""


def measured(
    values: Mapping[str, float], single: Mapping[str, float], hits: Hits | None = None
) -> dict[str, object]:
    """Absolute and normalized, always side by side: normalized alone rewards weak single-task models."""
    figures = {"absolute": absolute(values), "normalized": normalized(values, single), "values": dict(values)}
    return {**figures, **({"hits": dict(hits)} if hits else {})}


def measure_point(
    evaluator: Evaluator, point: Point, tasks: Iterable[str], single: Mapping[str, float]
) -> dict[str, object]:
    """What a model gives on test data, a pass a task."""
    values, hits = values_and_hits(evaluator, point, tasks)
    return measured(values, single, hits)


def search_inputs(grid: Grid) -> dict[str, object]:
    """What decides a search, for the key of its result."""
    return {"grid": grid.model_dump(), "search": METHOD}


def in_unit(metric: str, values: Sequence[float]) -> Mean:
    """Values as protocols compare them, one a seed, in the metric's own unit."""
    return own([utility(metric, value) for value in values]) if metric in LOWER_IS_BETTER else percent(values)


def own(values: Sequence[float]) -> Mean:
    """Values of a metric that is no share, such as perplexities."""
    return Mean(values, ".4g")


def mean_in_unit(metrics: Iterable[str], means: Sequence[float]) -> Mean | str:
    """Means over tasks of these metrics, one a seed; nothing for metrics of several units.

    Where less is better it is the harmonic mean.
    """
    units = units_of(metrics)
    return in_unit(units[0], means) if len(units) == 1 else NOTHING


def units_of(metrics: Iterable[str]) -> list[str]:
    """The metrics that have a unit of their own, and one for all that are shares."""
    of = {metric: metric if metric in LOWER_IS_BETTER else "" for metric in metrics}
    return list(dict.fromkeys(of.values()))


def unit_note(metrics: Collection[str]) -> str:
    """What opens a note: in which units the figures are."""
    less = [unit.replace("_", " ") for unit in units_of(metrics) if unit]
    if not less:
        return "Per cent"
    words = f"{', '.join(less)} as it is" if len(less) == 1 else f"{', '.join(less)} as they are"
    return f"{words[0].upper()}{words[1:]} (less is better)" + (
        ", others per cent" if "" in units_of(metrics) else ""
    )


def reciprocal_note(metrics: Iterable[str]) -> str:
    """What a note says of metrics of which less is better; empty without any."""
    less = [unit.replace("_", " ") for unit in units_of(metrics) if unit]
    if not less:
        return ""
    named = ", ".join(f"1 / {name}" for name in less)
    return f" Ratios, differences and means over tasks are of {named}, so that more is better."


def greatest_is_best(metrics: Iterable[str], *columns: int) -> tuple[int, ...]:
    """Columns of means, if all of them are better when they grow; for ``Table.compared``."""
    return () if LOWER_IS_BETTER & set(metrics) else columns


def titled(task: str, metric: str) -> str:
    """A task as the head of a column."""
    return f"{task} ↓" if metric in LOWER_IS_BETTER else task


def both(edits: Sequence[Measured], metrics: Mapping[str, str]) -> Several:
    """Absolute / normalized, over seeds.

    Args:
        metrics: by task.
    """
    measured_with = [metrics[task] for task in edits[0].values]
    absolutes = mean_in_unit(measured_with, [edit.absolute for edit in edits])
    return Several([absolutes, percent([edit.normalized for edit in edits])])


def coefficients(searches: Sequence[Searched]) -> Range:
    """The coefficient, or its range over seeds."""
    return Range([search.coefficient for search in searches])


def search_note(rows: Mapping[str, Sequence[Searched]]) -> str:
    """What a reader must know of the searches of labelled rows: how much they measured, every remark."""
    remarks = [f"{label}: {search.remark}" for label, of in rows.items() for search in of if search.remark]
    return "; ".join(dict.fromkeys([_coverage([search for of in rows.values() for search in of]), *remarks]))


def tally_note(searches: Sequence[Searched]) -> str:
    """The same for searches that are too many to be listed: how many end where."""
    ends = {
        "at 0": [search.coefficient == 0 for search in searches],
        "at the limit of the grid": [search.at_grid_limit for search in searches],
        "on a plateau, whose smallest coefficient is taken": [bool(search.plateau) for search in searches],
    }
    tally = [f"{sum(of)} of {len(of)} searches end {end}" for end, of in ends.items() if any(of)]
    return "; ".join([_coverage(searches), *tally])


def _coverage(searches: Sequence[Searched]) -> str:
    counts, points = [search.measured for search in searches], [search.points for search in searches]
    missed = "" if counts == points else ", so that one between them may be better"
    measured, whole = (Range(numbers, "d", by=" to ") for numbers in (counts, points))
    return f"{measured} of {whole} points of the grid were measured{missed}"
