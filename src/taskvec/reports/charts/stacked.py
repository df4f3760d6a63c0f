"""Bars of parts that add up, such as the seconds of a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from taskvec.reports.charts.chart import Chart, Key, Panel, frame_below, places_of, shown
from taskvec.reports.charts.scales import Axis, Scale, number
from taskvec.reports.charts.svg import Element, element, label, style_of, width_of

_PLOT, _NAMES, _STEP = 300.0, 170.0, 20.0


@dataclass(frozen=True)
class Stacked(Chart):
    """A bar a row, made of parts, which are not negative."""

    axis: Axis = field(default_factory=Axis)
    rows: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def panels(self) -> list[Panel]:
        """One drawing."""
        left = min(_NAMES, max([40.0, *(width_of(name) + 10 for name in self.rows)]))
        totals = {name: sum(shown(parts.values())) for name, parts in self.rows.items()}
        axis = Axis(self.axis.name, low=0.0)
        scale = Scale.over(axis, totals.values(), (left, left + _PLOT - 60))
        bottom = 6 + _STEP * len(self.rows)
        shapes = [*frame_below(axis, scale, 6, bottom), *self._bars(scale, left, totals)]
        said = "; ".join(f"{name}: {number(total)}" for name, total in list(totals.items())[:20])
        return [Panel("", f"{axis.name}. {said}.", left + _PLOT, bottom + 32, shapes)]

    def legend(self) -> list[Key]:
        """The parts, if there are several."""
        parts = self._parts()
        return [Key(name, place) for name, place in parts.items() if len(parts) > 1]

    def _parts(self) -> dict[str, int]:
        return places_of(name for parts in self.rows.values() for name in parts)

    def _bars(self, scale: Scale, left: float, totals: Mapping[str, float]) -> Iterator[Element]:
        places = self._parts()
        for turn, (row, parts) in enumerate(self.rows.items()):
            y, before = 6 + _STEP * turn, 0.0
            yield label(row, left - 6, y + 14, left - 6, text_anchor="end")
            for name, value in parts.items():
                if shown([value]) and value > 0:
                    start, end = scale.at(before), scale.at(before + value)
                    title = element("title", f"{row}, {name}: {number(value)}")
                    bar = element(
                        "rect", title, class_="mark", x=start, y=y + 3, width=max(0.3, end - start), height=14
                    )
                    yield element("g", bar, class_=style_of(places[name]), data_key=places[name])
                    before += value
            yield element("text", number(totals[row]), class_="tick", x=scale.at(before) + 5, y=y + 14)
