"""How every analysis ends: files in a folder, and the table or the record on standard output."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from taskvec.cli._common import print_json, print_table

if TYPE_CHECKING:
    from taskvec.reports.analyses import Draw, Record
    from taskvec.reports.tables import Table

Output = Annotated[
    Path,
    Parameter(name=["--output", "-o"], help="A folder for record.json, table.md and figure.png."),
]


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder that must not be written to, before the work.

    Raises: OutputExists.
    """
    from taskvec.reports import analyses

    analyses.check_folder(folder, force=force)


def finish(
    record: "Record", tables: "Sequence[Table]", draw: "Draw", folder: Path, *, force: bool, json: bool
) -> None:
    """Write the analysis, with the versions that made it; print its tables, or the record for ``json``."""
    from taskvec.reports.analyses import write_analysis
    from taskvec.runs.store import versions

    record = {**record, "versions": versions()}
    written = write_analysis(record, tables, draw, folder, force=force)
    if json:
        print_json(record)
        return
    for table in tables:
        print_table(table.title, table.columns, table.rows, note=table.note)
    sys.stdout.write(f"Written: {', '.join(map(str, written))}\n")
