"""Pictures of a page at three widths, light and dark: ``python scripts/screenshots.py PAGE FOLDER``."""

import argparse
import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

WIDTHS = (360, 800, 1400)
_TALLEST = 16_000
"""Pixels; Chromium gives no picture of some taller pages."""

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


@contextmanager
def browser(*flags: str, places: tuple[str, str] | None = None) -> Iterator["Chrome"]:
    """Debian's Chromium, without a window, with a profile of its own that is gone afterwards.

    Args:
        places: of the browser and of its driver, where they are not on the path.
    """
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    program, driver = places or ("/usr/bin/chromium", "/usr/bin/chromedriver")
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        options.binary_location = program
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        for flag in (*FLAGS, f"--user-data-dir={profile}", *flags):
            options.add_argument(flag)
        chrome = Chrome(options, ChromeService(driver))
        try:
            yield chrome
        finally:
            chrome.quit()


def set_width(chrome: "Chrome", width: int, height: int = 900) -> None:
    """The width of the page itself, which a window cannot have below 500."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def prefer(chrome: "Chrome", scheme: str) -> None:
    """What the system asks pages for: ``light`` or ``dark``."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def picture(chrome: "Chrome") -> bytes:
    """The page, as PNG, as far down as the browser can draw at once."""
    width, height = chrome.execute_script("return [innerWidth, document.documentElement.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, _TALLEST), "scale": 1}
    taken = chrome.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    return base64.b64decode(taken["data"])


def take_all(page: Path, folder: Path) -> None:
    """Write ``WIDTH-SCHEME.png`` for every width and colour scheme."""
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as chrome:
        for scheme in ("light", "dark"):
            prefer(chrome, scheme)
            for width in WIDTHS:
                set_width(chrome, width)
                chrome.get(page.absolute().as_uri())
                (folder / f"{width}-{scheme}.png").write_bytes(picture(chrome))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    take_all(**vars(parser.parse_args()))
