"""SLERP, NuSLERP, multi-SLERP, the Karcher mean and Model Stock."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.linalg  # type: ignore[import-untyped]
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize  # type: ignore[import-untyped]
from torch import Tensor
from torch.testing import assert_close

from taskvec.errors import InputError
from taskvec.rules import RULES
from taskvec.rules.model_stock import model_stock
from taskvec.rules.slerp import karcher, multislerp, nuslerp, slerp

few = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def points(draw: st.DrawFn, tasks: int | None = None) -> Tensor:
    """Float64 points (task, m, n) in general position."""
    number, m, n = tasks or draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(number, m, n, generator=generator, dtype=torch.float64)


def rotated(first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
    """The arc by a rotation, a matrix exponential, and lengths that the coefficients imply."""
    e = first / np.linalg.norm(first)
    rest = second / np.linalg.norm(second) - (e @ second) / np.linalg.norm(second) * e
    f = rest / np.linalg.norm(rest)
    angle = np.arctan2(f @ second, e @ second)
    rotation = scipy.linalg.expm(t * angle * np.array([[0.0, -1.0], [1.0, 0.0]]))
    # unit + what longer points add along their own directions
    unit = rotation @ np.array([1.0, 0.0])
    share = unit[1] / np.sin(angle)
    start = unit[0] - share * np.cos(angle)
    return np.asarray(start * first + share * second)


@few
@given(points(2), st.floats(0, 1))
def test_slerp_by_a_rotation(stack: Tensor, t: float) -> None:
    first, second = stack.reshape(2, -1).numpy()
    expected = rotated(first, second, t).reshape(stack.shape[1:])
    if abs(np.corrcoef(first, second)[0, 1]) < 0.99:
        assert_close(slerp(stack, t=t, of="vectors"), torch.from_numpy(expected), rtol=1e-6, atol=1e-8)
        assert_close(nuslerp(stack, weights=[1 - t, t]), torch.from_numpy(expected), rtol=1e-6, atol=1e-8)


@few
@given(points(3))
def test_slerp_of_weights_is_slerp_of_points_less_the_base(three: Tensor) -> None:
    base, stack = three[0], three[1:]
    found = slerp(stack, t=0.3, _base=base)
    assert_close(found, slerp(stack + base, t=0.3, of="vectors") - base)
    assert_close(slerp(stack, t=0, _base=base), stack[0], rtol=0, atol=0)
    assert_close(slerp(stack, t=1, _base=base), stack[1], rtol=0, atol=0)
    assert_close(slerp(stack.flip(0), t=0.7, _base=base), found)


def test_slerp_keeps_a_norm_that_both_have() -> None:
    stack = torch.nn.functional.normalize(torch.randn(2, 50, dtype=torch.float64), dim=1) * 3
    for t in (0.1, 0.5, 0.8):
        assert slerp(stack, t=t, of="vectors").norm().item() == pytest.approx(3)


def test_nearly_parallel_points_are_joined_by_a_line() -> None:
    first = torch.randn(40, dtype=torch.float64)
    stack = torch.stack([first, 2 * first + 0.01])
    assert_close(slerp(stack, t=0.25, of="vectors"), 0.75 * stack[0] + 0.25 * stack[1])
    opposite = torch.stack([first, -first])
    assert_close(slerp(opposite, t=0.25, of="vectors"), 0.5 * first)
    assert_close(nuslerp(opposite, weights=[3, 1]), 0.5 * first)


def test_rows_and_columns_have_arcs_of_their_own() -> None:
    stack = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.stack([nuslerp(stack[:, row]) for row in range(4)])
    columns = torch.stack([nuslerp(stack[:, :, column]) for column in range(3)], dim=1)
    assert_close(nuslerp(stack, per="row"), rows)
    assert_close(nuslerp(stack, per="column"), columns)
    assert_close(slerp(stack, per="row", of="vectors"), rows)
    kernel = torch.randn(2, 4, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = nuslerp(kernel.reshape(2, 4, 6), per="column")
    assert_close(nuslerp(kernel, per="column"), flat.reshape(4, 3, 2))
    stock = torch.stack([model_stock(stack[:, row]) for row in range(4)])
    assert_close(model_stock(stack, per="row"), stock)


@few
@given(points(), st.integers(0, 100))
def test_multislerp_is_the_tangent_step_from_the_mean_direction(stack: Tensor, seed: int) -> None:
    weights = np.random.default_rng(seed).uniform(0.5, 2, len(stack))
    flat = stack.reshape(len(stack), -1).numpy()
    share = weights / weights.sum()
    units = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    pole = share @ units
    if np.linalg.norm(pole) < 1e-2:
        return
    pole = pole / np.linalg.norm(pole)
    tangent = share @ (units - np.outer(units @ pole, pole))
    size = np.linalg.norm(tangent) + 1e-8
    expected = (pole * np.cos(size) + tangent * np.sin(size) / size) * (share @ np.linalg.norm(flat, axis=1))
    found = multislerp(stack, weights=weights.tolist())
    assert_close(found, torch.from_numpy(expected.reshape(stack.shape[1:])), rtol=1e-6, atol=1e-7)


def test_directions_that_cancel_are_averaged() -> None:
    cross = torch.tensor([[1.0, 0], [-2, 0], [0, 3], [0, -1]], dtype=torch.float64)
    assert_close(multislerp(cross), cross.mean(0))
    assert_close(karcher(cross, of="vectors"), cross.mean(0))


@pytest.mark.parametrize("merge", [multislerp, partial(karcher, of="vectors", tol=1e-12)])
@pytest.mark.parametrize("size", [1, 10, 20_000])
def test_directions_that_cancel_but_for_rounding_are_averaged(merge: Any, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for factor in (0.3, 1.7, 3.1):
        one = torch.randn(size, generator=generator)
        opposite = torch.stack([one, -factor * one])
        assert_close(merge(opposite), opposite.mean(0))
    if size > 1:
        plane, _ = torch.linalg.qr(torch.randn(size, 2, generator=generator, dtype=torch.float64))
        angles = torch.arange(3, dtype=torch.float64) * 2 * torch.pi / 3
        thirds = torch.stack([angles.cos(), angles.sin()], 1) @ plane.T * torch.tensor([[1.0], [2.0], [0.5]])
        assert_close(merge(thirds.float()), thirds.mean(0).float())


def test_the_karcher_mean_is_nearest_to_all_points_by_arc_length() -> None:
    generator = torch.Generator().manual_seed(0)
    stack = torch.rand(4, 5, generator=generator, dtype=torch.float64) + 0.1
    flat = stack.numpy()
    units = flat / np.linalg.norm(flat, axis=1, keepdims=True)

    def spread(point: np.ndarray) -> float:
        return float((np.arccos(np.clip(units @ point / np.linalg.norm(point), -1, 1)) ** 2).sum())

    best = minimize(spread, units.mean(0), tol=1e-14).x
    expected = best / np.linalg.norm(best) * np.linalg.norm(flat, axis=1).mean()
    found = karcher(stack, of="vectors", max_iter=100, tol=1e-12)
    assert_close(found, torch.from_numpy(expected), rtol=1e-5, atol=1e-6)
    assert spread(found.numpy()) <= spread(stack.sum(0).numpy())


@few
@given(points(2))
def test_the_karcher_mean_of_two_unit_points_is_the_middle_of_the_arc(stack: Tensor) -> None:
    units = stack / stack.flatten(1).norm(dim=1)[:, None, None]
    if units[0].mul(units[1]).sum().abs() < 0.99:
        middle = slerp(units, t=0.5, of="vectors")
        assert_close(karcher(units, of="vectors"), middle, rtol=1e-4, atol=1e-5)


@few
@given(points(3))
def test_weights_or_vectors_is_a_choice_of_origin(three: Tensor) -> None:
    base, stack = three[0], three[1:]
    for rule in (karcher, multislerp):
        found = rule(stack, of="weights", _base=base)
        assert_close(found, rule(stack + base, of="vectors") - base)


@few
@given(points())
def test_model_stock_by_pairs(stack: Tensor) -> None:
    if len(stack) < 2:
        return
    flat = stack.reshape(len(stack), -1).numpy()
    pairs = [(i, j) for i in range(len(flat)) for j in range(i)]
    cosines = [flat[i] @ flat[j] / np.linalg.norm(flat[i]) / np.linalg.norm(flat[j]) for i, j in pairs]
    c = min(1.0, max(0.0, float(np.mean(cosines))))
    t = len(flat) * c / (1 + (len(flat) - 1) * c)
    assert_close(model_stock(stack), t * stack.mean(0))


def test_model_stock_at_its_ends() -> None:
    same = torch.ones(3, 4)
    assert_close(model_stock(same), same[0])
    assert not model_stock(torch.eye(3)).any()
    assert not model_stock(torch.tensor([[1.0, 0], [-1, 0]])).any()
    scaled = torch.randn(3, 8, dtype=torch.float64).abs()
    t = (model_stock(scaled) / scaled.mean(0))[0]
    other = scaled * torch.tensor([[1.0], [5], [0.2]])
    assert_close((model_stock(other) / other.mean(0))[0], t)  # angles alone decide


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("slerp", {"t": 1.5}, "t is 1.5"),
        ("slerp", {"of": "models"}, "of is 'models'"),
        ("nuslerp", {"weights": [1, -1]}, "weights add up to 0"),
        ("multislerp", {"weights": [1, -1]}, "weights add up to 0"),
        ("karcher", {"tol": 0}, "tol is 0"),
        ("model_stock", {"per": "column"}, "per is 'column'"),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=f"rule '{name}': {message}"):
        RULES[name].settings(params)
