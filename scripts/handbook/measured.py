"""What was measured of each method: rows of the tables of ``docs/results.md``."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath

from handbook.links import anchor
from handbook.sections import read

RESULTS = PurePosixPath("docs/results.md")
TABLES = {
    "Methods side by side": "α",
    "Methods on real text": "α",
    "Combiners of gradients": "mean, absolute / normalized",
    "Does a coefficient of 1 do?": "penalty",
}
"""Section of the results -> the second column of its tables that have a row a method."""
BASELINES = ("zero-shot", "sum", "addition, best α")


@dataclass(frozen=True)
class Table:
    """Rows of a table of the results.

    Attributes:
        heading: of its section.
        command: what measured it.
        rows: without the ruler; the first has the names of the columns.
    """

    heading: str
    command: str
    rows: Sequence[Sequence[str]]

    def about(self, method: str) -> "Table":
        """The rows on a method, with the baselines beside it."""
        own = [row for row in self.rows[1:] if _names(row, method)]
        beside = [row for row in self.rows[1:] if row[0] in BASELINES or row[1] == "none"]
        chosen = [row for row in self.rows[1:] if row in own or (own and row in beside)]
        return Table(self.heading, self.command, [self.rows[0], *chosen])

    @property
    def anchor(self) -> str:
        """Of the section, as pages of Markdown make it."""
        return anchor(self.heading)

    def written(self) -> str:
        """As Markdown."""
        ruler = [" --- ", *[" ---: "] * (len(self.rows[0]) - 1)]
        lines = [self.rows[0], ruler, *self.rows[1:]]
        return "\n".join(f"|{'|'.join(f' {cell.strip()} ' for cell in line)}|" for line in lines)


def measured_of(method: str) -> list[Table]:
    """What the tables of the results say of a method."""
    found = (table.about(method) for table in _tables())
    return [table for table in found if any(_names(row, method) for row in table.rows[1:])]


def _names(row: Sequence[str], method: str) -> bool:
    plain = (re.sub(r" \(\d+ steps\)$| [\d.]+(, .*)?$", "", cell) for cell in row[:2])
    return any(method in re.split(r"\+(?=\w)", name) for name in plain)


@cache
def _tables() -> list[Table]:
    text = read(RESULTS)
    sections = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return [table for heading, body in sections if heading in TABLES for table in _read(heading, body)]


def _read(heading: str, body: str) -> Iterator[Table]:
    command = re.search(r"taskvec run [^`\n]*", body)
    for block in re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE):
        first, _, *rows = ([cell.strip() for cell in _cells(line)] for line in block.splitlines())
        if first[1] == TABLES[heading]:
            yield Table(heading, command[0] if command else "", [first, *rows])


def _cells(line: str) -> list[str]:
    return re.split(r"(?<!\\)\|", line)[1:-1]
