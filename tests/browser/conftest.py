"""A real browser, and the page of a small real run."""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from browsing import Browser
from screenshots import browser as open_browser

EXPERIMENT = """
experiment: a small run
description: Two seeds of three tasks, in ordinary and in tangent space.
model: {model}
suite: {suite}
seeds: [0, 1]
training: {{lr: 2e-3, steps: 4, batch_size: 16, weight_decay: 0.01}}
regimes: {{full: {{}}, tangent: {{}}}}
search: {{step: 0.5, coarse: 1, limit: 1.5}}
addition: {{subsets: pairs}}
methods: {{rules: [ties, magmax, iso_c]}}
atm: {{rounds: [1], regimes: [full]}}
negation: {{targets: [pets]}}
disentanglement: {{pairs: [[pets, taste]], grid: {{points: 3}}, samples: 5}}
"""


@pytest.fixture(scope="session")
def places() -> tuple[str, str]:
    """The programs of the browser and its driver."""
    if find_spec("selenium") is None:
        pytest.skip("selenium drives the browser and is not installed: pip install selenium")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no browser is installed: make browser, or apt-get install chromium chromium-driver")
    return program, driver


@pytest.fixture(scope="session")
def browser(places: tuple[str, str]) -> Iterator[Browser]:
    with open_browser(places=places) as chrome:
        chrome.set_page_load_timeout(120)
        chrome.set_script_timeout(120)
        yield Browser(chrome)


@pytest.fixture(scope="session")
def run_folder(tiny_model: Path, tiny_suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of several studies; not to be written to. Processes that test side by side share it."""
    shared = tmp_path_factory.getbasetemp()
    if shared.name.startswith("popen-"):
        shared = shared.parent
    folder = shared / "small-run"
    with (shared / "small-run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            experiment = shared / "small.yaml"
            experiment.write_text(EXPERIMENT.format(model=tiny_model, suite=tiny_suite))
            partial = shared / "small-run-at-work"
            command = [sys.executable, "-m", "taskvec", "run", str(experiment), "-o", str(partial), "--quiet"]
            subprocess.run(command, check=True, capture_output=True, timeout=600)
            partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def page(run_folder: Path) -> Path:
    return run_folder / "report.html"
