"""Charts as a reader explores them: by pointer, by keyboard, and without a script."""

from pathlib import Path

import pytest

from browsing import Browser
from taskvec.reports.charts.heat import Heat, Plane
from taskvec.reports.charts.lines import Curve, Dot, Lines, Plot
from taskvec.reports.charts.matrix import Map, Matrix, Tint
from taskvec.reports.charts.scales import Axis
from taskvec.reports.page import Page, Section, render_page

HOSTILE = "<script>alert(1)</script>"
CURVES = [
    Curve("full", [Dot(1, [10.0, 14.0]), Dot(2, [20.0])]),
    Curve(HOSTILE, [Dot(1, [5.0]), Dot(2, [7.0])]),
]
ROWS, COLUMNS = ["low", "high", HOSTILE], ["a", "b"]
VALUES = [[0.1, 0.9], [0.8, 0.2], [0.5, 0.4]]
GRID = [-1.0, 0.0, 1.0]
PLANE = [[0.11, 0.12, 0.13], [0.21, 0.22, 0.23], [0.31, 0.32, 0.33]]
CHARTS = [
    Lines("lines", "c", [Plot("p", Axis("x"), Axis("y"), CURVES), Plot("q", Axis("x"), Axis("y"), CURVES)]),
    Matrix("matrix", "c", [Map("", ROWS, COLUMNS, VALUES)], Tint(0.0, 1.0)),
    Heat("heat", "c", ("α", "β"), GRID, [Plane("", PLANE)], Tint(0.0, 1.0, "ξ")),
    Matrix("layers", "c", [Map("", ["t"], [f"layer {n}" for n in range(40)], [list(range(40))])], form=""),
    Lines("folded", "c", [Plot("", Axis("x"), Axis("y"), CURVES)], folded="Training"),
]

TIP = "const tip = document.getElementById('tip'); return tip.hidden ? null : tip.textContent"
OVER = """
const {left, top, width, height} = arguments[0].getBoundingClientRect();
const [x, y] = arguments[1];
const at = {clientX: left + x * width, clientY: top + y * height, bubbles: true};
for (const kind of ["pointerover", "pointermove"]) arguments[0].dispatchEvent(new PointerEvent(kind, at));
"""


@pytest.fixture(scope="module")
def charts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("charts") / "page.html"
    sections = [Section(chart.name, chart.name, [chart]) for chart in CHARTS]
    path.write_text(render_page(Page("Charts", "", "", sections)), "utf-8")
    return path


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scripts", [True, False])
def test_charts_fit_and_are_seen_with_and_without_scripts(
    browser: Browser, charts: Path, width: int, scripts: bool
) -> None:
    browser.open(charts, width=width, scripts=scripts)
    assert browser.js("return document.documentElement.scrollWidth") <= width
    assert (
        len(browser.boxes("#lines .panel svg, #matrix .panel svg, #heat .panel svg, #layers .panel svg")) == 5
    )
    assert browser.js("return getComputedStyle(document.querySelector('.s1 .mark')).fill") != "rgb(0, 0, 0)"
    assert not browser.complaints()


def test_a_tooltip_says_the_values_of_every_seed(browser: Browser, charts: Path) -> None:
    browser.open(charts)
    mark = "document.querySelector('#lines .mark')"
    browser.js(f"{OVER.replace('arguments[0]', mark)}", None, [0.5, 0.5])
    assert browser.js(TIP) == "full, at 1: 12 ± 2.828 (10, 14)"
    assert browser.js("return document.querySelectorAll('#lines title').length") == 0


def test_the_keyboard_reaches_every_dot(browser: Browser, charts: Path) -> None:
    browser.open(charts)
    browser.js("document.querySelector('#lines .panel .mark').focus()")
    assert browser.js(TIP) == "full, at 1: 12 ± 2.828 (10, 14)"
    browser.press("ARROW_RIGHT")
    assert browser.js(TIP) == f"{HOSTILE}, at 2: 7"  # the nearest to the right
    browser.press("ARROW_UP")
    assert browser.js(TIP) == "full, at 2: 20"
    browser.press("ESCAPE")
    assert browser.js(TIP) is None
    stops = browser.js("return document.querySelectorAll('#lines .panel svg [tabindex=\"0\"]').length")
    assert stops == 2  # one of each drawing


def test_a_legend_hides_its_series_in_every_panel(browser: Browser, charts: Path) -> None:
    browser.open(charts)
    browser.js("document.querySelector('#lines .keys button').focus()")
    seen = """
      const marks = [...document.querySelectorAll("#lines .panel .mark")];
      return marks.filter((mark) => mark.getClientRects().length).length;
    """
    assert browser.js(seen) == 8
    browser.press("SPACE")
    assert browser.js(seen) == 4
    assert browser.js("return document.querySelector('#lines .keys button').ariaPressed") == "false"
    browser.press("SPACE")
    assert browser.js(seen) == 8


def test_a_matrix_says_its_cell_to_pointer_and_keyboard(browser: Browser, charts: Path) -> None:
    browser.open(charts)
    row = browser.js("return document.querySelector('#matrix .map').children[1].querySelector('.cell rect')")
    browser.js(OVER, row, (0.5, 0.5))
    assert browser.js(TIP) == "high, a: 0.8"
    browser.js("document.querySelector('#matrix .cursor').focus()")
    browser.press("ARROW_RIGHT", "ARROW_DOWN", "ARROW_DOWN")
    assert browser.js(TIP) == f"{HOSTILE}, b: 0.4"
    assert not browser.complaints()


@pytest.mark.parametrize(
    ("at", "text"), [((0.1, 0.9), "α −1, β −1: 0.11 ξ"), ((0.9, 0.1), "α 1, β 1: 0.33 ξ")]
)
def test_a_heat_map_says_the_number_under_the_pointer(
    browser: Browser, charts: Path, at: tuple[float, float], text: str
) -> None:
    browser.open(charts)
    browser.js(OVER.replace("arguments[0]", "document.querySelector('#heat .heat')"), None, list(at))
    assert browser.js(TIP) == text


def test_the_arrow_keys_walk_over_a_heat_map(browser: Browser, charts: Path) -> None:
    browser.open(charts)
    browser.js("document.querySelector('#heat .cursor').focus()")
    assert browser.js(TIP) == "α −1, β −1: 0.11 ξ"
    browser.press("ARROW_RIGHT", "ARROW_UP", "ARROW_UP", "ARROW_UP")
    assert browser.js(TIP) == "α 0, β 1: 0.23 ξ"
    browser.js("document.querySelector('#layers .cursor').focus()")
    browser.press("ARROW_RIGHT")
    assert browser.js(TIP) == "t, layer 1: 1"
    assert not browser.complaints()
