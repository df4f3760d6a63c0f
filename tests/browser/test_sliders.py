"""Sliders as a reader moves them: numbers of the evaluation, by mouse, keyboard and link."""

from pathlib import Path

import numpy as np
import pytest

from browsing import Browser
from taskvec.runs.manifest import read_run
from taskvec.studies.explored import Explored

VALUES = "return [...document.querySelectorAll('#explore-1 .move:not(.every) {}')].map((of) => +of.value);"
SHOWN, FIELDS = VALUES.format("output"), VALUES.format("input[type=number]")


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    browser.open(page)
    browser.wait()
    return browser


def test_every_point_shows_the_accuracies_of_its_model(opened: Browser, run_folder: Path) -> None:
    [explored] = read_run(run_folder).of(Explored, "tangent", 0)
    scores = explored.scores(run_folder)
    draw = np.random.default_rng(0)
    points = [[0.0] * 3, [1.0] * 3, [1.0, 0.0, 0.0], *draw.uniform(-3, 3, (10, 3)).round(6).tolist()]
    for at in points:
        opened.js("location.hash = arguments[0]", f"#a=explore-1:{','.join(map(str, at))}")
        opened.wait(150)
        assert opened.js(FIELDS) == pytest.approx(at)
        expected = [100 * of.accuracy(at) for of in scores.values()]
        assert opened.js(SHOWN) == pytest.approx(expected, abs=0.051)
    assert not opened.complaints()


def test_keys_fields_and_buttons_move_coefficients(opened: Browser) -> None:
    opened.js("document.querySelector('#explore-1 .marks button').click()")
    opened.wait()
    assert opened.js(FIELDS) == [0, 0, 0]
    opened.js("document.querySelectorAll('#explore-1 .move input[type=range]')[1].focus()")
    opened.press("ARROW_RIGHT", "ARROW_RIGHT")
    opened.wait()
    assert opened.js(FIELDS) == [0.1, 0, 0]
    said = "return document.activeElement.getAttribute('aria-valuetext')"
    assert opened.js(said) == "α 0.10"
    opened.press("END")
    opened.wait()
    assert opened.js(FIELDS) == [2, 0, 0]
    opened.js("document.querySelectorAll('#explore-1 .move input[type=number]')[2].select()")
    opened.press("-", "3", ".", "5")
    opened.wait()
    assert opened.js(FIELDS) == [2, -3.5, 0]
    opened.js("document.querySelectorAll('#explore-1 .move button')[2].click()")
    opened.wait(700)
    assert opened.js(FIELDS) == [0, 0, 1]
    assert opened.js("return location.hash") == "#a=explore-1:0,0,1"
    assert not opened.complaints()


def test_the_ring_on_the_plane_is_two_sliders(opened: Browser) -> None:
    opened.js("document.querySelector('#explore-1 .marks button').click()")
    opened.js("document.querySelector('#explore-1 .plane svg').focus()")
    opened.press("ARROW_RIGHT", "ARROW_UP", "ARROW_UP")
    opened.wait(1000)
    assert opened.js(FIELDS) == [0.05, 0.1, 0]
    cells = "[...document.querySelectorAll('#explore-1 .plane rect')]"
    opacities = opened.js(f"return {cells}.map((cell) => +cell.getAttribute('fill-opacity'))")
    assert len(opacities) == 441
    opened.js("location.hash = '#a=explore-1:0,0,0'")
    opened.wait()
    assert opacities[220] == pytest.approx(sum(opened.js(SHOWN)[:2]) / 200, abs=1e-3)


def test_without_scripts_there_are_a_chart_and_a_table(browser: Browser, page: Path) -> None:
    browser.open(page, scripts=False)
    try:
        assert not browser.boxes(".sliders")
        assert len(browser.boxes("#explore figure svg")) >= 1
        assert len(browser.boxes("#explore table tbody tr")) == 4
    finally:
        browser.open(page)
