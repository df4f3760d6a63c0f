"""Shapes of SVG as plain data; a template writes them, and escapes all text."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Union

SIZE = 11.0
"""Of letters, in the units of a chart, which are pixels where there is room."""

HUES = 8
"""Colours that a reader can tell apart; further series have other dashes and other markers."""


@dataclass(frozen=True)
class Element:
    """A tag with attributes; the names are ours, values and texts may be anybody's."""

    tag: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    children: Sequence[Union["Element", str]] = ()


def element(tag: str, *children: Element | str, **attributes: object) -> Element:
    """An element; ``class_`` and ``stroke_width`` are the attributes ``class`` and ``stroke-width``.

    Attributes that are None are left out.
    """
    named = {
        name.rstrip("_").replace("_", "-"): written(value)
        for name, value in attributes.items()
        if value is not None
    }
    return Element(tag, named, children)


def written(value: object) -> str:
    """As an attribute: numbers to a tenth."""
    if isinstance(value, float):
        return f"{round(value, 1) + 0.0:.6g}" if abs(value) < 1e6 else f"{value:.0f}"
    return str(value)


def width_of(text: str, size: float = SIZE) -> float:
    """About how wide text is."""
    wide = sum(1.7 if unicodedata.east_asian_width(of) in "WF" else 1.0 for of in text)
    return 0.58 * size * wide


def shortened(text: str, room: float) -> str:
    """Text that fits, with an ellipsis if it was cut."""
    if width_of(text) <= room:
        return text
    while text and width_of(text) > room - 0.6 * SIZE:
        text = text[: -max(1, len(text) // 20)]
    return f"{text.rstrip()}…"


def label(text: str, x: float, y: float, room: float, **attributes: object) -> Element:
    """Text in its place; what is cut is told in full where a reader points."""
    short = shortened(text, room)
    full = [element("title", text)] if short.endswith("…") else []
    return element("text", short, *full, x=x, y=y, **attributes)


def style_of(place: int) -> str:
    """The classes of the series at a place: a hue, and dashes where hues come again."""
    turn = place // HUES
    return f"s{place % HUES}" + (f" k{min(turn, 2)}" if turn else "")


def marker(place: int, x: float, y: float, tip: str = "", size: float = 3.2) -> Element:
    """A dot, a square or a diamond around a point."""
    title = [element("title", tip)] if tip else []
    turn = place // HUES
    if not turn:
        return element("circle", *title, class_="mark", cx=x, cy=y, r=size)
    if turn == 1:
        return element("rect", *title, class_="mark", x=x - size, y=y - size, width=2 * size, height=2 * size)
    corner = 1.3 * size
    outline = path((x, y - corner), (x + corner, y), (x, y + corner), (x - corner, y))
    return element("path", *title, class_="mark", d=f"{outline}z")


def path(*points: tuple[float, float]) -> str:
    """Straight lines from point to point."""
    return "M" + "L".join(f"{written(float(x))} {written(float(y))}" for x, y in points) if points else ""
