"""What the documentation shows, block by block."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}.*\n?)+", re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ |\.venv/bin/)?taskvec ((?:.*\\\n)*.*)", re.MULTILINE)
INLINE = re.compile(r"`taskvec ([^`\n]+)`")


class Snippet(NamedTuple):
    """A block of a page: its language, empty for commands and what they print, and its text."""

    page: str
    language: str
    text: str


def snippets() -> Iterator[Snippet]:
    """All blocks of all pages."""
    for path in PAGES:
        page, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        yield from (Snippet(page, found[1], found[2]) for found in FENCED.finditer(text))
        bare = FENCED.sub("", text)
        yield from (
            Snippet(page, "", re.sub("^ {4}", "", found[0], flags=re.M)) for found in INDENTED.finditer(bare)
        )
        yield from (Snippet(page, "", f"taskvec {found[1]}") for found in INLINE.finditer(bare))


def commands() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Page and arguments of every command shown in a block, up to a comment, a pipe or a redirection."""
    for page, language, text in snippets():
        if language in ("", "sh", "bash", "console"):
            for found in COMMAND.finditer(text):
                words = words_of(found[1])
                ends = [place for place, word in enumerate(words) if word in ("|", ">", "&&", ";")]
                yield page, tuple(words[: min(ends, default=len(words))])


def words_of(command: str) -> list[str]:
    """The words of a command up to a comment; ``a.pt#b`` holds none."""
    return shlex.split(re.sub(r" +#.*", "", command.replace("\\\n", " ")))
