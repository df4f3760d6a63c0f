"""Tables: the same content for a terminal, Markdown and HTML."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Cells are text, or numbers that ``str`` shows (see ``numbers.py``); ``note`` says how to read them."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def markdown(self) -> str:
        """A GitHub table with its title and note."""
        head, *body = map(_row, (self.columns, *self.rows))
        rule = "|" + " --- |" + " ---: |" * (len(self.columns) - 1)
        note = [f"\n{self.note}"] if self.note else []
        return "\n".join([f"**{_literal(self.title)}**\n", head, rule, *body, *note]) + "\n"


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(_literal(str(cell)) for cell in cells) + " |"


def _literal(text: str) -> str:
    """Text in which the characters of a pattern, which a regime may be, stand for themselves."""
    return re.sub(r"[\\|*`<]", r"\\\g<0>", text)
