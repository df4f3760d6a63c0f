"""Reports of real runs, made of the records that are kept in ``docs/gallery``."""

import gzip
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from handbook.links import ROOT
from taskvec.reports.page import render_page
from taskvec.runs.reporting import page_of_runs
from taskvec.runs.several import open_runs, reading

FOLDER = PurePosixPath("docs/gallery")


def moved() -> dict[str, str]:
    """The folder of a run in the repository -> its page on the site."""
    return {str(folder): f"gallery/{folder.name}.html" for folder in runs()}


def runs() -> list[PurePosixPath]:
    """The folders of the runs, in the repository."""
    return sorted(FOLDER / path.name for path in (ROOT / FOLDER).iterdir() if path.is_dir())


def reports() -> Iterator[tuple[PurePosixPath, str]]:
    """The page of every run, and its place on the site."""
    for folder in runs():
        with TemporaryDirectory() as place:
            run = Path(place, folder.name)
            run.mkdir()
            for packed in (ROOT / folder).glob("*.gz"):
                (run / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
            opened = open_runs([run])
            with reading(opened):
                yield PurePosixPath(moved()[str(folder)]), render_page(page_of_runs(opened))
