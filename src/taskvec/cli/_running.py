"""What ``run`` and ``demo`` share: the folder, progress, and showing results."""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from taskvec.cli._common import print_json, print_table, watching
from taskvec.progress import Watch

if TYPE_CHECKING:
    from taskvec.reports.store import Store

Output = Annotated[Path, Parameter(name=["--output", "-o"])]
Seeds = Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative=())]
Show = Callable[[Mapping[str, Any]], None]


@contextmanager
def running(output: Path, *, force: bool, json: bool, quiet: bool) -> Iterator[tuple["Store", Watch, Show]]:
    """A run folder, held for this process; ``show`` writes the report and prints the tables."""
    from taskvec.reports.report import write_report
    from taskvec.reports.store import Store

    def show(results: Mapping[str, Any]) -> None:
        tables = write_report(results, output)
        if json:
            print_json(results)
            return
        for table in tables:
            print_table(table.title, table.columns, table.rows, note=table.note)
        sys.stdout.write(f"Written: {output / 'report.html'}, report.md, results.json, records.jsonl\n")

    if force and (output / "records.jsonl").exists():
        shutil.rmtree(output)
    store = Store(output)
    with store.locked(), watching(quiet) as watch:
        yield store, watch, show
