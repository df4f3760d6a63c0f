"""Names, texts and tasks of a user stay data: nothing of them runs, all of it is shown, the layout holds."""

import base64
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from struct import pack

import pytest

from browsing import Browser
from taskvec.reports.block import Block, Figure
from taskvec.reports.charts.dots import Dots, Row, Rows
from taskvec.reports.charts.scales import Axis
from taskvec.reports.examples import Example, Examples
from taskvec.reports.numbers import Mean
from taskvec.reports.page import Page, Section, render_page
from taskvec.reports.tables import Table

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "end": "</script></style></title></textarea><script>alert(1)</script>",
    "handler": "\"><img src=x onerror=alert(1)>'><svg onload=alert(1)>",
    "template": "{{7*7}}{% raw %}{# #}${7*7}",
    "turned": "a\u202egnp.\u2066exe\u200f",
    "controls": "\x00\x07\x1b[2J\x85\u2028b",
    "marks": "**b** _i_ `code` [a](javascript:alert(1)) | \\ # - >",
    "long": "x" * 300,
    "words": "many words " * 40,
    "comment": "<!-- <![CDATA[ --!> &lt;b&gt; &#60;",
    "wide": "漢字と絵文字🙂" * 20,
}
SHOWN = {"turned": r"a\u202egnp.\u2066exe\u200f", "controls": r"\x00\x07\x1b[2J\x85\u2028b"}


def picture() -> bytes:
    """A PNG of one grey pixel."""
    parts = {
        b"IHDR": pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0),
        b"IDAT": zlib.compress(b"\x00\x80"),
        b"IEND": b"",
    }
    chunks = (
        pack(">I", len(of)) + kind + of + pack(">I", zlib.crc32(kind + of)) for kind, of in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def blocks(name: str, folder: Path) -> Sequence[Block]:
    """One of every kind, with the name wherever a name goes."""
    image = folder / "figure.png"
    image.write_bytes(picture())
    rows = [[name, name, Mean([1, 2]), Mean([3])] for _ in range(9)]
    example = Example(name, name, name, name, [name], name, text=name)
    pixel = Example(name, name, name, name, [name], name, picture=base64.b64encode(picture()).decode())
    dots = Rows(name, Axis(name), {name: [Row(name, {name: [1.0, 2.0], f"{name} ": [3.0]})]}, {name: 2.0})
    return [
        Table(name, [name, name, "a", "b"], rows, name, {0: name, 3: name}, compared=[2], folded=[1]),
        Figure(image, name),
        Examples(name, [name], [example, pixel], name),
        Dots(name, name, [dots]),
    ]


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_names_are_shown_and_nothing_runs(browser: Browser, tmp_path: Path, kind: str) -> None:
    name = HOSTILE[kind]
    of = blocks(name, tmp_path)
    page = tmp_path / "page.html"
    page.write_text(
        render_page(Page(name, name, name, [Section("s", name, of)], of[:1], {name: name}, [of[0]], name)),
        "utf-8",
    )
    for width in (360, 1400):
        browser.open(page, width=width)
        assert browser.js("return document.documentElement.scrollWidth") <= width
        for _, left, _, right, _ in browser.boxes("h1, h2, h3, p, figure, nav, .scroll, summary, footer"):
            assert left >= 0 and right <= width + 0.5
    assert browser.js("return [...document.scripts].filter((script) => !script.type).length") == 1
    assert browser.js("return document.querySelectorAll('img').length") == 2
    for control in ("button", "details summary"):
        browser.js("document.querySelectorAll(arguments[0]).forEach((element) => element.click())", control)
    browser.js("""
      for (const element of document.querySelectorAll("[data-tip]")) {
        element.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
      }
      for (const field of document.querySelectorAll("input[type=search]")) {
        field.value = "a";
        field.dispatchEvent(new Event("input", {bubbles: true}));
      }
    """)
    browser.wait(100)
    assert not browser.complaints()
    assert browser.requests() == [page.absolute().as_uri()]
    seen = re.sub(r"\s+", " ", SHOWN.get(kind, name)).strip()
    for selector in ("h1", "h2:not(.unseen)", "h3", ".lead", "td.words", "tr.head th", ".note", "nav a"):
        text = browser.js(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector
        )
        assert any(seen in re.sub(r"\s+", " ", found) for found in text), selector
