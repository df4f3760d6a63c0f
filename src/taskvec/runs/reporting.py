"""The page of run folders."""

from collections.abc import Sequence
from dataclasses import replace

from taskvec.errors import InputError
from taskvec.reports.page import Page
from taskvec.runs.examples import example_blocks
from taskvec.runs.report import page_of
from taskvec.runs.several import Run


def page_of_runs(runs: Sequence[Run], title: str | None = None) -> Page:
    """The page of a run. Raises: InputError for several; CorruptFile."""
    if len(runs) > 1:
        raise InputError("report: the page is of one run; --csv, --latex and --json take several")
    [run] = runs
    page = page_of(run.results, {"inspect": example_blocks(run.results, run.folder)})
    return replace(page, title=title) if title else page
