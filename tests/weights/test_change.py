"""How far an edit goes, as measured while it is written."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskvec.weights import change
from taskvec.weights.change import Change

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SIZES = st.one_of(st.integers(0, 300), st.sampled_from([1 << 16, (1 << 16) + 1, 70_001, (1 << 19) + 77]))


def drawn(size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Entries, of which about half move."""
    g = torch.Generator().manual_seed(seed)
    start, moves = torch.randn(2, size, generator=g, dtype=torch.float64)
    return start, torch.where(torch.rand(size, generator=g) < 0.5, moves, 0.0)


@given(SIZES, st.sampled_from(TYPES), st.sampled_from(TYPES), st.integers(0, 1000))
def test_a_change_is_that_of_a_float64_computation(
    size: int, before: torch.dtype, after: torch.dtype, seed: int
) -> None:
    start, moves = drawn(size, seed)
    own, end = start.to(before), (start + moves).to(after)
    found, apart = change.between(own, end), end.double() - own.double()
    assert (found.entries, found.changed) == (size, int(apart.count_nonzero()))
    assert found.distance == pytest.approx(float(apart.square().sum()), rel=1e-5)
    assert found.norm == pytest.approx(float(own.double().square().sum()), rel=1e-5)


@given(SIZES, st.sampled_from(TYPES), st.integers(0, 1000))
def test_a_step_is_measured_as_it_is_stored(size: int, dtype: torch.dtype, seed: int) -> None:
    start, moves = drawn(size, seed)
    found, delta = change.step(start.to(dtype), moves.float()), moves.float().double()
    assert (found.entries, found.changed) == (size, int(delta.count_nonzero()))
    assert found.distance == pytest.approx(float(delta.square().sum()), rel=1e-5)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [7, 100_000])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["before", "after"])
def test_what_is_not_finite_never_passes_for_finite(
    dtype: torch.dtype, size: int, bad: float, side: str
) -> None:
    start, moves = drawn(size, 0)
    own, end = start.to(dtype), (start + moves).to(dtype)
    assert change.between(own, end).finite
    (own if side == "before" else end)[size // 2] = bad
    assert not change.between(own, end).finite


@pytest.mark.parametrize("size", [7, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unit", [2.0**-100, 2.0**100])
def test_squares_beyond_float32_are_measured_all_the_same(size: int, dtype: torch.dtype, unit: float) -> None:
    start = torch.full((size,), unit, dtype=dtype)
    for found in (change.between(start, 2 * start), change.step(start, start.float())):
        assert found.changed == size
        assert math.sqrt(found.distance) == pytest.approx(unit * math.sqrt(size), rel=1e-6)
    assert change.between(start, 3 * start).relative == pytest.approx(2, rel=1e-3)


def test_changes_of_parts_add_up_to_that_of_the_whole() -> None:
    start, moves = drawn(1000, 0)
    parts = [
        change.between(start[at : at + 130], (start + moves)[at : at + 130]) for at in range(0, 1000, 130)
    ]
    whole = change.between(start, start + moves)
    assert change.total(parts) == pytest.approx(whole)
    assert change.total([]) == Change()
    assert (Change().share, Change().relative) == (0.0, 0.0)
    assert Change(2, 1, 1.0, 0.0).relative == math.inf
    assert whole.times(3).relative == pytest.approx(whole.relative)
