"""Tables: the same content for a terminal, Markdown and HTML."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar

from taskvec.reports.numbers import Number, number_of

Cells = Sequence[object]


@dataclass(frozen=True)
class Table:
    """Cells are text, or numbers that ``str`` shows (see ``numbers.py``); ``note`` says how to read them.

    Args:
        heads: of groups of rows, by the place of a group's first row.
        compared: columns whose best number in each group a page marks: the greatest, or the least where the
            column's name ends with ↓.
        folded: columns that a page shows when asked, if there are many, such as one a task.
        closed: whether a page shows only the title, until it is asked, as where a chart says the same.
    """

    template: ClassVar[str] = "table"

    title: str
    columns: Sequence[str]
    rows: Sequence[Cells]
    note: str = ""
    heads: Mapping[int, str] = field(default_factory=dict)
    compared: Sequence[int] = ()
    folded: Sequence[int] = ()
    closed: bool = False

    @classmethod
    def grouped(
        cls,
        title: str,
        columns: Sequence[str],
        groups: Mapping[str, Sequence[Cells]],
        note: str = "",
        compared: Sequence[int] = (),
        folded: Sequence[int] = (),
    ) -> "Table":
        """Of groups of rows under heads."""
        places = accumulate((len(rows) for rows in groups.values()), initial=0)
        rows = [row for group in groups.values() for row in group]
        heads = dict(zip(places, groups, strict=False))
        return cls(title, columns, rows, note, heads, compared, folded)

    def groups(self) -> Iterator[tuple[str, Sequence[Cells]]]:
        """Heads and the rows under them; rows without a head stand under an empty one."""
        starts = sorted({0, *self.heads})
        for start, end in zip(starts, [*starts[1:], len(self.rows)], strict=True):
            yield self.heads.get(start, ""), self.rows[start:end]

    def data(self) -> None:
        """Its rows are all there is."""

    def shown_heads(self) -> Iterator["Shown"]:
        """The names of columns as a page shows them."""
        for place, name in enumerate(self.columns):
            words = place == 0 or not any(number_of(row[place]) is not None for row in self.rows)
            yield Shown(name, _classes(words=words, fold=place in self.folded))

    def shown_groups(self) -> Iterator[tuple[str, list[list["Shown"]]]]:
        """Heads and rows as a page shows them."""
        heads = [head.classes for head in self.shown_heads()]
        for head, rows in self.groups():
            best = {place: _best(rows, place, self.columns[place].endswith("↓")) for place in self.compared}
            yield (
                head,
                [
                    [
                        _shown(cell, classes, marked=best.get(place) == str(cell))
                        for place, (cell, classes) in enumerate(zip(row, heads, strict=True))
                    ]
                    for row in rows
                ],
            )

    def markdown(self) -> str:
        """A GitHub table with its title and note."""
        rule = "|" + " --- |" + " ---: |" * (len(self.columns) - 1)
        note = [f"\n{self.note}"] if self.note else []
        title = f"**{literal(self.title)}**\n"
        return "\n".join([title, _row(self.columns), rule, *self._body(), *note]) + "\n"

    def _body(self) -> Iterator[str]:
        for head, rows in self.groups():
            if head:
                yield f"| **{literal(head)}** |" + " |" * (len(self.columns) - 1)
            yield from map(_row, rows)


@dataclass(frozen=True)
class Shown:
    """A cell, or the name of a column, as attributes and text of HTML; those that are None are left out."""

    text: str
    classes: str | None = None
    value: str | None = None
    """What it is sorted by."""
    detail: str | None = None
    """What it is made of."""


def _shown(cell: object, classes: str | None, *, marked: bool) -> Shown:
    value, detail = number_of(cell), cell.detail if isinstance(cell, Number) else ""
    return Shown(
        str(cell),
        f"{classes or ''} best".strip() if marked else classes,
        None if value is None else f"{value:.9g}".replace("inf", "Infinity"),
        detail or None,
    )


def _classes(**on: bool) -> str | None:
    return " ".join(name for name, is_on in on.items() if is_on) or None


def _best(rows: Sequence[Cells], place: int, less: bool) -> str | None:
    """How the best number of a column looks; none where there is nothing to choose."""
    found = [(value, str(row[place])) for row in rows if (value := number_of(row[place])) is not None]
    if len({text for _, text in found}) < 2:
        return None
    return (min if less else max)(found, key=lambda pair: pair[0])[1]


def _row(cells: Cells) -> str:
    return "| " + " | ".join(literal(str(cell)) for cell in cells) + " |"


def literal(text: str) -> str:
    """Text in which the characters of a pattern, which a regime may be, stand for themselves."""
    return re.sub(r"[\\|*`<]", r"\\\g<0>", text)
