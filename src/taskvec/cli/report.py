"""``taskvec report``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from taskvec.cli._common import Force, print_json
from taskvec.errors import InputError, OutputExists

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskvec.runs.several import Run

_SOURCES = ("run.json", "records.jsonl")
"""Of a run folder, which no output takes the place of."""


def report(
    runs: Annotated[tuple[Path, ...], Parameter(name="RUN", negative=())],
    /,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    csv: Annotated[bool, Parameter(negative=())] = False,
    latex: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
    title: str | None = None,
    force: Force = False,
) -> None:
    """Make one page of one or several runs, or export their figures for a paper or a script.

    It reads `run.json` and `records.jsonl` of run folders, and needs neither model nor data. Several runs
    stand side by side: what was set otherwise, the same models aligned, what changed against the first.

    Examples: `taskvec report runs/text4` makes its page again, `taskvec report runs/a runs/b -o both.html`
    compares two, `taskvec report runs/a runs/b --csv -o figures.csv` gives every figure a line, and
    `taskvec report runs/text4 --latex > tables.tex` the tables of a paper.

    Args:
        runs: Folders that `taskvec run` or `taskvec demo` wrote.
        output: The file. By default the page goes to `report.html` in the folder of a single run, in place of
            what is there, and all else to standard output.
        csv: A CSV in place of the page: a line a figure, with its interval and its record.
        latex: Tables for LaTeX in place of the page, to paste; they need the package booktabs.
        json: JSON in place of the page: all results, every figure, and how the runs compare.
        title: Of the page, in place of the experiment's name.
    """
    _check(runs, output, csv + latex + json, title, force=force)
    from taskvec.runs.several import open_runs, reading

    opened = open_runs(runs)
    with reading(opened):
        if csv + latex + json:
            _export(opened, output, csv=csv, latex=latex)
        else:
            _write_page(opened, output, title)


def _write_page(runs: "Sequence[Run]", output: Path | None, title: str | None) -> None:
    from taskvec.reports.page import render_page
    from taskvec.runs.reporting import page_of_runs
    from taskvec.writing import replace_text

    path = output or runs[0].folder / "report.html"
    replace_text(path, render_page(page_of_runs(runs, title)))
    sys.stdout.write(f"Written: {path}\n")


def _check(
    runs: "Sequence[Path]", output: Path | None, exports: int, title: str | None, *, force: bool
) -> None:
    """Refuse what cannot be written, before anything is read. Raises: InputError, OutputExists."""
    if exports > 1:
        raise InputError("report: --csv, --latex and --json are given together, expected one of them")
    if exports and title:
        raise InputError("report: --title is of the page, and an export has none; leave it out")
    if output is None:
        if not exports and len(runs) > 1:
            raise InputError(
                "report: of several runs, expected -o with the file of the page, such as -o both.html"
            )
        return
    if output.is_dir():
        raise InputError(f"{output}: is a folder, expected a file; take {output / 'report.html'}")
    if not output.absolute().parent.is_dir():
        raise InputError(f"{output}: no such folder, expected one that is there; make it first")
    if output.name in _SOURCES and any(output.resolve() == (run / output.name).resolve() for run in runs):
        raise InputError(f"{output}: is what the run is read from, expected another file")
    if output.exists() and not force:
        raise OutputExists(f"{output}: exists; --force replaces it")


def _export(runs: "Sequence[Run]", output: Path | None, *, csv: bool, latex: bool) -> None:
    """Write an export to a file, or to standard output."""
    import json

    from taskvec.runs.exports import csv_of, json_of, latex_tables
    from taskvec.writing import replace_text

    if not csv and not latex and output is None:
        print_json(json_of(runs))
        return
    text = (
        csv_of(runs) if csv else latex_tables(runs) if latex else json.dumps(json_of(runs), indent=2) + "\n"
    )
    if output is None:
        sys.stdout.write(text)
        return
    replace_text(output, text)
    sys.stdout.write(f"Written: {output}\n")
