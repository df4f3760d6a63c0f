"""The page of a run, as a reader meets it."""

from pathlib import Path

import pytest

from browsing import Browser

SIZES = [(360, 740), (800, 900), (1400, 900)]

FLOW = "h1, h2, h3, p:not(#said), .scroll, .tools, figure, nav, details, #theme"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width, height", SIZES)
def test_nothing_overlaps_or_is_cut_at_any_width(
    browser: Browser, page: Path, width: int, height: int, scheme: str
) -> None:
    browser.open(page, width=width, height=height, scheme=scheme)
    assert browser.js("return document.documentElement.scrollWidth") <= width
    found = browser.boxes(FLOW)
    assert len(found) > 20
    for _, left, top, right, bottom in found:
        assert 0 <= left <= right <= width + 0.5 and top < bottom
    for place, (one, left, top, right, bottom) in enumerate(found):
        for other, x, y, end, floor in found[place + 1 :]:
            apart = x >= right - 0.5 or end <= left + 0.5 or y >= bottom - 0.5 or floor <= top + 0.5
            inside = x >= left and end <= right + 0.5 and y >= top and floor <= bottom + 0.5
            assert apart or inside, (one, other)
    assert not browser.complaints()


def test_the_page_asks_for_nothing_but_itself(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.js("scrollTo(0, document.body.scrollHeight)")
    assert browser.requests() == [page.absolute().as_uri()]
    assert not browser.complaints()


def test_the_policy_is_at_work(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.js("""
      const made = document.createElement("script");
      made.textContent = "window.broken = true";
      document.body.append(made);
      const picture = new Image();
      picture.src = "missing.png";
      document.body.append(picture);
      document.body.setAttribute("style", "display: none");
    """)
    assert browser.js("return window.broken === undefined && document.body.offsetHeight > 0")
    assert browser.requests() == [page.absolute().as_uri()]
    assert sum("Content Security Policy" in said for said in browser.complaints()) >= 3


def test_scripts_leave_no_global_names(browser: Browser, page: Path) -> None:
    browser.open(page)
    names = browser.js("""
      const plain = document.createElement("iframe");
      document.body.append(plain);
      const ids = new Set([...document.querySelectorAll("[id]")].map((element) => element.id));
      const known = new Set(Object.getOwnPropertyNames(plain.contentWindow));
      return Object.getOwnPropertyNames(window).filter((name) => !known.has(name) && !ids.has(name));
    """)
    assert not [
        name for name in names if name != "0" and "cdc_" not in name
    ]  # the frame, and the driver's own


def test_without_scripts_everything_is_there(browser: Browser, page: Path) -> None:
    browser.open(page)
    counts = "return ['table', 'tr', 'figure', 'h3'].map((tag) => document.querySelectorAll(tag).length)"
    text = "return document.querySelector('main').innerText"
    live = browser.js(counts)
    browser.open(page, scripts=False)
    try:
        assert browser.js(counts) == live and live[0] >= 8
        assert "Single tasks" in browser.js(text)
        assert not browser.boxes(".tools, #theme, button")
        assert browser.boxes(".fold") or not browser.js("return document.querySelector('.fold')")
    finally:
        browser.open(page)


def test_nothing_moves_while_the_page_appears(browser: Browser, page: Path) -> None:
    browser.open(page)
    moved = browser.chrome.execute_async_script("""
      const done = arguments[0];
      let sum = 0;
      new PerformanceObserver((list) => list.getEntries().forEach((entry) => (sum += entry.value)))
        .observe({type: "layout-shift", buffered: true});
      setTimeout(() => done(sum), 300);
    """)
    assert moved < 0.01


CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const rgb = (colour) => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return canvas.getImageData(0, 0, 1, 1).data;
};
const bright = ([r, g, b]) => [r, g, b]
  .map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
const ground = (element) => {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    if (rgb(colour)[3] > 0) return colour;
  }
  return "white";
};
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const words = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!words || !element.getClientRects().length || element instanceof SVGElement) continue;
  const [a, b] = [getComputedStyle(element).color, ground(element)].map((c) => bright(rgb(c)));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) found.push([element.outerHTML.slice(0, 80), ratio]);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Browser, page: Path, scheme: str) -> None:
    browser.open(page, scheme=scheme)
    assert not browser.js(CONTRAST)


