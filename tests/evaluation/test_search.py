"""Coefficient search on curves whose best point is known."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskvec.errors import InputError
from taskvec.evaluation.search import Grid, search_addition, search_negation


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
