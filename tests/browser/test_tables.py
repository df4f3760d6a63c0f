"""Tables of a page under a reader's hands."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from browsing import Browser
from taskvec.reports.numbers import Mean, Range, Several, percent
from taskvec.reports.page import Page, Section, render_page
from taskvec.reports.tables import Table

ROWS = [
    ["zero", percent([0.5, 0.7]), Mean([900.0], ".4g"), "–", "none"],
    ["TIES | 2", percent([0.095, 0.097]), Mean([None]), Range([0.3, 0.5]), "10 rounds"],
    ["sum", percent([1.0]), Mean([1e-5], ".3g"), Several([Mean([2.0]), percent([0.9])]), "9 rounds"],
    ["m10", percent([None]), Mean([12.5]), "−3.0 ± 0.1*", ""],
    ["m9", percent([0.61]), Mean([-4.0]), "+2.5 ± 0.1", "b"],
    ["é", 61, Mean([80.0]), "+11.0", "a"],
    ["last", percent([0.2]), Mean([7.0]), 0, "c"],
    ["more", percent([0.3]), Mean([8.0]), 1, "d"],
]
COLUMNS = ["method", "accuracy", "loss ↓", "− sum", "words"]


def shown(browser: Browser, column: int = 0) -> list[str]:
    """The cells of a column that are seen, in their order."""
    found: list[str] = browser.js(
        """
        return [...document.querySelectorAll("#s-1 tbody tr:not(.head)")].filter((row) => row.offsetParent)
          .map((row) => row.cells[arguments[0]].innerText);
        """,
        column,
    )
    return found


def sort_by(browser: Browser, column: int) -> str | None:
    """Press the head of a column; how it says that it is sorted."""
    browser.js("document.querySelectorAll('#s-1 thead th button')[arguments[0]].focus()", column)
    browser.press("ENTER")
    said: str | None = browser.js(
        "return document.querySelectorAll('#s-1 thead th')[arguments[0]].ariaSort", column
    )
    return said


Open = Callable[..., Browser]


@pytest.fixture
def open_table(browser: Browser, tmp_path: Path) -> Open:
    def opened(table: Table, width: int = 1400) -> Browser:
        path = tmp_path / "page.html"
        path.write_text(render_page(Page("t", "", "", [Section("s", "S", [table])])), "utf-8")
        browser.open(path, width=width)
        return browser

    return opened


def test_columns_sort_by_value_and_back(open_table: Open) -> None:
    browser = open_table(Table("t", COLUMNS, ROWS))
    first = [str(row[0]) for row in ROWS]
    assert sort_by(browser, 1) == "descending"
    assert shown(browser) == ["sum", "m9", "é", "zero", "more", "last", "TIES | 2", "m10"]
    assert sort_by(browser, 1) == "ascending"
    assert shown(browser) == ["TIES | 2", "last", "more", "zero", "m9", "é", "sum", "m10"]
    assert sort_by(browser, 1) is None
    assert shown(browser) == first
    assert sort_by(browser, 2) == "ascending"  # less is better there
    assert shown(browser, 2) == ["-4.0", "1e-05", "7.0", "8.0", "12.5", "80.0", "900", "–"]
    assert sort_by(browser, 3) == "descending"
    assert shown(browser)[:2] == ["é", "m9"] and shown(browser)[-2:] == ["m10", "zero"]
    assert sort_by(browser, 0) == "ascending"
    assert shown(browser) == ["é", "last", "m9", "m10", "more", "sum", "TIES | 2", "zero"]
    assert sort_by(browser, 4) == "descending"
    assert shown(browser, 4)[:2] == ["10 rounds", "9 rounds"]
    assert not browser.complaints()


def test_groups_sort_within_themselves(open_table: Open) -> None:
    browser = open_table(Table("t", COLUMNS, ROWS, heads={0: "one", 4: "other"}))
    sort_by(browser, 1)
    assert shown(browser) == ["sum", "zero", "TIES | 2", "m10", "m9", "é", "more", "last"]
    heads = browser.js("return [...document.querySelectorAll('tr.head')].map((row) => row.innerText.trim())")
    assert heads == ["one", "other"]


@pytest.mark.parametrize("seed", range(2))
def test_any_numbers_sort_as_numbers(open_table: Open, seed: int) -> None:
    draw = Random(seed)
    values = [draw.choice([-1, 1]) * 10 ** draw.uniform(-9, 9) for _ in range(40)]
    rows = [[f"row {place}", Mean([value], ".2g")] for place, value in enumerate(values)]
    browser = open_table(Table("t", ["", "x"], rows))
    sort_by(browser, 1)
    ranked = sorted(range(40), key=lambda place: -values[place])
    assert shown(browser) == [f"row {place}" for place in ranked]


def test_rows_are_filtered_by_words_and_heads_go_with_them(open_table: Open) -> None:
    browser = open_table(Table("t", COLUMNS, ROWS, heads={0: "One", 4: "other"}))
    browser.js("document.querySelector('#s-1 input').focus()")
    browser.press("r", "o", "u", "n", "d")
    assert shown(browser) == ["TIES | 2", "sum"]
    assert browser.js("return document.querySelectorAll('tr.head')[1].offsetParent") is None
    assert browser.js("return document.getElementById('said').textContent") == "2 rows"
    browser.press(" ", "t", "i")
    assert shown(browser) == ["TIES | 2"]
    browser.press("x")
    assert shown(browser) == [] and browser.boxes("#s-1 .none")
    browser.press(*["BACKSPACE"] * 9)
    assert len(shown(browser)) == 8 and not browser.boxes("#s-1 .none")
    browser.press("o", "n", "e")
    assert shown(browser)[:4] == ["zero", "TIES | 2", "sum", "m10"]


def test_seeds_are_told_on_hover_and_focus(open_table: Open) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    browser = open_table(Table("t", COLUMNS, ROWS))
    tip = "return document.getElementById('tip').innerText"
    cell = browser.chrome.find_element(By.CSS_SELECTOR, "[data-tip]")
    ActionChains(browser.chrome).move_to_element(cell).perform()
    assert browser.js(tip) == "2 values: 50.0, 70.0"
    browser.press("ESCAPE")
    assert not browser.boxes("#tip")
    browser.js("document.querySelectorAll('#s-1 thead button')[1].focus()")
    browser.press("ARROW_DOWN")
    assert browser.js(tip) == "2 values: 50.0, 70.0"
    assert browser.js("return document.activeElement.getAttribute('aria-describedby')") == "tip"
    browser.press("ARROW_DOWN")
    assert browser.js(tip) == "2 values: 9.5, 9.7"
    browser.press("ARROW_RIGHT")
    assert browser.js(tip) == "2 values: 0.3, 0.5"
    browser.press("TAB")
    assert not browser.boxes("#tip")
    stops = "return document.querySelectorAll('#s-1 table [tabindex=\"0\"]').length"
    assert browser.js(stops) == 1  # one stop of Tab, however many cells


def test_a_tip_stays_inside_the_window(open_table: Open) -> None:
    rows = [[f"r{place}", *(Mean([0.123, 0.2], ".9f") for _ in range(5))] for place in range(3)]
    browser = open_table(Table("t", ["", *"abcde"], rows), width=360)
    browser.js("document.querySelector('#s-1 thead button').focus()")
    browser.press("ARROW_DOWN")
    for key in (*["ARROW_RIGHT"] * 4, *["ARROW_DOWN"] * 2, *["ARROW_LEFT"] * 4):
        browser.press(key)
        browser.wait(50)
        [(_, left, top, right, bottom)] = browser.boxes("#tip")
        scroll = browser.js("return scrollY")
        assert left >= 0 and right <= 360 and scroll <= top and bottom <= scroll + 900


def test_many_columns_fold(open_table: Open) -> None:
    columns = ["method", *(f"task {place}" for place in range(20)), "mean"]
    rows = [[f"m{row}", *(percent([0.5]) for _ in range(20)), percent([0.6])] for row in range(9)]
    browser = open_table(Table("t", columns, rows, folded=range(1, 21)), width=800)
    heads = """
      return [...document.querySelectorAll("thead th")].filter((head) => head.offsetParent)
        .map((head) => head.innerText);
    """
    assert browser.js(heads) == ["method", "mean"]
    browser.js("document.querySelector('[data-fold]').focus()")
    browser.press("ENTER")
    assert browser.js(heads) == columns
    assert browser.js("return document.querySelector('[data-fold]').ariaExpanded") == "true"
    assert browser.js("return document.documentElement.scrollWidth") <= 800
    browser.js("document.querySelector('.scroll').scrollLeft = 500")
    [(_, left, *_rest)] = browser.boxes("tbody tr:first-child th")
    [(_, start, *_rest)] = browser.boxes(".scroll")
    assert left == pytest.approx(start, abs=1)  # the first column stays


def test_tables_are_copied_as_they_are_seen(open_table: Open) -> None:
    rows = [["TIES | 2", Mean([1.0])], ["sum", Mean([3.0])]]
    browser = open_table(Table("t", ["method", "x"], rows, heads={0: "one", 1: "other"}))
    browser.js("""
      addEventListener("copy", (event) => {
        document.body.dataset.copied = event.clipboardData.getData("text/plain");
      });
      document.querySelector("[data-copy]").focus();
    """)
    browser.press("ENTER")
    browser.wait(50)
    assert (
        browser.js("return document.body.dataset.copied") == "method\tx\none\nTIES | 2\t1.0\nother\nsum\t3.0"
    )
    assert browser.js("return document.getElementById('said').textContent") == "Copied"
