"""Coefficient search on curves whose best point is known."""

from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskvec.errors import InputError
from taskvec.evaluation.metrics import normalized
from taskvec.evaluation.search import Grid, search_addition, search_each, search_negation


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
