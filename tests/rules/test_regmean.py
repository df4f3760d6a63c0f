"""RegMean against least squares on the inputs themselves, and what its definition implies."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskvec.errors import InputError
from taskvec.rules import RULES
from taskvec.rules.rule import Place

MANY = st.integers(8, 20)
few = settings(max_examples=25, deadline=None)
EXACT: dict[str, Any] = {"off_diagonal": 1, "ridge": 1e-13}


def merged(deltas: Tensor, grams: list[Tensor], **params: Any) -> Tensor:
    return RULES["regmean"](deltas, _stats=grams, **params)


def gram(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


@st.composite
def problems(draw: st.DrawFn, rows: st.SearchStrategy[int] = MANY) -> tuple[Tensor, list[Tensor]]:
    """Deltas (task, out, in) and inputs (rows, in) of each task, with columns of different sizes."""
    tasks, fan_out, fan_in = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    counts = [draw(rows) for _ in range(tasks)]
    scales = 10 ** normal(fan_in)
    return normal(tasks, fan_out, fan_in), [normal(count, fan_in) * scales for count in counts]


@few
@given(problems())
def test_it_is_least_squares_on_the_inputs(problem: tuple[Tensor, list[Tensor]]) -> None:
    """Every task counts once, however many rows it has."""
    deltas, inputs = problem
    rows = torch.cat([x / len(x) ** 0.5 for x in inputs])
    wanted = torch.cat([x @ d.T / len(x) ** 0.5 for x, d in zip(inputs, deltas, strict=True)])
    exact = torch.linalg.lstsq(rows, wanted, driver="gelsd").solution.T
    torch.testing.assert_close(merged(deltas, list(map(gram, inputs)), **EXACT), exact, rtol=1e-6, atol=1e-6)


@few
@given(problems(rows=st.integers(1, 3)), st.integers(0, 2**31))
def test_no_other_matrix_is_nearer_even_if_few_inputs_are_known(
    problem: tuple[Tensor, list[Tensor]], seed: int
) -> None:
    deltas, inputs = problem

    def loss(matrix: Tensor) -> float:
        pairs = zip(inputs, deltas, strict=True)
        return sum(float(((x @ (matrix - delta).T) ** 2).sum()) / len(x) for x, delta in pairs)

    found = merged(deltas, list(map(gram, inputs)), off_diagonal=1, ridge=1e-10)
    step = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = sum(float((x**2).sum()) / len(x) for x in inputs) * float((deltas**2).sum())
    assert all(loss(found) <= loss(found + h * step) + 1e-8 * size for h in (-1.0, -1e-3, 1e-3, 1.0))


@few
@given(problems())
def test_one_task_stays_and_equal_inputs_average(problem: tuple[Tensor, list[Tensor]]) -> None:
    deltas, inputs = problem
    grams = [gram(inputs[0])] * len(deltas)
    torch.testing.assert_close(merged(deltas, grams), deltas.mean(0))
    assert torch.equal(merged(deltas[:1], grams[:1]), deltas[0])


@few
@given(problems())
def test_factor_zero_averages_each_column_by_its_mean_square(problem: tuple[Tensor, list[Tensor]]) -> None:
    deltas, inputs = problem
    found = merged(deltas, list(map(gram, inputs)), off_diagonal=0, ridge=1e-13)
    squares = torch.stack([(x**2).mean(0) for x in inputs])[:, None]
    torch.testing.assert_close(found, (squares * deltas).sum(0) / squares.sum(0))


@few
@given(problems(), st.floats(0.3, 1))
def test_the_factor_shrinks_what_is_off_the_diagonal(
    problem: tuple[Tensor, list[Tensor]], factor: float
) -> None:
    deltas, inputs = problem
    grams = [factor * gram(x) + (1 - factor) * gram(x).diag().diag() for x in inputs]
    above = sum(delta @ own for delta, own in zip(deltas, grams, strict=True))
    exact = above @ torch.linalg.inv(torch.stack(grams).sum(0))
    found = merged(deltas, list(map(gram, inputs)), off_diagonal=factor, ridge=1e-13)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-6)


@few
@given(problems(), st.floats(1e-3, 1e3))
def test_the_size_of_the_inputs_is_irrelevant(problem: tuple[Tensor, list[Tensor]], factor: float) -> None:
    deltas, inputs = problem
    grams = list(map(gram, inputs))
    scaled = [factor * own for own in grams]
    torch.testing.assert_close(merged(deltas, scaled), merged(deltas, grams))


def test_what_no_input_reaches_is_averaged() -> None:
    """Two inputs that are always zero, and two that are always equal."""
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn(2, 3, 6, generator=generator, dtype=torch.float64)
    inputs = [torch.randn(9, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    for x in inputs:
        x[:, :2] = 0
        x[:, 3] = x[:, 2]
    found = merged(deltas, list(map(gram, inputs)), off_diagonal=1, ridge=1e-10)
    mean = deltas.mean(0)
    torch.testing.assert_close(found[:, :2], mean[:, :2])
    difference = found[:, 2] - found[:, 3]  # the direction that no input has
    torch.testing.assert_close(difference, mean[:, 2] - mean[:, 3], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[:, 4:], mean[:, 4:], atol=1e-2)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (4, 5)])
def test_what_is_no_layer_with_statistics_is_averaged(shape: tuple[int, ...]) -> None:
    deltas = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(RULES["regmean"](deltas, _stats=[None] * 3), deltas.mean(0))


@pytest.mark.parametrize(
    ("grams", "complaint"),
    [
        (None, r"rule 'regmean' needs statistics, one file for each vector"),
        ([torch.eye(3), None], r"'w' has statistics in 1 of 2 tasks, expected all or none"),
        ([torch.eye(3), torch.eye(2)], r"'w' has statistics of shape \(2, 2\), expected \(3, 3\)"),
        ([torch.eye(3), -4 * torch.ones(3, 3)], r"'w' .* with ridge 1e-06 is not positive definite"),
        ([torch.eye(3), 9 - 8 * torch.eye(3)], r"'w' .* with ridge 1e-06 is not positive definite"),
    ],
    ids=["none", "missing", "shape", "negative", "indefinite"],
)
def test_statistics_that_do_not_fit_are_named(grams: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        RULES["regmean"](torch.ones(2, 2, 3), _stats=grams, _place=Place("w"))


@pytest.mark.parametrize("params", [{"off_diagonal": 1.1}, {"off_diagonal": -0.1}, {"ridge": 0}])
def test_parameters_out_of_range_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"rule 'regmean': (off_diagonal|ridge) is"):
        RULES["regmean"].settings(params, 2)
