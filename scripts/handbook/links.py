"""Links between pages: as they stand in the repository, and as they stand on the site."""

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?![a-z]+:)([^)#\s]*)(#[^)\s]*)?\)")
FILES = PurePosixPath("files")
"""Where on the site the files lie that pages link to and that are no pages."""


def anchor(heading: str) -> str:
    """What links call a heading, on the site as on hosts of repositories."""
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def place_of(path: PurePosixPath) -> PurePosixPath:
    """Where a file of the repository is on the site."""
    if path.parts[:1] == ("docs",):
        return path.relative_to("docs")
    if path == PurePosixPath("README.md"):
        return PurePosixPath("index.md")
    if (ROOT / path).is_dir():
        return FILES / path / "index.md"
    if len(path.parts) == 1 and path.suffix == ".md":
        return PurePosixPath(path.name.lower())
    return FILES / path


def linked(text: str, page: PurePosixPath) -> set[PurePosixPath]:
    """The files of the repository that a page of it links to."""
    return {path for found in LINK.finditer(text) if (path := _target(found[1], page))}


def relink(text: str, page: PurePosixPath, place: PurePosixPath, moved: Mapping[str, str]) -> str:
    """The text of a page of the repository for another place, on the site.

    Args:
        page: where it is in the repository.
        place: where it will be on the site.
        moved: ``docs/page.md#heading`` -> the place of the page that this section has on the site.
    """

    def changed(found: re.Match[str]) -> str:
        path = _target(found[1], page)
        if path is None:
            return found[0]
        new = moved.get(f"{path}{found[2] or ''}")
        target, anchor = (new, "") if new else (str(place_of(path)), found[2] or "")
        if target == str(place) and anchor:
            return f"]({anchor})"
        return f"]({os.path.relpath(target, place.parent)}{anchor})"

    return LINK.sub(changed, text)


def _target(link: str, page: PurePosixPath) -> PurePosixPath | None:
    """What a link leads to; nothing if that is not there, as in code that looks like a link."""
    path = PurePosixPath(os.path.normpath(page.parent / link)) if link else page
    return path if (ROOT / path).exists() and path.parts[0] != ".." else None
