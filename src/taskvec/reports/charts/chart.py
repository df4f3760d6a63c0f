"""What charts of all kinds share: panels, a legend, and the frame of two axes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, ClassVar

from taskvec.reports.charts.scales import Axis, Scale, is_shown, number
from taskvec.reports.charts.svg import Element, element, label, marker, style_of

LINE = 14.0
"""Height of a line of text."""


@dataclass(frozen=True)
class Panel:
    """One drawing: a figure has one or several side by side.

    Args:
        said: what the drawing shows, in words.
    """

    title: str
    said: str
    width: float
    height: float
    shapes: Sequence[Element]


@dataclass(frozen=True)
class Key:
    """An entry of the legend.

    Args:
        place: of the series, which gives it its look.
        line: its kind, such as ``dashed``; none for a dot or a bar.
    """

    name: str
    place: int
    line: str | None = None

    @property
    def style(self) -> str:
        """Classes of its colour and dashes."""
        return " ".join(filter(None, (style_of(self.place), self.line)))

    @property
    def swatch(self) -> Element:
        """What stands before the name."""
        if self.line is None:
            return marker(self.place, 9, 5, size=4)
        return element("path", class_="line", d="M0 5H18")


@dataclass(frozen=True)
class Chart:
    """A figure that draws itself.

    Args:
        name: unique on a page; such as the name of its file, without the ending.
        caption: what it shows, and how to read it.
        folded: the words under which it is hidden until a reader wants it.
        filed: whether files show it too, or the page alone.
    """

    name: str
    caption: str
    folded: str = field(default="", kw_only=True)
    filed: bool = field(default=True, kw_only=True)

    template: ClassVar[str] = "chart"

    def panels(self) -> list[Panel]:
        """The drawings."""
        raise NotImplementedError

    def legend(self) -> list[Key]:
        """The legend; none where the figure says it all."""
        return []

    def data(self) -> Mapping[str, Any] | None:
        """What the script reads of it beside the drawing."""
        return None


def places_of(names: Iterable[str]) -> dict[str, int]:
    """Names in their order, each once: the places of series, which give them colours."""
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


def told(values: Sequence[float], unit: str = "") -> str:
    """A mean over seeds in words, with the deviation and the values where there are several."""
    if len(values) == 1:
        return f"{number(values[0])}{unit}"
    single = ", ".join(map(number, values[:10])) + (", …" if len(values) > 10 else "")
    return f"{number(fmean(values))} ± {number(stdev(values))}{unit} ({single})"


def shown(values: Iterable[float | None], log: bool = False) -> list[float]:
    """The values that have a place."""
    return [value for value in values if is_shown(value, log)]


def reach(values: Iterable[float | None], log: bool = False, spread: bool = True) -> list[float]:
    """The values, and the ends of the bar of their deviation, which a scale must hold."""
    known = shown(values, log)
    if len(known) < 2 or log or not spread:
        return known
    mean, half = fmean(known), stdev(known)
    return [*known, mean - half, mean + half]


def heading(title: str, width: float) -> Iterator[Element]:
    """The title of a panel, on its first line."""
    if title:
        yield label(title, 0, 11, width, class_="head")


def frame_below(axis: Axis, scale: Scale, top: float, bottom: float) -> Iterator[Element]:
    """Vertical lines at ticks, their labels, and the axis's name under them."""
    start, end = scale.places
    lines = "".join(f"M{place:g} {top:g}V{bottom:g}" for place, _ in scale.ticks)
    yield element("path", class_="grid", d=lines)
    yield element("path", class_="axis", d=f"M{start:g} {bottom:g}H{end:g}")
    for place, text in scale.ticks:
        yield element("text", text, class_="tick", x=place, y=bottom + 13, text_anchor="middle")
    if axis.name:
        yield label(axis.name, end, bottom + 27, end, class_="name", text_anchor="end")


def frame_beside(axis: Axis, scale: Scale, start: float, end: float) -> Iterator[Element]:
    """Horizontal lines at ticks, their labels, and the axis's name above them."""
    lines = "".join(f"M{start:g} {place:g}H{end:g}" for place, _ in scale.ticks)
    yield element("path", class_="grid", d=lines)
    for place, text in scale.ticks:
        yield element("text", text, class_="tick", x=start - 5, y=place + 4, text_anchor="end")
    if axis.name:
        yield label(axis.name, 0, scale.places[1] - 9, end, class_="name")
