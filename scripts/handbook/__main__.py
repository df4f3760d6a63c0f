"""``python -m handbook FOLDER``: write the pages of the documentation site, and its configuration."""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import yaml

from handbook import api, commands, gallery, methods
from handbook.links import ROOT, linked, place_of, relink
from handbook.sections import SOURCES, read, without_sections
from taskvec.cli import COMMANDS

Pages = dict[PurePosixPath, str]
Entry = dict[str, object]
Listing = Callable[[Pages], list[object]]


def main(folder: Path) -> None:
    """Write everything below ``folder``, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = _pages()
    for place, text in pages.items():
        _write(folder / "docs" / place, text)
    for place, text in gallery.reports():
        _write(folder / "docs" / place, text)
    for path in _linked_files():
        _copy(path, folder / "docs" / place_of(path))
    for name in ("handbook.css", "handbook.js"):
        _copy(PurePosixPath("scripts/handbook", name), folder / "docs" / name)
    navigation = yaml.safe_dump({"nav": _navigation(pages)}, sort_keys=False, allow_unicode=True)
    _write(folder / "mkdocs.yml", f"{read(PurePosixPath('mkdocs.yml'))}\n{navigation}")


def repository_pages() -> list[PurePosixPath]:
    """The pages that are written by hand."""
    found = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    return sorted(PurePosixPath(path.relative_to(ROOT)) for path in found)


def _pages() -> Pages:
    moved = methods.moved() | gallery.moved()
    made = {place_of(path): _hand_written(path, moved) for path in repository_pages()}
    made |= {method.place: methods.page(method, moved) for method in methods.every_method()}
    made |= {commands.FOLDER / f"{name}.md": commands.page(name) for name in COMMANDS}
    made |= {commands.FOLDER / "index.md": commands.overview()}
    return made | api.pages() | _linked_folders()


def _hand_written(path: PurePosixPath, moved: Mapping[str, str]) -> str:
    text = read(path)
    family = next((name for name, source in SOURCES.items() if source == path and name != "after"), None)
    if family:
        text = f"{without_sections(text).rstrip()}\n\n{_listed(family)}"
    return relink(text, path, place_of(path), moved)


def _listed(family: str) -> str:
    """Links to the pages of the methods whose sections a page had."""
    found = [each for each in methods.every_method() if each.source == SOURCES[family]]
    links = " · ".join(f"[{each.name}]({each.place})" for each in found)
    return f"## A page each\n\nEquation, command, options, figures and source: {links}\n"


def _linked_files() -> Iterator[PurePosixPath]:
    """What pages link to or show and what is no page itself."""
    for path in _linked():
        yield from _inside(path) if (ROOT / path).is_dir() else [path]


def _linked_folders() -> Pages:
    """A list of the files for each folder that pages link to."""
    folders = (path for path in _linked() if (ROOT / path).is_dir())
    return {place_of(path): _folder_page(path) for path in folders}


def _folder_page(folder: PurePosixPath) -> str:
    lines = (f"- [{path.name}]({path.name})" for path in _inside(folder))
    return f"# {folder}\n\n" + "\n".join(lines) + "\n"


def _linked() -> list[PurePosixPath]:
    pages = set(repository_pages())
    found = {each for page in pages for each in linked(read(page), page)}
    return sorted(found - pages - set(gallery.runs()))


def _inside(folder: PurePosixPath) -> list[PurePosixPath]:
    return sorted(folder / each.name for each in (ROOT / folder).iterdir() if each.is_file())


def _navigation(pages: Pages) -> list[Entry]:
    written = yaml.safe_load(read(PurePosixPath("scripts/handbook/navigation.yaml")))
    return [found for entry in written if (found := _filled(entry, pages))]


def _filled(entry: Mapping[str, object] | str, pages: Pages) -> Entry | None:
    """An entry with the pages that a name with a star stands for; none if there are no such pages."""
    if isinstance(entry, str):
        made = GENERATED[entry.removesuffix("*")](pages)
        return {entry.removesuffix("*"): made} if made else None
    [(title, inside)] = entry.items()
    if isinstance(inside, str):
        return {title: str(place_of(PurePosixPath(inside)))}
    assert isinstance(inside, list)
    return {title: [found for each in inside if (found := _filled(each, pages))]}


def _method_entries(pages: Pages) -> list[object]:
    groups: dict[str, list[object]] = {title: [] for title in methods.FAMILIES.values()}
    for method in methods.every_method():
        groups[methods.FAMILIES[method.family]].append({method.name: str(method.place)})
    return [{title: entries} for title, entries in groups.items()]


def _below(*names: str) -> Listing:
    """The pages of these names or in these folders of the site, the index first."""

    def listing(pages: Pages) -> list[object]:
        found = [place for place in pages if place.parts[0] in names]
        return list(map(str, sorted(found, key=lambda place: (place.name != "index.md", place))))

    return listing


GENERATED: Mapping[str, Listing] = {
    "Tutorials": _below("tutorials"),
    "A page a method": _method_entries,
    "Reports": _below("report.md", "claims.md"),
    "Gallery": _below("gallery.md", "gallery"),
    "Command line": _below("commands"),
    "Python": _below("python"),
}
"""A name with a star in the navigation -> the pages that it stands for."""


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _copy(path: PurePosixPath, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / path, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
