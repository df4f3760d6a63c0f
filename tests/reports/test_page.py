"""The page as a file: a strict content policy, data as data, valid HTML, small scripts."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from taskvec import reports
from taskvec.reports.numbers import Mean, Range, Several, number_of, percent
from taskvec.reports.page import Page, Section, render_page
from taskvec.reports.tables import Table

SCRIPTS = Path(reports.__path__[0]) / "scripts"
VOID = {"meta", "img", "input", "br", "link", "hr", "col"}
HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}{% raw %}",
    "a\u202egnp.exe",
    "\x00\x07\x1b[2J\x85\u2028",
    "**bold** `code` [a](javascript:alert(1)) | \\",
    "x" * 300,
    "<!-- ",
    "&lt;b&gt;",
    "\ud800",
]


@dataclass(frozen=True)
class Live:
    """A table with data beside it."""

    template: ClassVar[str] = "table"
    told: Any
    title: str = "t"
    columns: tuple[str, ...] = ("a",)
    rows: tuple[tuple[str, ...], ...] = ()
    note: str = ""
    folded: tuple[int, ...] = ()

    def data(self) -> Mapping[str, Any]:
        return {"told": self.told}

    def shown_heads(self) -> tuple[()]:
        return ()

    def shown_groups(self) -> tuple[()]:
        return ()


class Read(HTMLParser):
    """Elements, their attributes and texts; complains about what is left open, twice an id, or a handler."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names)
        assert not [name for name in names if name == "style" or name.startswith("on")]
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(*blocks: Any, **more: Any) -> str:
    return render_page(Page("A run", "What it is.", "What came of it.", [Section("s", "S", blocks)], **more))


def inlined(page: str, tag: str) -> list[str]:
    return re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)


def test_the_policy_allows_the_one_style_and_the_one_script_and_nothing_else() -> None:
    page = page_of(Table("t", ["a"], [["1"]]))
    [policy] = [of["content"] for of in Read(page).of("meta") if of.get("http-equiv")]
    assert policy
    [style], [script] = inlined(page, "style"), inlined(page, "script")
    for kind, text in {"script": script, "style": style}.items():
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert "default-src 'none';" in policy and "unsafe" not in policy and "http" not in policy
    assert "<!--" not in script and "</" not in script


def test_scripts_are_small_strict_and_write_no_markup() -> None:
    [script] = inlined(page_of(), "script")
    assert len(script.encode()) <= 25_000
    assert sum(path.stat().st_size for path in SCRIPTS.glob("*.js")) <= 25_000
    for path in sorted(SCRIPTS.glob("*.js")):
        text = path.read_text("utf-8")
        assert text.startswith('"use strict";\n'), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", text), (
            path
        )
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), path


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_wherever_they_stand(name: str) -> None:
    table = Table(name, [name, "x"], [[name, name], ["", Mean([1, 2])]], name, {0: name}, folded=[1])
    page = render_page(
        Page(name, name, name, [Section("s", name, [table])], [table], {name: name}, [table], footer=name)
    )
    page.encode()
    read = Read(page)
    assert len(read.of("script")) == 1 and not read.of("img")
    ids = [of["id"] for _, of in read.elements if "id" in of]
    assert len(set(ids)) == len(ids)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028]", page)
    seen = [text for text in read.texts if "x" * 300 in text or text.strip()]
    if name.isprintable():
        assert seen.count(name) >= 8
    else:
        assert any("\\u" in text or "\\x" in text for text in seen)


@pytest.mark.parametrize("name", HOSTILE)
def test_data_of_a_block_come_back_as_they_were(name: str) -> None:
    page = page_of(Live({name: [name, 1.5, None]}))
    [text] = re.findall(r'<script type="application/json">(.*?)</script>', page, flags=re.DOTALL)
    assert not re.search("[<>&\u2028]", text)
    found = json.loads(text)
    if name.isprintable():
        assert found == {"told": {name: [name, 1.5, None]}}
    assert Read(page).of("script")[1:] == [{"type": "application/json"}]


def test_numbers_that_are_none_are_null() -> None:
    page = page_of(Live([float("nan"), float("inf"), 1.0]))
    assert '{"told":[null,null,1.0]}' in page


def test_landmarks_and_headings_are_in_order() -> None:
    table = Table("A table", ["", "b"], [["row", 1]], "How to read it.")
    page = page_of(table, overview=[table], records=[table], settings={"seed": 0})
    read = Read(page)
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert [len(read.of(tag)) for tag in ("main", "nav", "header")] == [1, 1, 1]
    ids = {of["id"] for _, of in read.elements if "id" in of}
    assert {str(of["href"])[1:] for of in read.of("a")} <= ids
    for tag, attributes in read.elements:
        if tag == "th":
            assert attributes["scope"] in ("col", "row", "rowgroup")
        for kind in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(kind, "overview") in ids


def test_cells_say_what_they_are_sorted_by_and_made_of() -> None:
    rows = [
        [
            "a",
            percent([0.5, 0.7]),
            Range([0.3, 0.5]),
            Several([percent([0.9, 0.8]), Mean([2.0])]),
            "+1.5 ± 0.2*",
        ],
        ["b", percent([None]), Range([1]), Several(["–", percent([0.1])]), "none"],
        ["c", 7, float("nan"), 3.5, "−2"],
    ]
    [(_, shown)] = Table("t", list("abcde"), rows).shown_groups()
    assert [[cell.value for cell in row] for row in shown] == [
        [None, "60", "0.3", "85", "1.5"],
        [None, None, "1", "10", None],
        [None, "7", None, "3.5", "-2"],
    ]
    assert shown[0][1].detail == "2 values: 50.0, 70.0"
    assert shown[0][2].detail == "2 values: 0.3, 0.5"
    assert shown[0][3].detail == "2 values: 90.0, 80.0"
    assert not any(cell.detail for cell in shown[1])


@pytest.mark.parametrize(
    "text, value", [("3 tasks", 3), ("0.5–0.7", None), ("-1", -1), ("1e-3", 0.001), ("2nd", None), ("", None)]
)
def test_text_that_opens_with_a_number_is_sorted_by_it(text: str, value: float | None) -> None:
    assert number_of(text) == value


def test_the_best_of_each_group_is_marked_where_a_table_compares() -> None:
    rows: list[list[object]] = [["a", 1, 1], ["b", 3, 3], ["c", 2, 2], ["d", 5, 5], ["e", "–", "–"]]
    table = Table("t", ["", "more", "less ↓"], rows, heads={0: "one", 3: "other"}, compared=[1, 2])
    marked = [
        (row[0].text, place)
        for _, of in table.shown_groups()
        for row in of
        for place, cell in enumerate(row)
        if "best" in (cell.classes or "")
    ]
    assert marked == [("a", 2), ("b", 1)]  # in a group of one number there is nothing to choose


def test_equal_looking_cells_are_marked_alike() -> None:
    table = Table(
        "t", ["", "x"], [["a", Mean([0.91])], ["b", Mean([0.92])], ["c", Mean([0.1])]], compared=[1]
    )
    [(_, shown)] = table.shown_groups()
    assert ["best" in (row[1].classes or "") for row in shown] == [True, True, False]


def test_a_closed_table_is_a_title_that_opens_without_a_script() -> None:
    page = page_of(Table("cosines", ["", "a"], [["a", "1"]], closed=True), Table("open", ["x"], [["1"]]))
    [closed] = re.findall(r"<details><summary>cosines</summary>(.*?)</details>", page, flags=re.DOTALL)
    assert "<table" in closed and 'class="unseen">cosines</h3>' in closed
    assert page.count("<table") == 2
