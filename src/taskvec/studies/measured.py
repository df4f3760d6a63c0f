"""What protocols share: figures of an edit, the search of its coefficient, and how tables show them."""

from collections.abc import Mapping, Sequence

from taskvec.evaluation.metrics import absolute, normalized
from taskvec.evaluation.search import METHOD, Grid
from taskvec.reports.numbers import Range, Several, percent
from taskvec.studies.record import Record


class Scored(Record):
    """A model on one split of one task."""

    metric: str
    value: float
    examples: int


class Measured(Record):
    """An edit on several tasks, in fractions."""

    absolute: float
    normalized: float
    values: dict[str, float]
    """By task."""


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


def measured(values: Mapping[str, float], single: Mapping[str, float]) -> dict[str, object]:
    """Absolute and normalized, always side by side: normalized alone rewards weak single-task models."""
    return {"absolute": absolute(values), "normalized": normalized(values, single), "values": dict(values)}


def search_inputs(grid: Grid) -> dict[str, object]:
    """What decides a search, for the key of its result."""
    return {"grid": grid.model_dump(), "search": METHOD}


def both(edits: Sequence[Measured]) -> Several:
    """Absolute / normalized, over seeds."""
    return Several([percent([edit.absolute for edit in edits]), percent([edit.normalized for edit in edits])])


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
