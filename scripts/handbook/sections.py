"""The sections of a page, each of which says what one method is."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from handbook.links import ROOT

SOURCES = {
    "rules": PurePosixPath("docs/rules.md"),
    "penalties": PurePosixPath("docs/penalties.md"),
    "learned": PurePosixPath("docs/coefficients.md"),
    "after": PurePosixPath("docs/learned-merges.md"),
    "served": PurePosixPath("docs/library.md"),
}
"""Family of methods -> the page of the repository with their sections."""

_SECTION = re.compile(r"^## `([^`]+)`\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


@dataclass
class Section:
    """The paragraphs of a section, by what they say."""

    intro: list[str] = field(default_factory=list)
    equation: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    usage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source: list[str] = field(default_factory=list)


def sections_of(text: str) -> Mapping[str, Section]:
    """The sections of a page whose heading is a name in backticks."""
    return {name: _sorted(body) for name, body in _SECTION.findall(text)}


def without_sections(text: str) -> str:
    """The rest of the page."""
    return _SECTION.sub("", text)


def read(page: PurePosixPath) -> str:
    """A page of the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def _sorted(body: str) -> Section:
    made = Section()
    for block in _blocks(body):
        _part(made, block).append(block)
    return made


def _part(made: Section, block: str) -> list[str]:
    if block.startswith("    ") and not made.equation and "taskvec " not in block:
        return made.equation
    if block.startswith("- `") and not made.options:
        return made.options
    if re.match(r"`taskvec |    taskvec |```", block):
        return made.usage
    if block.startswith("Source: "):
        return made.source
    return made.notes if made.equation else made.intro


def _blocks(body: str) -> Iterator[str]:
    """Paragraphs; code with its blank lines is one."""
    for part in re.split(r"(^```.*?^```$)", body, flags=re.MULTILINE | re.DOTALL):
        yield from [part] if part.startswith("```") else filter(str.strip, part.strip("\n").split("\n\n"))
