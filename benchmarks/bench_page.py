"""How long does a page take to open, against an empty one in the same browser?

Run as ``python benchmarks/bench_page.py OUT.json [PAGE]``. Without a page of a run, one of 1.5 MB is made, of
tables of five seeds. From the start of loading to the end of its event, median of a few takes in turn.
"""

import sys
from pathlib import Path
from shutil import which
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from measure import write
from taskvec.reports.numbers import percent
from taskvec.reports.page import Page, Section, render_page
from taskvec.reports.tables import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from screenshots import browser

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

TAKES = 5
SIZE = 1_500_000
OPENED = """
const {loadEventEnd, startTime} = performance.getEntriesByType("navigation")[0];
return loadEventEnd - startTime;
"""


def large_page(size: int) -> str:
    """A page of this many bytes, or a little more."""
    tasks = [f"task {place}" for place in range(20)]
    rows = [
        [f"method {row}", *(percent([row / 50 + seed / 100 for seed in range(5)]) for _ in tasks)]
        for row in range(40)
    ]
    table = Table("Methods by task", ["method", *tasks], rows, "Per cent.", compared=range(1, 21))
    one, two = (len(_page_of(table, count)) for count in (1, 2))
    return _page_of(table, 1 + -(-(size - one) // (two - one)))


def _page_of(table: Table, count: int) -> str:
    return render_page(Page("t", "", "", [Section(f"s{place}", "S", [table]) for place in range(count)]))


def milliseconds(chrome: "Chrome", page: Path) -> float:
    """From the start of loading to its end."""
    chrome.get(page.absolute().as_uri())
    return float(chrome.execute_script(OPENED))


def main(out: Path, page: Path | None = None) -> None:
    """Measure and write."""
    if not which("chromedriver"):
        print("No browser is installed: make browser")
        return
    with TemporaryDirectory() as folder, browser() as chrome:
        empty, made = Path(folder, "empty.html"), Path(folder, "page.html")
        empty.write_text("<!doctype html><title>empty</title>")
        if page is None:
            made.write_text(large_page(SIZE), "utf-8")
        pages = {"empty": empty, "page": page or made}
        takes = [{name: milliseconds(chrome, of) for name, of in pages.items()} for _ in range(TAKES)]
        found = {f"{name}_ms": round(median(take[name] for take in takes), 1) for name in pages}
        found["bytes"] = pages["page"].stat().st_size
    write(out, **found)
    print(found)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
