"""Task arithmetic and averaging."""

import pytest
import torch
from torch.testing import assert_close

from taskvec.errors import InputError
from taskvec.rules import RULES
from taskvec.vectors import TaskVector, combine

STACK = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def vectors() -> list[TaskVector]:
    return [TaskVector.from_tensors({"w": delta}, None) for delta in STACK]


def test_the_mean_is_the_sum_over_the_number_of_tasks() -> None:
    assert_close(RULES["mean"](STACK), RULES["sum"](STACK) / 3)
    assert_close(RULES["mean"](STACK), STACK.mean(0))


def test_weights_are_factors_of_the_sum_and_shares_of_the_mean() -> None:
    weights = [2.0, -1.0, 0.5]
    expected = torch.tensordot(torch.tensor(weights, dtype=torch.float64), STACK, dims=1)
    assert_close(RULES["sum"](STACK, weights=weights), expected)
    assert_close(RULES["mean"](STACK, weights=weights), expected / 1.5)


def test_shares_that_add_up_to_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="add up to 0"):
        RULES["mean"](STACK, weights=[1, -1, 0])
    with pytest.raises(InputError, match="add up to 0"):
        combine("dare+mean", vectors(), weights=[1, -1, 0])


@pytest.mark.parametrize("name", ["sum", "mean"])
def test_a_linear_rule_stays_a_linear_form(name: str) -> None:
    one, two, three = vectors()
    form = combine(name, [one, two, three], weights=[1, 1, 2])
    share = 1.0 if name == "sum" else 0.25
    assert form == share * one + share * two + 2 * share * three
    assert_close(form["w"], RULES[name](STACK, weights=[1, 1, 2]))
