"""What the pages for newcomers show is what happens: commands run, and print the lines that are shown."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cli.test_edit_commands import Run
from pages import save_all

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # PEFT asks for it

DOCS = Path(__file__).parents[1] / "docs"
SNIPPET = re.compile(r"^    \$ taskvec (.*)\n((?:    (?!\$).*\n)*)|^```(\w+)\n([^`]*)```", re.MULTILINE)


class Shown(NamedTuple):
    """A command and what it prints; or a file, or a piece of Python."""

    command: str
    printed: str
    language: str
    text: str


def snippets(page: str) -> Iterator[Shown]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return (Shown(*(part or "" for part in found.groups())) for found in SNIPPET.finditer(text))


def lines(text: str) -> list[str]:
    """Lines without margins and frames, where six spaces continue a line; figures, which depend on random
    weights, are each a ``#``."""
    whole = re.sub(r"\n {6}", " ", text)
    bare = (re.sub(r"[\s│┃]+", " ", line).strip() for line in whole.splitlines())
    return [
        re.sub(r"\b[0-9a-f]{32}\b|-?\d[\d.,]*(e-\d+)?", "#", line) for line in bare if re.search(r"\w", line)
    ]


@pytest.mark.parametrize("page", ["two-checkpoints.md", "chat-vectors.md"])
def test_what_a_page_shows_happens(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_all()
    names: dict[str, object] = {}
    for shown in snippets(page):
        if shown.command:
            done = Run(capsys, tuple(shlex.split(shown.command)))
            printed = lines(done.out) + lines(done.err)
            absent = [line for line in lines(shown.printed) if line not in printed]
            assert not absent, f"taskvec {shown.command}\n{done.out}{done.err}"
            assert done.code == (2 if "taskvec: " in shown.printed else 0), done.err
        elif shown.language == "python":
            exec(shown.text, names)
        elif file := re.match(r"# (\S+\.ya?ml)", shown.text):
            Path(file[1]).write_text(shown.text, encoding="utf-8")
