"""Moving parameters in place is exact, and repeats exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from taskvec.errors import InputError, KeyMismatch, NonFinite
from taskvec.evaluation.points import OrdinaryPoints as Points

coefficients = st.floats(-3, 3, width=32)


def world() -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    draw = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(4, 3, generator=draw), "b": torch.randn(4, generator=draw)}
    vectors = {
        "one": {"w": torch.randn(4, 3, generator=draw)},
        "two": {"w": torch.randn(4, 3, generator=draw), "b": torch.randn(4, generator=draw)},
    }
    return base, vectors


@settings(max_examples=25)
@given(coefficients, coefficients)
def test_a_point_is_the_base_plus_scaled_vectors(a: float, b: float) -> None:
    base, vectors = world()
    at = Points(base, vectors).at({"one": a, "two": b})
    expected = base["w"].double() + a * vectors["one"]["w"].double() + b * vectors["two"]["w"].double()
    assert_close(at["w"].double(), expected, rtol=1e-5, atol=1e-5)
    assert_close(
        at["b"].double(), base["b"].double() + b * vectors["two"]["b"].double(), rtol=1e-5, atol=1e-5
    )


def test_points_do_not_remember_where_they_were() -> None:
    base, vectors = world()
    points = Points(base, vectors)
    fresh = {name: value.clone() for name, value in Points(base, vectors).at({"two": 0.3}).items()}
    for alpha in (1e6, -7.0, 0.1):
        points.at({"one": alpha, "two": alpha})
    assert all(torch.equal(points.at({"two": 0.3})[name], fresh[name]) for name in fresh)
    assert all(torch.equal(points.at({})[name], base[name]) for name in base)


def test_the_callers_tensors_are_left_alone() -> None:
    base, vectors = world()
    before = {name: value.clone() for name, value in base.items()}
    Points(base, vectors).shared(["one", "two"], 2.0)
    assert all(torch.equal(base[name], before[name]) for name in base)


def test_what_does_not_fit_is_refused() -> None:
    base, vectors = world()
    with pytest.raises(KeyMismatch, match="vector 'x': 'v' is not among the parameters"):
        Points(base, {"x": {"v": torch.zeros(1)}})
    with pytest.raises(KeyMismatch, match=r"'w' has shape \(3,\), expected \(4, 3\)"):
        Points(base, {"x": {"w": torch.zeros(3)}})
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFinite, match="vector 'x': 'w' holds NaN or infinity"):
            Points(base, {"x": {"w": torch.full((4, 3), bad)}})
    with pytest.raises(InputError, match="no vector called 'three'"):
        Points(base, vectors).at({"three": 1.0})
