"""What does a move of a slider cost a page, in milliseconds of one frame (of 16)?

A page of random numbers in the installed browser: a slider moves in every frame, and what the scripts and
the layout of that frame take is measured. The floor is the same page with almost no numbers.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from taskvec.reports.page import Page, Section, render_page
from taskvec.reports.sliders import Sliders
from taskvec.studies.numerics.affine import AffineScores, packed

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from screenshots import browser

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

SIZES = {"8 tasks x 500 examples x 10 classes": (8, 500, 10), "floor: 2 tasks x 20 x 2": (2, 20, 2)}
"""Tasks, examples of each, and classes."""

MOVES = """
const done = arguments[arguments.length - 1];
const range = document.querySelectorAll("input[type=range]")[arguments[0]];
const times = [];
const move = (n) => {
  let began = 0;
  requestAnimationFrame(() => { began = performance.now(); });
  range.value = Math.sin(n);
  range.dispatchEvent(new Event("input", {bubbles: true}));
  requestAnimationFrame(() => {
    document.body.getBoundingClientRect();
    times.push(performance.now() - began);
    if (n < arguments[1]) move(n + 1);
    else done(times);
  });
};
move(0);
"""


def page_of(tasks: int, examples: int, classes: int) -> str:
    """A page with sliders over random numbers."""
    draw = np.random.default_rng(0)
    names = [f"task {place}" for place in range(tasks)]
    blocks = []
    for place, name in enumerate(names):
        numbers = draw.normal(size=(examples, tasks + 1, classes - 1)).astype("float32")
        scores = AffineScores(numbers, draw.integers(0, classes, examples))
        blocks.append({"name": name, "own": place, "zero": 50.0, "alone": 90.0, **packed(scores)})
    sliders = Sliders("Coefficients", "Random.", names, blocks, [("α = 0", [0.0] * tasks)], [0.5] * tasks)
    return render_page(Page("sliders", "", "", [Section("explore", "Coefficients", [sliders])]))


def measure(chrome: "Chrome", page: Path, slider: int, frames: int) -> dict[str, float]:
    """Milliseconds of a frame: the least, the middle and the 95th of a hundred."""
    chrome.get(page.as_uri())
    times = sorted(chrome.execute_async_script(MOVES, slider, frames))
    chosen = {"least": times[0], "median": median(times), "95th": times[int(0.95 * len(times))]}
    return {name: round(time, 2) for name, time in chosen.items()}


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument(
        "out", nargs="?", type=Path, default=Path(__file__).parent / "results" / "bench_sliders.json"
    )
    given = parser.parse_args()
    found: dict[str, object] = {}
    with TemporaryDirectory() as folder, browser() as chrome:
        chrome.set_script_timeout(300)
        for name, size in SIZES.items():
            page = Path(folder) / "page.html"
            page.write_text(page_of(*size), encoding="utf-8")
            found[name] = {
                "kB": round(page.stat().st_size / 1000),
                "one coefficient": measure(chrome, page, 1, given.frames),
                "all of them": measure(chrome, page, 0, given.frames),
            }
            print(name, json.dumps(found[name]))
    given.out.write_text(json.dumps({"milliseconds a frame": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
