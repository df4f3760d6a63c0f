"""What every registered rule obeys."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from taskvec.errors import InputError
from taskvec.rules import RULES
from taskvec.vectors import TaskVector, combine

every_rule = pytest.mark.parametrize("name", list(RULES))
few = settings(max_examples=20, deadline=None, derandomize=True)


@st.composite
def deltas(draw: st.DrawFn) -> Tensor:
    """A stack of updates (task, *shape) of 0 to 3 axes, some entries zero, float64."""
    tasks = draw(st.integers(1, 4))
    shape = draw(st.lists(st.integers(1, 5), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(tasks, *shape, generator=generator, dtype=torch.float64)
    return values * (torch.rand(values.shape, generator=generator) > 0.2)


@every_rule
@few
@given(deltas())
def test_the_order_of_tasks_is_irrelevant(name: str, stack: Tensor) -> None:
    assert_close(RULES[name](stack.flip(0)), RULES[name](stack))


@every_rule
@few
@given(deltas(), st.floats(0.01, 100))
def test_output_scales_with_input(name: str, stack: Tensor, c: float) -> None:
    assert_close(RULES[name](c * stack), c * RULES[name](stack))


@every_rule
@few
@given(deltas())
def test_inputs_are_left_alone_and_shape_and_dtype_kept(name: str, stack: Tensor) -> None:
    before = stack.clone()
    merged = RULES[name](stack)
    assert torch.equal(stack, before)
    assert merged.shape == stack.shape[1:] and merged.dtype == stack.dtype
    assert RULES[name](stack.float()).dtype == torch.float32


@every_rule
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 2)])
def test_zero_in_zero_out(name: str, shape: tuple[int, ...]) -> None:
    assert torch.equal(RULES[name](torch.zeros(3, *shape)), torch.zeros(shape))


@every_rule
def test_float32_stays_close_to_float64(name: str) -> None:
    stack = torch.randn(5, 64, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact, fast = RULES[name](stack), RULES[name](stack.float()).double()
    assert (fast - exact).norm() <= 16 * torch.finfo(torch.float32).eps * exact.norm()


@every_rule
def test_a_rule_says_what_it_is(name: str) -> None:
    rule = RULES[name]
    assert rule.name == name
    assert rule.summary.endswith(".") and len(rule.summary) < 100
    assert rule.consumes == "deltas"


@every_rule
def test_unknown_parameters_name_the_nearest(name: str) -> None:
    with pytest.raises(
        InputError, match=f"rule '{name}': unknown parameter 'wieghts'; did you mean 'weights'"
    ):
        RULES[name].settings({"wieghts": [1]})
    with pytest.raises(InputError, match="2 values, expected 1"):
        base, tuned = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
        combine(name, [TaskVector.between(base, tuned)], weights=[1, 2])["w"]
