"""What ``run`` and ``demo`` share: the folder, progress, and showing results."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from taskvec.cli._common import print_json, print_table

if TYPE_CHECKING:
    from taskvec.studies.store import Store
    from taskvec.studies.study import Results

Fresh = Annotated[bool, Parameter(name="--force", negative=())]
Output = Annotated[Path, Parameter(name=["--output", "-o"])]
Seeds = Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative=())]
Show = Callable[["Results"], None]


@contextmanager
def running(store: "Store", *, force: bool, json: bool) -> Iterator[Show]:
    """Hold a run folder for this process; what is given writes the report and prints the tables."""
    from taskvec.runs.report import facts_of, write_report

    output = store.folder

    def show(results: "Results") -> None:
        tables = write_report(results, output)
        if json:
            print_json(facts_of(results))
            return
        for table in tables:
            print_table(table.title, table.columns, table.rows, note=table.note)
        sys.stdout.write(f"Written: {output / 'report.html'}, report.md, results.json, records.jsonl\n")

    with store.locked(fresh=force):
        yield show
