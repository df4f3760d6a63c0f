"""Charts: what is drawn is what was given, at the places that the axes say, whatever the names are."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskvec.reports.charts.chart import Chart
from taskvec.reports.charts.dots import Dots, Row, Rows
from taskvec.reports.charts.heat import Heat, Plane
from taskvec.reports.charts.lines import Curve, Dot, Level, Lines, Plot
from taskvec.reports.charts.matrix import Map, Matrix, Tint
from taskvec.reports.charts.scales import Axis, Scale, nice_ticks, number
from taskvec.reports.charts.stacked import Stacked
from taskvec.reports.page import Page, Section, render_page

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "]]>&amp;</svg>",
    "{{7*7}}",
    "\u202egnp\u2066",
    "nul\x00 esc\x1b[31m tab\t",
    "\ud800",
    "界" * 60,
    "a" * 300,
    "",
]
ODD: list[float | None] = [None, math.nan, math.inf, -math.inf, 1e300, -1e-300, 0.0, 5.0]


def drawn(chart: Chart) -> ElementTree.Element:
    """The figure that a page shows, parsed as strictly as XML."""
    html = render_page(Page("t", "d", "l", [Section("s", "s", [chart])]))
    [figure] = re.findall(r"<figure>.*?</figure>", html, re.S)
    return ElementTree.fromstring(figure)


def number_of(label: str) -> float:
    return float(label.replace("−", "-"))


def along(figure: ElementTree.Element, place: str, anchor: str) -> Callable[[float], float]:
    """From places on an axis to numbers, as a reader would fit them through the labels of its ticks."""
    ticks = [
        (float(of.attrib[place]), number_of(of.text or ""))
        for of in figure.iter("text")
        if of.get("class") == "tick" and of.get("text-anchor") == anchor
    ]
    places, numbers = zip(*ticks, strict=True)
    slope, start = np.polyfit(places, numbers, deg=1)
    return lambda at: float(slope * at + start)


def marks(figure: ElementTree.Element) -> list[ElementTree.Element]:
    return [of for of in figure.iter("circle") if of.get("class") == "mark" and of.find("title") is not None]


def lines(*curves: Curve, levels: Sequence[Level] = (), log: bool = False) -> Lines:
    return Lines("n", "c", [Plot("p", Axis("x"), Axis("y, %", log=log), curves, levels)])


def rows(*of: Row, **levels: float) -> Dots:
    return Dots("n", "c", [Rows("p", Axis("%"), {"": of}, levels)])


def with_names(names: Sequence[str], values: Sequence[float | None]) -> list[Chart]:
    """A chart of each kind with these names and numbers everywhere."""
    points = [Dot(x, [value, 1.0], names[0]) for x, value in enumerate(values)]
    curves = [Curve(name, points, joined=place % 2 == 0) for place, name in enumerate(names)]
    square = [list(values) for _ in values]
    labels = [names[place % len(names)] for place in range(len(values))]
    axis = Axis(names[0])
    steps = [float(place) for place in range(len(values))]
    levels = [Level(name, value) for name, value in zip(names, values, strict=False) if value is not None]
    return [
        Lines("n", names[0], [Plot(names[0], axis, axis, curves, levels)] * 2),
        Dots("n", names[0], [Rows(names[0], axis, {name: [Row(name, {name: values})] for name in names})]),
        Stacked(
            "n",
            names[0],
            axis,
            {name: dict.fromkeys(names, values[0] or 0.0) for name in names if values},
        ),
        Matrix("n", names[0], [Map(names[0], labels, labels, square)], Tint.around_zero(values, names[0])),
        Matrix("n", names[0], [Map("", labels, labels, square)], Tint.between(values), ""),
        Heat("n", names[0], (names[0], names[-1]), steps, [Plane(names[0], square)], Tint.between(values)),
    ]


@pytest.mark.parametrize("values", [ODD, [5.0], [], [None], [2.0, 2.0, 2.0]], ids=str)
@pytest.mark.parametrize("names", [HOSTILE, ["a"], [f"series {i}" for i in range(20)]], ids=len)
def test_any_names_and_numbers_are_drawn(names: list[str], values: list[float | None]) -> None:
    for chart in with_names(names, values):
        figure = drawn(chart)
        assert {of.tag for of in figure.iter()} <= {
            *("figure", "figcaption", "ul", "li", "span", "div"),
            *("svg", "title", "desc", "g", "path", "circle", "rect", "text"),
        }
        for of in figure.iter():
            assert not any(name.startswith("on") or name == "style" for name in of.attrib)
            for name in ("d", "x", "y", "cx", "cy", "r", "width", "height", "transform"):
                assert not re.search("nan|inf", of.get(name, "")), (of.tag, of.attrib)


def test_dots_of_lines_are_where_the_axes_say() -> None:
    given_points = [(2.0, 61.5), (3.0, 70.25), (5.0, 88.0), (8.0, 12.0)]
    figure = drawn(lines(Curve("full", [Dot(x, [y]) for x, y in given_points])))
    x, y = along(figure, "x", "middle"), along(figure, "y", "end")
    found = [(x(float(of.attrib["cx"])), y(float(of.attrib["cy"]) + 4)) for of in marks(figure)]
    assert np.allclose(found, given_points, atol=[0.02, 0.4])


def test_several_seeds_are_dots_with_a_bar_of_their_deviation_and_one_is_a_dot() -> None:
    seeds = [60.0, 70.0, 83.0]
    figure = drawn(lines(Curve("full", [Dot(1, seeds), Dot(2, [50.0])])))
    y = along(figure, "y", "end")
    dots = [y(float(of.attrib["cy"]) + 4) for of in figure.iter("circle") if of.get("class") == "seed"]
    [bar] = [of for of in figure.iter("path") if of.get("class") == "bar"]
    ends = [y(float(at) + 4) for at in re.findall(r"[ V](\d[\d.]*)", bar.attrib["d"])]
    assert np.allclose(dots, seeds, atol=0.4)
    assert np.allclose(ends, np.mean(seeds) + np.std(seeds, ddof=1) * np.array([-1, 1]), atol=0.4)
    assert [of.findtext("title") for of in marks(figure)] == [
        "full, at 1: 71 ± 11.53 (60, 70, 83)",
        "full, at 2: 50",
    ]


def test_rows_of_dots_are_where_the_axis_says() -> None:
    figure = drawn(
        rows(Row("a", {"": [10.0, 20.0]}), Row("b", {"": [None, 55.0]}), Row("c", {"": [math.nan]}))
    )
    x = along(figure, "x", "middle")
    assert np.allclose([x(float(of.attrib["cx"])) for of in marks(figure)], [15.0, 55.0], atol=0.3)


def test_bars_are_as_long_as_their_parts() -> None:
    parts = {"a": {"train": 10.0, "search": 30.0}, "b": {"search": 7.5}}
    figure = drawn(Stacked("n", "c", Axis("seconds"), parts))
    x = along(figure, "x", "middle")
    bars = [of for of in figure.iter("rect") if of.get("class") == "mark"]
    ends = [(x(float(of.attrib["x"])), x(float(of.attrib["x"]) + float(of.attrib["width"]))) for of in bars]
    assert np.allclose(ends, [(0, 10), (10, 40), (0, 7.5)], atol=0.2)


def test_cells_of_a_matrix_hold_their_numbers_and_shades() -> None:
    values: list[list[float | None]] = [[1.0, -0.25], [None, 0.5]]
    chart = Matrix("n", "c", [Map("", ["r", "s"], ["u", "v"], values)], Tint(-1, 1, diverging=True), ".2f")
    cells = [of for of in drawn(chart).iter("g") if of.get("class") == "cell"]
    assert [of.findtext("text") for of in cells] == ["1.00", "−0.25", "–", "0.50"]
    shades = [
        (box.get("class"), float(box.attrib["fill-opacity"])) for of in cells for box in of.iter("rect")
    ]
    assert shades == [("plus", 1.0), ("minus", 0.25), ("none", 1.0), ("plus", 0.5)]
    assert chart.data()["maps"][0] == {"rows": ["r", "s"], "columns": ["u", "v"], "values": values}


def test_a_heat_map_covers_every_cell_once_with_its_shade() -> None:
    grid, generator = [-1.0, 0.0, 1.0, 2.0], np.random.default_rng(0)
    values = generator.random((4, 4)).round(1).tolist()
    figure = drawn(Heat("n", "c", ("a", "b"), grid, [Plane("", values)], Tint(0.0, 1.0)))
    [heat] = [of for of in figure.iter("g") if of.get("class") == "heat"]
    left, top, side = (float(heat.attrib[f"data-{name}"]) for name in ("left", "top", "wide"))
    found = {}
    for path in heat:
        for x, y, wide in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)", path.attrib["d"]):
            for turn in range(round(float(wide) / side)):
                column, row = round((float(x) - left) / side) + turn, 3 - round((float(y) - top) / side)
                assert (column, row) not in found
                found[column, row] = float(path.attrib["fill-opacity"])
    assert found == {(i, j): pytest.approx(values[i][j]) for i in range(4) for j in range(4)}


def test_the_square_lies_from_minus_one_to_one() -> None:
    grid = [-2.0, -1.0, 0.0, 1.0, 2.0]
    figure = drawn(Heat("n", "c", ("a", "b"), grid, [Plane("", [[0.1] * 5] * 5)], Tint(0.0, 1.0)))
    [square] = [of.attrib["d"] for of in figure.iter("path") if of.get("class") == "square"]
    x, y = along(figure, "x", "middle"), along(figure, "y", "end")
    left, bottom, right, upper = (float(at) for at in re.findall(r"\d[\d.]*", square)[:4])
    assert [x(left), x(right), y(bottom + 4), y(upper + 4)] == pytest.approx([-1, 1, -1, 1], abs=0.02)


def test_series_of_one_name_share_a_colour_and_twenty_look_different() -> None:
    curves = [Curve(f"s{i}", [Dot(0, [i]), Dot(1, [i])]) for i in range(20)]
    chart = lines(*curves)
    looks = [key.style for key in chart.legend()]
    assert len(set(looks)) == 20
    both = Lines("n", "c", [chart.plots[0], Plot("", Axis(), Axis(), curves[::-1])])
    keys = {of.get("data-key"): of.get("class") for of in drawn(both).iter("g")}
    assert list(keys.values()) == looks


def test_what_has_no_place_is_left_out_and_said() -> None:
    figure = drawn(lines(Curve("a", [Dot(0, [1.0]), Dot(1, [math.inf]), Dot(2, [None])])))
    assert len(marks(figure)) == 1
    assert "2 points without a finite number are left out" in (figure.findtext(".//desc") or "")


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 8))
def test_ticks_are_inside_few_and_told_apart(low: float, span: float, count: int) -> None:
    high = low + span
    ticks = nice_ticks(low, high, count)
    values = [value for value, _ in ticks]
    assert len(ticks) <= count + 1 and all(
        low - 1e-6 * span <= value <= high + 1e-6 * span for value in values
    )
    steps = [second - first for first, second in itertools.pairwise(values)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-3) for step in steps)
    if span > 1e-5 * max(abs(low), abs(high)):
        assert len({label for _, label in ticks}) == len(ticks)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1), st.booleans())
def test_a_scale_keeps_order_and_stays_inside(values: list[float], log: bool) -> None:
    scale = Scale.over(Axis(log=log), values, (10.0, 90.0))
    places = [scale.at(value) for value in sorted(values)]
    assert places == sorted(places) and all(10 <= place <= 90 for place in places)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (-0.5, "−0.5"), (1234.5, "1234"), (87.654, "87.65"), (1e-7, "1e−7"), (2.5e12, "2.5e12")],
)
def test_numbers_are_written_short(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize("values", [[*ODD[:3], 3.0], [5.0, 6.0]], ids=str)
def test_every_kind_is_painted_into_a_file(values: list[float | None]) -> None:
    pytest.importorskip("matplotlib")
    from taskvec.reports.charts.painting import paint

    for chart in with_names(["a", "$b_{$"], values):
        figure = paint(chart)
        figure.canvas.draw()
        assert figure.axes
