"""The site holds every page, in the navigation too, and its links lead somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
import yaml

import taskvec as tv
from handbook import api, built, gallery
from handbook.__main__ import main, repository_pages
from handbook.links import place_of, relink
from taskvec.cli import COMMANDS


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("handbook")
    main(folder)
    return folder


def entries(navigation: object) -> Iterator[str]:
    if isinstance(navigation, str):
        yield navigation
    elif isinstance(navigation, list | dict):
        for inside in navigation.values() if isinstance(navigation, dict) else navigation:
            yield from entries(inside)


def listed(written: Path) -> list[str]:
    text = (written / "mkdocs.yml").read_text(encoding="utf-8")
    return list(entries(yaml.safe_load(text[text.index("\nnav:") :])))


def test_every_page_is_in_the_navigation_once(written: Path) -> None:
    pages = {str(path.relative_to(written / "docs")) for path in (written / "docs").rglob("*.md")}
    shown = listed(written)
    missing = {page for page in pages if not page.startswith("files/")} - set(shown)
    assert not missing, f"give {sorted(missing)} a place in scripts/handbook/navigation.yaml"
    assert sorted(set(shown)) == sorted(shown) and set(shown) <= pages
    assert {str(place_of(page)) for page in repository_pages()} <= pages


def test_every_link_of_a_page_leads_to_a_file(written: Path) -> None:
    wrong = [
        f"{path.name}: {link}"
        for path in (written / "docs").rglob("*.md")
        for link in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", without_code(path.read_text(encoding="utf-8")))
        if not (path.parent / link).exists()
    ]
    assert not wrong


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|^    .*$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def test_every_command_has_a_page_with_its_options(written: Path) -> None:
    for name in COMMANDS:
        assert (
            (written / "docs/commands" / f"{name}.md")
            .read_text(encoding="utf-8")
            .startswith(f"# taskvec {name}\n")
        )
    merge = (written / "docs/commands/merge.md").read_text(encoding="utf-8")
    assert "--dry-run" in merge and "taskvec merge [OPTIONS]" in merge and "[recipes](../recipes.md)" in merge


def test_every_public_name_is_on_one_page_of_the_interface() -> None:
    shown = re.findall(r"^::: (taskvec\S+)$", "\n".join(api.pages().values()), re.MULTILINE)
    public = {f"taskvec.{api.home(name)}.{name}" for name in tv.__all__ if name != "__version__"}
    assert public <= set(shown) and len(set(shown)) == len(shown)


def test_the_gallery_has_the_report_of_every_run_that_is_kept(written: Path) -> None:
    page = (written / "docs/gallery.md").read_text(encoding="utf-8")
    for run in gallery.runs():
        report = (written / f"docs/gallery/{run.name}.html").read_text(encoding="utf-8")
        assert f"](gallery/{run.name}.html)" in page
        assert "<table" in report and "Content-Security-Policy" in report


@pytest.mark.parametrize(
    ("text", "page", "place", "expected"),
    [
        ("[a](docs/rules.md)", "README.md", "index.md", "[a](rules.md)"),
        ("[a](../README.md#tangent-space)", "docs/ntk.md", "ntk.md", "[a](index.md#tangent-space)"),
        ("[a](rules.md#ties)", "docs/ntk.md", "ntk.md", "[a](methods/ties.md)"),
        ("[a](#ties)", "docs/rules.md", "methods/dare.md", "[a](ties.md)"),
        ("[a](#laws)", "docs/rules.md", "rules.md", "[a](#laws)"),
        ("[a](#laws)", "docs/rules.md", "methods/dare.md", "[a](../rules.md#laws)"),
        (
            "[a](../experiments/minilm.txt)",
            "docs/results.md",
            "results.md",
            "[a](files/experiments/minilm.txt)",
        ),
        ("[a](benchmarks/results)", "README.md", "index.md", "[a](files/benchmarks/results/index.md)"),
        ("[a](../CONTRIBUTING.md)", "docs/rules.md", "rules.md", "[a](contributing.md)"),
        ("[a](https://arxiv.org/abs/1)", "docs/rules.md", "rules.md", "[a](https://arxiv.org/abs/1)"),
        ("layers[0](x)", "docs/rules.md", "rules.md", "layers[0](x)"),
        ("[a](../../elsewhere.md)", "docs/rules.md", "rules.md", "[a](../../elsewhere.md)"),
    ],
)
def test_links_follow_their_pages(text: str, page: str, place: str, expected: str) -> None:
    moved = {"docs/rules.md#ties": "methods/ties.md"}
    assert relink(text, PurePosixPath(page), PurePosixPath(place), moved) == expected


def site(folder: Path, **pages: str) -> Path:
    for name, text in pages.items():
        path = folder / f"{name.replace('__', '/')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_a_site_that_keeps_to_itself_is_left_in_peace(tmp_path: Path) -> None:
    page = (
        '<link rel="stylesheet" href="a.css"><h1 id="top">x</h1><a href="#top"></a><a href="in/b.html#é"></a>'
    )
    other = '<p id="é"></p><a href="../index.html#top"></a><a href="https://arxiv.org/abs/1">paper</a>'
    made = site(tmp_path, index=page, in__b=other)
    (made / "a.css").write_text("p { background: url(data:image/png;base64,) }")
    assert list(built.complaints(made)) == []


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ('<script src="https://cdn.example/x.js"></script>', "index.html: fetches https://cdn.example/x.js"),
        ('<img alt="" src="//cdn.example/x.png">', "index.html: fetches //cdn.example/x.png"),
        (
            '<link href="https://fonts.example/a" rel="stylesheet">',
            "index.html: fetches https://fonts.example/a",
        ),
        ("<style>@import 'https://fonts.example/a'</style>", "index.html: fetches https://fonts.example/a"),
        ('<p style="background: url(http://a.example/b)">', "index.html: fetches http://a.example/b"),
        ('<a class="x" href="gone.html">', "index.html: gone.html# leads nowhere"),
        ('<a href="index.html#gone">', "index.html: index.html#gone leads nowhere"),
        ('<a href="#gone">', "index.html: #gone leads nowhere"),
    ],
)
def test_what_leaves_a_page_or_leads_nowhere_is_said(page: str, complaint: str, tmp_path: Path) -> None:
    assert list(built.complaints(site(tmp_path, index=page))) == [complaint]


def test_the_search_of_a_page_from_a_disk_is_our_own(tmp_path: Path) -> None:
    foreign = '<script src="https://unpkg.com/iframe-worker/shim" type="text/javascript"></script>'
    made = site(tmp_path, index=foreign, in__b=foreign)
    (made / "handbook.js").write_text("")
    assert built.main(made) == 0
    assert '<script src="../handbook.js"></script>' in (made / "in/b.html").read_text(encoding="utf-8")