def test_the_switch_turns_the_lights_and_remembers_nothing(browser: Browser, page: Path) -> None:
    ground = "return getComputedStyle(document.body).backgroundColor"
    browser.open(page, scheme="dark")
    dark, pressed = browser.js(ground), "return document.getElementById('theme').getAttribute('aria-pressed')"
    assert browser.js(pressed) == "true"
    browser.js("document.getElementById('theme').focus()")
    browser.press("ENTER")
    light = browser.js(ground)
    assert light != dark and browser.js(pressed) == "false"
    browser.press("SPACE")
    assert browser.js(ground) == dark
    browser.press("SPACE")
    browser.chrome.refresh()
    assert browser.js(ground) == dark
    browser.open(page)
    assert browser.js(ground) == light
    assert browser.js("return document.cookie") == ""


def test_the_keyboard_reaches_everything_and_is_seen(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.press("TAB")
    assert browser.js("return document.activeElement.textContent") == "Skip to the content"
    assert browser.js("return document.activeElement.offsetHeight") > 20
    browser.press("ENTER")
    assert browser.js("return location.hash") == "#content"
    seen = []
    for _ in range(60):
        browser.press("TAB")
        focus = browser.js("""
          const at = document.activeElement;
          const {outlineStyle, outlineWidth} = getComputedStyle(at);
          const mark = at instanceof SVGElement;  // which shows the focus by its own line
          return [mark ? "MARK" : at.tagName, outlineStyle, outlineWidth, at.getClientRects().length];
        """)
        seen.append(focus)
        if focus[0] == "BODY":
            break
    assert {"A", "BUTTON"} <= {tag for tag, *_ in seen}
    for tag, style, width, shown in seen:
        assert tag in ("BODY", "MARK") or (style != "none" and width != "0px" and shown)


@pytest.mark.parametrize("width", [360, 1400])
def test_links_lead_to_their_parts(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    links = browser.js("return [...document.querySelectorAll('nav a')].map((link) => link.hash.slice(1))")
    heads = browser.js("return [...document.querySelectorAll('main > section')].map((part) => part.id)")
    assert links == heads and len(links) > 5
    browser.js(f"document.querySelector('nav a[href=\"#{links[3]}\"]').click()")
    top = browser.js(f"return document.getElementById('{links[3]}').getBoundingClientRect().top")
    assert 0 <= top < 200
    current = "return [...document.querySelectorAll('nav [aria-current]')].map((link) => link.hash)"
    for _ in range(50):  # the browser tells what is seen when it finds time
        if found := browser.js(current):
            break
        browser.wait()
    assert found == [f"#{links[3]}"]


def test_paper_holds_everything_and_no_controls(browser: Browser, page: Path) -> None:
    browser.open(page)
    media = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    set_print_width = {"width": 720, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", set_print_width)
    browser.js("dispatchEvent(new Event('beforeprint'))")
    try:
        assert not browser.boxes(".tools, nav, #theme")
        assert len(browser.boxes("details pre")) == browser.js(
            "return document.querySelectorAll('pre').length"
        )
        assert not browser.js("""
          return [...document.querySelectorAll("table")]
            .filter((table) => table.getBoundingClientRect().right > innerWidth + 1)
            .map((table) => table.outerHTML.slice(0, 90));
        """)
        assert browser.js("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    finally:
        browser.js("dispatchEvent(new Event('afterprint'))")
        browser.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert not browser.js("return document.querySelector('details[open]')")
