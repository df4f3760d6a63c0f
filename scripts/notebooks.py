"""Notebooks of the tutorials, made of their pages: ``python scripts/notebooks.py``.

A command becomes a cell that runs it, a YAML block that begins with its file's name a cell that writes it,
a Python block a cell. Printed output is left out, for the reader's machine to make.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
PART = re.compile(
    r"^    \$ (?P<command>taskvec .*)\n(?P<printed>(?:    (?!\$ ).*\n)*)"
    r"|^```(?P<language>python|yaml)\n(?P<text>[\s\S]*?)^```\n(?:\n```text\n(?P<shown>[\s\S]*?)^```\n)?",
    re.MULTILINE,
)


class Cell(NamedTuple):
    """A piece of a page: ``prose``, or a ``command``, ``python`` or a ``yaml`` file, with what it prints."""

    kind: str
    text: str
    printed: str = ""


def cells_of(page: str) -> Iterator[Cell]:
    """The pieces of a page in their order."""
    place = 0
    for found in PART.finditer(page):
        if prose := page[place : found.start()].strip():
            yield Cell("prose", prose)
        if found["command"]:
            yield Cell("command", found["command"], found["printed"])
        else:
            yield Cell(found["language"], found["text"].strip(), found["shown"] or "")
        place = found.end()
    if prose := page[place:].strip():
        yield Cell("prose", prose)


def source_of(cell: Cell) -> str:
    """What stands in the notebook's cell."""
    if cell.kind == "command":
        return f"!{cell.text}"
    if cell.kind == "yaml":
        name = cell.text.splitlines()[0].removeprefix("# ")
        return f"%%writefile {name}\n{cell.text}"
    return cell.text


def notebook_of(page: str) -> str:
    """A notebook, as JSON, without outputs."""
    cells = [_cell(number, cell) for number, cell in enumerate(cells_of(page))]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


def _cell(number: int, cell: Cell) -> dict[str, object]:
    code = cell.kind != "prose"
    made: dict[str, object] = {"cell_type": "code" if code else "markdown", "id": f"cell-{number}"}
    made |= {"metadata": {}, "source": source_of(cell).splitlines(keepends=True)}
    return made | ({"execution_count": None, "outputs": []} if code else {})


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        path.with_suffix(".ipynb").write_text(notebook_of(text), encoding="utf-8")
