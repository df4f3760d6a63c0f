"""What methods gave, and the rows that tables and figures show of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from pydantic import Field

from taskvec.merging.method import Consumed
from taskvec.reports.numbers import NOTHING, Range
from taskvec.studies.hits import pack_hits as pack_hits
from taskvec.studies.hits import unpack_hits
from taskvec.studies.measured import Measured, Searched
from taskvec.studies.numerics.paired import Difference, paired_difference
from taskvec.studies.record import Record

How = Literal["default", "searched", "none"]


class Outcome(Measured):
    """What a method gives at one scaling coefficient, on test data."""

    how: How
    coefficient: float | None
    consumed: list[Consumed]
    search: Searched | None = None


class Compared(Record):
    """What a method made of some tasks' vectors."""

    cell = "method"
    name: str
    tasks: list[str]
    left_out: str | None = None
    """Why it cannot be made of them."""
    failed: str | None = None
    """What went wrong with it in this run; not on record, so that the next run tries again."""
    outcomes: list[Outcome] = Field(default_factory=list)
    diverged: dict[How, str] = Field(default_factory=dict)
    """The outcomes that there are none of, since the model's outputs are not finite."""
    seconds: float | None = None
    """That making it took; measuring it is not counted."""
    peak_bytes: int | None = None
    coefficients: int = 0
    """Numbers that were learned on data, beside the scaling coefficient."""
    facts: dict[str, Any] = Field(default_factory=dict)

    def outcome(self, how: How) -> Outcome | None:
        """At the coefficient that was found in this way."""
        return next((outcome for outcome in self.outcomes if outcome.how == how), None)


@dataclass(frozen=True)
class Row:
    """A row of a table: a method at a coefficient found in one way, an outcome a seed."""

    name: str
    of: Sequence[Compared]
    outcomes: Sequence[Outcome]

    @property
    def how(self) -> How:
        """How its scaling coefficient was found."""
        return self.outcomes[0].how

    @property
    def label(self) -> str:
        """Its name where no column says how the coefficient was found."""
        return f"{self.name} (α searched)" if self.how == "searched" else self.name

    @property
    def consumed(self) -> list[Consumed]:
        """Beside the vectors."""
        return self.outcomes[0].consumed

    @property
    def group(self) -> str:
        """The head that it stands under."""
        return ", ".join(self.consumed) or "nothing"

    @property
    def alpha(self) -> str:
        """The scaling coefficient, or its range over seeds."""
        found = [outcome.coefficient for outcome in self.outcomes if outcome.coefficient is not None]
        if not found:
            return NOTHING
        return f"{Range(found)}{' searched' if self.how == 'searched' else ''}"

    @property
    def order(self) -> tuple[list[int], float]:
        """Where it stands: by the most that it consumed, then by what it gives."""
        order = get_args(Consumed)
        consumed = sorted((order.index(each) for each in self.consumed), reverse=True)
        return consumed, -sum(outcome.absolute for outcome in self.outcomes)


def rows_of(compared: Sequence[Sequence[Compared]]) -> list[Row]:
    """The rows of a table, grouped by what was consumed, the best of a group first.

    Args:
        compared: of each method, a record a seed. What is missing with one seed has no row.
    """
    rows = [
        Row(of[0].name, of, outcomes)
        for of in compared
        for how in get_args(How)
        if len(outcomes := [found for each in of if (found := each.outcome(how))]) == len(of)
    ]
    return sorted(rows, key=lambda row: row.order)


def groups_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what they consumed, in their order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return groups


def sums_of(rows: Sequence[Row]) -> Mapping[How, Row]:
    """Plain addition, by how its coefficient was found."""
    return {row.how: row for row in rows if row.name == "sum"}


def difference(row: Row, other: Row) -> Difference | None:
    """How much better a row is than another on the same examples; none unless every task's are right or
    wrong."""
    tasks = list(row.outcomes[0].values)
    if any(task not in of.hits for of in (row.outcomes[0], other.outcomes[0]) for task in tasks):
        return None
    pairs = list(zip(row.outcomes, other.outcomes, strict=True))
    return paired_difference(
        [
            np.stack(
                [unpack_hits(mine.hits[task]) - unpack_hits(others.hits[task]) for mine, others in pairs]
            )
            for task in tasks
        ]
    )
