"""Coefficient search on curves whose best point is known."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from effort import EFFORT
from taskvec.errors import Diverged, InputError
from taskvec.evaluation.metrics import normalized
from taskvec.evaluation.search import (
    Grid,
    Search,
    maximize,
    search_addition,
    search_each,
    search_negation,
    search_scale,
)


def curve(f: Callable[[float], float]) -> Callable[[float], dict[str, float]]:
    return lambda alpha: {"a": f(alpha)}


ONE = {"a": 1.0}


@given(st.integers(0, 30))
def test_the_top_of_a_hill_is_found_wherever_it_lies(at: int) -> None:
    top = round(0.05 * at, 10)
    found = search_addition(curve(lambda alpha: 2 - abs(alpha - top)), ONE)
    assert found.coefficient == top
    assert found.extended == (top >= 1.0)


def test_ties_go_to_the_smaller_coefficient() -> None:
    found = search_addition(curve(lambda alpha: 1.0 if alpha >= 0.3 else 0.0), ONE, Grid(coarse=1))
    assert found.coefficient == 0.3
    assert search_addition(curve(lambda _: 0.5), ONE).coefficient == 0.0


def test_the_default_grid_holds_zero_and_one_and_twenty_one_points() -> None:
    grid = Grid()
    assert grid.points == 21
    assert (grid.point(0), grid.point(20)) == (0.0, 1.0)


def test_a_coarse_search_measures_fewer_points_and_none_twice() -> None:
    seen: list[float] = []

    def measure(alpha: float) -> dict[str, float]:
        seen.append(alpha)
        return {"a": 1 - (alpha - 0.45) ** 2}

    assert search_addition(measure, ONE).coefficient == 0.45
    assert len(seen) == len(set(seen)) < 21


def test_a_best_point_on_the_edge_extends_the_grid_and_says_so() -> None:
    found = search_addition(curve(lambda alpha: 1 - abs(alpha - 1.3)), ONE)
    assert (found.coefficient, found.extended, found.at_limit) == (1.3, True, False)
    assert found.remark == "grid extended"
    rising = search_addition(curve(lambda alpha: alpha), ONE, Grid(limit=1.2))
    assert (rising.coefficient, rising.at_limit) == (1.2, True)
    assert rising.remark == "at the limit of the grid"


@pytest.mark.parametrize(
    ("f", "best"),
    [
        (lambda alpha: -abs(alpha - 6.5), 6.5),
        (lambda alpha: min(alpha, 1.5) if alpha < 3 else 2 - abs(alpha - 3.5), 3.5),  # a step at the limit
        (lambda alpha: min(alpha, 1.5), 1.5),
        (lambda alpha: alpha, 16.0),
        (lambda _: 0.5, 0.0),
        (lambda alpha: -alpha, 0.0),
    ],
)
def test_a_grid_is_doubled_until_it_holds_the_best_scale(f: Callable[[float], float], best: float) -> None:
    assert search_scale(curve(f), ONE, Grid(step=0.1)).coefficient == best


def test_an_edit_that_changes_nothing_costs_one_grid() -> None:
    assert search_scale(curve(lambda _: 0.5), ONE, Grid(step=0.1)).grid.limit == 2


def test_addition_maximises_the_mean_of_ratios() -> None:
    # By ratios b gains more than a loses; by plain means it is the other way round.
    def measure(alpha: float) -> dict[str, float]:
        return {"a": 0.9 - 0.3 * alpha, "b": 0.1 + 0.1 * alpha}

    assert search_addition(measure, {"a": 1.0, "b": 0.2}, Grid(limit=1.0)).coefficient == 1.0


def test_negation_takes_the_lowest_target_that_keeps_the_control() -> None:
    def measure(alpha: float) -> dict[str, float]:
        return {"target": 0.9 - 0.5 * alpha, "control": 0.8 - 0.1 * alpha}

    found = search_negation(measure, "target", measure(0.0))
    assert found.coefficient == 0.4  # 0.8 - 0.04 = 0.95 * 0.8
    assert found.satisfied


def test_negation_without_a_coefficient_that_keeps_the_control_says_so() -> None:
    def measure(alpha: float) -> dict[str, float]:
        return {"target": 0.9 - alpha, "control": 0.8 if alpha == 0 else 0.1}

    found = search_negation(measure, "target", measure(0.0))
    assert (found.coefficient, found.satisfied) == (0.0, False)
    assert found.remark == "no coefficient keeps the control"


def test_negation_that_nothing_helps_stays_at_zero_and_says_so() -> None:
    found = search_negation(
        lambda alpha: {"target": 0.5 + alpha, "control": 0.8}, "target", {"target": 0.5, "control": 0.8}
    )
    assert (found.coefficient, found.satisfied) == (0.0, True)
    assert found.remark == "no coefficient is better than none"


@pytest.mark.parametrize("values", [{"start": 1.0}, {"stop": 3.0}, {"step": 0.0}, {"limit": float("nan")}])
def test_grids_that_make_no_sense_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(InputError, match="search: "):
        Grid.parse("search", values)


@pytest.mark.parametrize("ends", [{"step": 0.3}, {"step": 0.6}, {"step": 5}, {"limit": 1.51}])
def test_a_grid_holds_both_its_ends(ends: dict[str, float]) -> None:
    with pytest.raises(InputError, match="is not a whole number of steps"):
        Grid.parse("grid", ends)


@given(st.integers(0, 20), st.integers(0, 20))
def test_every_task_finds_a_coefficient_of_its_own(a: int, b: int) -> None:
    tops = {"a": round(0.05 * a, 10), "b": round(0.05 * b, 10)}

    def measure(at: Mapping[str, float]) -> dict[str, float]:
        return {task: 2 - abs(at[task] - top) - 0.1 * sum(at.values()) for task, top in tops.items()}

    found = search_each(measure, {"a": 1.0, "b": 1.0}, {"a": 0.5, "b": 0.5})
    assert found.coefficients == tops
    assert found.values == measure(tops)


@given(st.integers(0, 2**31))
def test_coefficients_of_their_own_are_never_worse_than_a_shared_one(seed: int) -> None:
    """On a random surface with many plateaus: values are rounded to tenths."""
    table = torch.rand(6, 6, 2, generator=torch.Generator().manual_seed(seed)).mul(10).round().div(10)
    grid, single = Grid(step=0.2, limit=1.0), {"a": 0.5, "b": 1.0}

    def measure(at: Mapping[str, float]) -> dict[str, float]:
        one, other = table[round(5 * at["a"]), round(5 * at["b"])].tolist()
        return {"a": one, "b": other}

    shared = search_addition(lambda alpha: measure({"a": alpha, "b": alpha}), single, grid)
    start = {"a": shared.coefficient, "b": shared.coefficient}
    found = search_each(measure, single, start, grid)
    assert found.objective >= normalized(shared.values, single)
    assert found == search_each(measure, single, start, grid)
    for task in start:  # and nothing along one coefficient is better
        for place in range(6):
            other = measure({**found.coefficients, task: place / 5})
            assert normalized(other, single) <= found.objective


def test_a_flat_stretch_does_not_carry_a_coefficient_away() -> None:
    found = search_each(lambda at: {"a": 0.5}, {"a": 1.0}, {"a": 0.35})
    assert (found.coefficients, found.sweeps) == ({"a": 0.35}, 1)


# The search against the full grid

THOROUGH = settings(max_examples=200 * EFFORT)


def whole(heights: Sequence[float], coarse: int) -> Search:
    """The search on a grid of unit steps that has these heights."""
    grid = Grid(start=0, stop=1, step=1, limit=len(heights) - 1, coarse=coarse)
    seen: list[float] = []

    def measure(alpha: float) -> dict[str, float]:
        seen.append(alpha)
        return {"a": heights[round(alpha)]}

    found = maximize(lambda values: values["a"], measure, grid)
    assert len(seen) == len(set(seen)) == found.measured
    assert set(range(0, len(heights), coarse)) | {len(heights) - 1} <= set(seen)
    assert (found.measured == found.points) == (len(seen) == len(heights))
    return found


def best(heights: Sequence[float]) -> int:
    """What a search of every point chooses: the smallest of the best."""
    return max(range(len(heights)), key=lambda index: (heights[index], -index))


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[float], int]:
    """Constant pieces, none shorter than the stride; many of equal height."""
    coarse = draw(st.integers(1, 6))
    pieces = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(coarse, 3 * coarse)), min_size=2))
    return [height / 5 for height, long in pieces for _ in range(long)], coarse


@st.composite
def peaks(draw: st.DrawFn) -> tuple[list[float], int]:
    """Tents of any heights and lopsided, no flank or gap shorter than the stride; the ends cut off."""
    coarse = draw(st.integers(1, 6))
    wide = st.integers(coarse, 4 * coarse)
    heights = [0.0] * coarse
    for top, up, down, gap in draw(st.lists(st.tuples(st.floats(0.1, 1), wide, wide, wide), min_size=1)):
        heights += [top * i / up for i in range(1, up)] + [top * i / down for i in range(down, -1, -1)]
        heights += [0.0] * gap
    first = draw(st.integers(0, len(heights) // 2))
    last = draw(st.integers(first + 2, len(heights)))
    return heights[first:last], coarse


@st.composite
def hills(draw: st.DrawFn) -> tuple[list[float], int]:
    """A stretch that rises and falls in whatever steps, above noise."""
    coarse = draw(st.integers(1, 6))
    heights = st.integers(6, 12).map(lambda height: height / 12)
    hill = draw(st.lists(heights, min_size=coarse, max_size=5 * coarse))
    top = draw(st.integers(0, len(hill)))
    noise = st.lists(st.integers(0, 5).map(lambda height: height / 12), max_size=30)
    hill = sorted(hill[:top]) + sorted(hill[top:], reverse=True)
    found = [*draw(noise), *hill, *draw(noise)]
    return found if len(found) > 1 else [0.0, *found], coarse


@THOROUGH
@given(st.one_of(steps(), peaks(), hills()))
def test_what_is_no_narrower_than_the_stride_is_found_wherever_it_lies(case: tuple[list[float], int]) -> None:
    heights, coarse = case
    assert whole(heights, coarse).coefficient == best(heights)


@THOROUGH
@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.integers(1, 8))
def test_on_any_function_the_choice_is_a_local_best_of_the_full_grid(
    heights: list[float], coarse: int
) -> None:
    found = whole(heights, coarse)
    chosen, measured = round(found.coefficient), dict(found.trace)
    assert heights[chosen] == max(measured.values())
    for beside in (chosen - 1, chosen + 1):
        if 0 <= beside < len(heights):
            assert measured[beside] <= heights[chosen]
    if coarse == 1:
        assert (chosen, found.measured) == (best(heights), len(heights))


@THOROUGH
@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.9, 0.95, 1.0]), st.integers(0, 12)), min_size=1),
)
def test_negation_on_steps_is_that_of_the_full_grid_and_keeps_the_control(
    coarse: int, pieces: list[tuple[int, float, int]]
) -> None:
    """The target and the control change together, in pieces no shorter than the stride."""
    start = [(2.0, 1.0)] * (coarse + 1)
    values = start + [(target, control) for target, control, more in pieces for _ in range(coarse + more)]
    grid = Grid(start=0, stop=1, step=1, limit=len(values) - 1, coarse=coarse)
    found = search_negation(
        lambda alpha: dict(zip(("target", "control"), values[round(alpha)], strict=True)),
        "target",
        {"target": 2.0, "control": 1.0},
        grid,
    )
    allowed = [index for index, (_, control) in enumerate(values) if control >= 0.95]
    assert found.coefficient == min(allowed, key=lambda index: (values[index][0], index))
    assert found.values["control"] >= 0.95
    assert found.satisfied


def test_a_dip_does_not_end_the_search() -> None:
    """The fault of a search that goes on only while the last point is the best."""
    heights = [
        abs(alpha - 1.2) if alpha < 2 else 3 - abs(alpha - 3) for alpha in (0.05 * i for i in range(81))
    ]
    found = search_addition(curve(lambda alpha: heights[round(alpha / 0.05)]), ONE, Grid(limit=4.0))
    assert found.coefficient == 3.0


def test_a_plateau_is_said_and_its_smallest_coefficient_taken() -> None:
    grid = Grid(stop=2.0, coarse=4)
    found = search_addition(curve(lambda alpha: float(0.4 <= alpha <= 1.3)), ONE, grid)
    assert (found.coefficient, found.plateau) == (0.4, (0.4, 1.3))
    assert found.remark == "plateau 0.4 to 1.3"
    ending = search_addition(curve(lambda alpha: float(alpha >= 1.7)), ONE, grid)
    assert ending.remark == "plateau 1.7 to 2 (the limit of the grid)"


def test_a_best_point_at_the_start_of_a_grid_without_zero_is_said() -> None:
    found = search_addition(curve(lambda alpha: -alpha), ONE, Grid(start=0.2))
    assert (found.coefficient, found.remark) == (0.2, "at the start of the grid")


def test_the_record_says_how_much_of_the_grid_was_measured() -> None:
    record: dict[str, Any] = search_addition(curve(lambda alpha: -abs(alpha - 0.45)), ONE).record()
    assert (record["measured"], record["points"]) == (17, 41)
    assert len(record["trace"]) == 17
    every = search_addition(curve(lambda alpha: -abs(alpha - 0.45)), ONE, Grid(coarse=1)).record()
    assert (every["measured"], every["points"]) == (41, 41)


def test_outputs_that_are_not_finite_are_worse_than_any_and_said() -> None:
    def measure(alpha: float) -> dict[str, float]:
        if alpha > 1.85:
            raise Diverged("outputs are not finite")
        return {"a": alpha}

    found = search_addition(measure, ONE)
    assert found.coefficient == 1.85
    assert found.remark == "grid extended, outputs not finite at 1.9, 1.95, 2"
    record: dict[str, Any] = found.record()
    assert record["trace"][-1] == (2.0, None)
    assert all(math.isfinite(value) for value in found.values.values())
    with pytest.raises(Diverged, match=r"finite at no coefficient from 1\.9 to 2"):
        search_addition(measure, ONE, Grid(start=1.9, stop=1.95))


@given(st.integers(1, 9), st.sampled_from([0.05, 0.1, 0.25]))
def test_a_scaled_grid_has_the_same_points_in_another_unit(factor: int, step: float) -> None:
    grid = Grid(step=step, limit=1.5)
    scaled = grid.scaled(factor)
    assert (scaled.points, scaled.last) == (grid.points, grid.last)
    for index in range(grid.last + 1):
        assert scaled.point(index) == pytest.approx(factor * grid.point(index))


@given(st.floats(1, 9), st.sampled_from([0.05, 0.1, 0.25]))
def test_a_wider_grid_holds_the_same_points_and_wider_ends(factor: float, step: float) -> None:
    grid = Grid(step=step, limit=1.5)
    wider = grid.widened(factor)
    assert 0 <= wider.limit - 1.5 * factor + 1e-5 < step + 2e-5
    assert 0 <= wider.stop - factor + 1e-5 < step + 2e-5
    assert Grid(**wider.model_dump()) == wider
    assert all(wider.point(index) == grid.point(index) for index in range(grid.last + 1))
