"""Tables: the same content for a terminal, Markdown and HTML."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar

Cells = Sequence[object]


@dataclass(frozen=True)
class Table:
    """Cells are text, or numbers that ``str`` shows (see ``numbers.py``); ``note`` says how to read them.

    Args:
        heads: of groups of rows, by the place of a group's first row.
    """

    template: ClassVar[str] = "table"

    title: str
    columns: Sequence[str]
    rows: Sequence[Cells]
    note: str = ""
    heads: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def grouped(
        cls, title: str, columns: Sequence[str], groups: Mapping[str, Sequence[Cells]], note: str = ""
    ) -> "Table":
        """Of groups of rows under heads."""
        places = accumulate((len(rows) for rows in groups.values()), initial=0)
        rows = [row for group in groups.values() for row in group]
        return cls(title, columns, rows, note, dict(zip(places, groups, strict=False)))

    def groups(self) -> Iterator[tuple[str, Sequence[Cells]]]:
        """Heads and the rows under them; rows without a head stand under an empty one."""
        starts = sorted({0, *self.heads})
        for start, end in zip(starts, [*starts[1:], len(self.rows)], strict=True):
            yield self.heads.get(start, ""), self.rows[start:end]

    def data(self) -> None:
        """Its rows are all there is."""

    def markdown(self) -> str:
        """A GitHub table with its title and note."""
        rule = "|" + " --- |" + " ---: |" * (len(self.columns) - 1)
        note = [f"\n{self.note}"] if self.note else []
        title = f"**{_literal(self.title)}**\n"
        return "\n".join([title, _row(self.columns), rule, *self._body(), *note]) + "\n"

    def _body(self) -> Iterator[str]:
        for head, rows in self.groups():
            if head:
                yield f"| **{_literal(head)}** |" + " |" * (len(self.columns) - 1)
            yield from map(_row, rows)


def _row(cells: Cells) -> str:
    return "| " + " | ".join(_literal(str(cell)) for cell in cells) + " |"


def _literal(text: str) -> str:
    """Text in which the characters of a pattern, which a regime may be, stand for themselves."""
    return re.sub(r"[\\|*`<]", r"\\\g<0>", text)
