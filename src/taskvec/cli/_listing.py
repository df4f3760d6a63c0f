"""How the commands that list things print: one line each, or one in full."""

import sys
from collections.abc import Mapping, Sequence

import yaml

from taskvec.cli._common import print_json


def show(entry: Mapping[str, object], json: bool) -> None:
    """One entry in full, as YAML (a piece of a suite file that could be edited) or as JSON."""
    if json:
        print_json(entry)
    else:
        sys.stdout.write(yaml.safe_dump(dict(entry), sort_keys=False, allow_unicode=True, width=100))


def print_lines(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A line for the names of the columns and one for each entry, aligned and never folded."""
    table = [list(map(str, row)) for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
