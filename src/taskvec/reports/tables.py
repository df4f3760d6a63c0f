"""Tables: the same content for a terminal, Markdown and HTML."""

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
        return "\n".join([f"**{self.title}**\n", head, rule, *body, *note]) + "\n"


def _row(cells: Sequence[object]) -> str:
    """A line of a GitHub table; a regime may be a pattern with alternatives, which would end its cell."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
