"""The page of a run at work loads itself again, until its reader works with it."""

import os
import time
from dataclasses import replace
from pathlib import Path

from browsing import Browser
from taskvec.reports.page import Unfinished, render_page
from taskvec.runs.manifest import read_run
from taskvec.runs.report import page_of

SCROLLED = "return Math.round(scrollY)"
LOADED = "return performance.getEntriesByType('navigation')[0].type"


def test_the_page_follows_its_run_and_stands_still_for_its_reader(
    browser: Browser, run_folder: Path, tmp_path: Path
) -> None:
    state = Unfinished(3, 9, ["ATM", "<script>alert(1)</script>"], "2030-01-01", "taskvec run it.yaml", 3)
    path = tmp_path / "report.html"
    path.write_text(render_page(replace(page_of(read_run(run_folder), {}), unfinished=state)))
    browser.open(path)
    assert "3 of 9" in browser.js("return document.getElementById('unfinished').innerText")
    browser.js("scrollTo(0, 400)")
    for _ in range(80):
        time.sleep(0.25)  # and no script that waits, which the page would end
        if browser.js(LOADED) == "reload":
            break
    assert browser.js(LOADED) == "reload" and browser.js(SCROLLED) == 400
    browser.js("document.querySelector('summary').click(); window.mine = true")
    browser.wait(5000)
    assert browser.js("return window.mine") is True
    assert browser.js("return document.querySelector('#unfinished .held').hidden") is False
    assert not browser.complaints()


def test_a_page_that_nobody_writes_any_more_is_not_loaded_for_ever(
    browser: Browser, run_folder: Path, tmp_path: Path
) -> None:
    """A run that was killed leaves one."""
    path = tmp_path / "report.html"
    state = Unfinished(3, 9, [], "2030-01-01", "taskvec run it.yaml", 1)
    path.write_text(render_page(replace(page_of(read_run(run_folder), {}), unfinished=state)))
    os.utime(path, (time.time() - 3600,) * 2)
    browser.open(path)
    time.sleep(4)
    assert browser.js(LOADED) == "navigate"
