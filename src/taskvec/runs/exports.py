"""What a paper or a script needs of runs: tidy CSV, JSON, and tables for LaTeX."""

import csv
import io
from collections.abc import Sequence
from itertools import chain
from typing import Any

from taskvec.reports.latex import latex_of
from taskvec.reports.tables import Table
from taskvec.runs.comparison import aligned, compare
from taskvec.runs.figures import Fact
from taskvec.runs.report import facts_of as results_of
from taskvec.runs.report import page_of
from taskvec.runs.several import Run
from taskvec.studies.record import plain

COLUMNS = (
    *("run", "study", "row", "regime", "seed", "task", "metric", "value", "low", "high", "n"),
    *("coefficient", "consumed", "seconds", "key"),
)
"""Of the CSV."""


def csv_of(runs: Sequence[Run]) -> str:
    """Every figure as a line.

    A name that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_plain(cell) for cell in _cells(run, fact)] for run in runs for fact in run.facts)
    return text.getvalue()


def _cells(run: Run, fact: Fact) -> list[object]:
    low, high = fact.interval or (None, None)
    consumed = None if fact.consumed is None else "; ".join(fact.consumed) or "nothing"
    return [
        *(run.label, fact.study, fact.row, fact.regime, fact.seed, fact.task, fact.metric),
        *(fact.value, low, high, fact.n, fact.coefficient, consumed, fact.seconds, fact.key),
    ]


def _plain(cell: object) -> object:
    if isinstance(cell, str) and cell[:1] in tuple("=+-@\t\r"):
        return f"'{cell}"
    return cell


def json_of(runs: Sequence[Run]) -> dict[str, Any]:
    """All results of the runs, every figure, and of several how they compare; ``format`` is its version."""
    told: dict[str, Any] = {
        "format": 1,
        "runs": [
            {
                "label": run.label,
                "finished": run.finished,
                "results": results_of(run.results),
                "figures": [dict(zip(COLUMNS, _cells(run, fact), strict=True)) for fact in run.facts],
            }
            for run in runs
        ],
    }
    if len(runs) > 1:
        told["compared"] = compare(runs)
    facts: dict[str, Any] = plain(told)
    return facts


def latex_tables(runs: Sequence[Run]) -> str:
    """Every table of the runs for LaTeX, to paste: they need the package booktabs."""
    several = len(runs) > 1
    tables = [("comparison", table) for table in aligned(runs)] if several else []
    tables += [(run.label, table) for run in runs for table in _tables(run)]
    texts = [
        latex_of(table, f"{label}: {table.title}" if several else table.title, f"{label} {number}")
        for number, (label, table) in enumerate(tables, start=1)
    ]
    return "% needs \\usepackage{booktabs}\n\n" + "\n".join(texts)


def _tables(run: Run) -> list[Table]:
    """Those of its page."""
    page = page_of(run.results, {})
    blocks = chain(page.overview, *(section.blocks for section in page.sections))
    return [block for block in blocks if isinstance(block, Table)]
