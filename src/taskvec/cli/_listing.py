"""How the commands that list things print: one line each, or one in full."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import yaml

from taskvec.cli._common import print_json

T = TypeVar("T")


def print_entry(entry: Mapping[str, object], json: bool) -> None:
    """One entry in full, as YAML (a piece of a suite file that could be edited) or as JSON."""
    if json:
        print_json(entry)
    else:
        sys.stdout.write(yaml.safe_dump(dict(entry), sort_keys=False, allow_unicode=True, width=100))


def print_entries(
    entries: Iterable[T],
    json: bool,
    record: Callable[[T], Mapping[str, object]],
    columns: Sequence[str],
    row: Callable[[T], Sequence[object]],
) -> None:
    """All entries: their records as JSON; or a line for the names of the columns and one for each entry,
    aligned and never folded."""
    if json:
        print_json([record(entry) for entry in entries])
        return
    table = [list(map(str, cells)) for cells in (columns, *map(row, entries))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        sys.stdout.write("  ".join(padded).rstrip() + "\n")
