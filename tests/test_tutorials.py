"""The tutorials: their notebooks are made of the pages, and every cell prints what the page shows."""

import re
import shlex
from pathlib import Path

import pytest

from cli.test_edit_commands import Run
from notebooks import FOLDER, Cell, cells_of, notebook_of

PAGES = sorted(FOLDER.glob("*.md"))

WORDED = ("time ", "Gain on ")
"""Lines whose words depend on their figures."""

SHORTER = {
    "--steps 40 --batch-size 16": "--steps 2 --batch-size 4",
    "--steps 20 --batch-size 16": "--steps 2 --batch-size 4",
    "steps: 15, batch_size: 16": "steps: 2, batch_size: 4",
    "steps: 5, batch_size: 16": "steps: 1, batch_size: 4",
    "train: 400, validation: 100, test: 200": "train: 16, validation: 8, test: 16",
    "step: 0.25": "step: 0.5",
    "--evaluations 6": "--evaluations 3",
    "--limit 60": "--limit 12",
}
"""What the pages run -> what the test runs: other figures, the same lines."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_notebook_is_made_of_the_page(page: Path) -> None:
    made = notebook_of(page.read_text(encoding="utf-8"))
    assert page.with_suffix(".ipynb").read_text(encoding="utf-8") == made, "run python scripts/notebooks.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_cell_prints_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, object] = {}
    for cell in cells_of(page.read_text(encoding="utf-8")):
        cell = cell._replace(text=_shorter(cell.text))
        shown = [line for line in lines(cell.printed) if not line.startswith(WORDED)]
        printed = lines(_printed(cell, names, capsys))
        assert [line for line in shown if line not in printed] == [], (cell.text, printed)


def _shorter(text: str) -> str:
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    return text


def _printed(cell: Cell, names: dict[str, object], capsys: pytest.CaptureFixture[str]) -> str:
    if cell.kind == "command":
        done = Run(capsys, tuple(shlex.split(cell.text)[1:]))
        refused = "taskvec: " in cell.printed
        assert done.code == (2 if refused else 0), (cell.text, done.err)
        return done.out + done.err
    if cell.kind == "yaml":
        Path(cell.text.splitlines()[0].removeprefix("# ")).write_text(cell.text, encoding="utf-8")
    if cell.kind == "python":
        capsys.readouterr()
        exec(cell.text, names)
        return str(capsys.readouterr().out)
    return ""


def lines(text: str) -> list[str]:
    """The lines that hold words, without frames; figures, which other machines may round, are a ``#``."""
    bare = (re.sub(r"[\s│┃]+", " ", line).strip() for line in text.splitlines())
    return [
        re.sub(r"\b[0-9a-f]{32}\b|<?[-+−]?\d[\d.,]*(e-\d+)?( [kMGT]?B\b)?", "#", line)
        for line in bare
        if re.search(r"[^\W\d_]", line)
    ]
