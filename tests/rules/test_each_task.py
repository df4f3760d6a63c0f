"""Parameters with a value for each task, and rescaling by what they removed."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from taskvec.errors import InputError
from taskvec.rules import RULES
from taskvec.rules.breadcrumbs import BREADCRUMBS as breadcrumbs
from taskvec.rules.dare import dare
from taskvec.rules.della import DELLA as della
from taskvec.rules.rule import Place
from taskvec.rules.ties import TIES as ties
from taskvec.vectors import TaskVector, combine
from taskvec.weights import blocks

few = settings(max_examples=30, deadline=None, derandomize=True)
HERE = Place("layer.0.weight")
DENSITIES = [0.2, 1.0, 0.55]


@st.composite
def stacks(draw: st.DrawFn) -> Tensor:
    """Three tasks, (3, m, n), float64, with many equal magnitudes."""
    shape = (3, draw(st.integers(1, 6)), draw(st.integers(1, 7)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    coarse = torch.randint(-3, 4, shape, generator=generator) * 0.25
    return coarse + draw(st.sampled_from([0.0, 1.0])) * torch.randn(
        shape, generator=generator, dtype=torch.float64
    )


def largest(row: Tensor, density: float, gamma: float = 0.0) -> Tensor:
    """What a stable sort keeps of one task: all but the smallest, and but the very largest."""
    flat = row.reshape(-1).numpy()
    kept = max(1, round(density * len(flat)))
    removed = min(int(gamma * len(flat)), len(flat) - kept)
    found = np.zeros_like(flat)
    places = np.argsort(-np.abs(flat), kind="stable")[removed : removed + kept]
    found[places] = flat[places]
    return torch.from_numpy(found).reshape(row.shape)


def matched(before: Tensor, after: Tensor) -> Tensor:
    """Brought back to the L1 norm."""
    size = after.abs().sum()
    return after * (before.abs().sum() / size) if size else after


def elected(stack: Tensor) -> Tensor:
    sign = torch.where(stack.sum(0) < 0, -1.0, 1.0)
    agree = stack * (stack.sign() == sign)
    return agree.sum(0) / (agree != 0).sum(0).clamp(min=1)


@few
@given(stack=stacks())
def test_ties_trims_each_task_by_its_own_fraction(way: str, stack: Tensor) -> None:
    trimmed = [largest(row, keep) for row, keep in zip(stack, DENSITIES, strict=True)]
    assert_close(ties(stack, keep=DENSITIES), elected(torch.stack(trimmed)))


@few
@given(stack=stacks())
def test_breadcrumbs_masks_each_task_by_its_own_fractions(way: str, stack: Tensor) -> None:
    gammas = [0.5, 0.0, 0.25]
    expected = [largest(*one) for one in zip(stack, DENSITIES, gammas, strict=True)]
    assert torch.equal(breadcrumbs(stack, density=DENSITIES, gamma=gammas), torch.stack(expected))
    expected = [matched(*pair) for pair in zip(stack, expected, strict=True)]
    assert_close(breadcrumbs(stack, density=DENSITIES, gamma=gammas, rescale="l1"), torch.stack(expected))


def test_random_rules_drop_of_each_task_its_own_share() -> None:
    stack = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = dare(stack, density=DENSITIES, _place=HERE)
    for task, density in enumerate(DENSITIES):
        assert torch.equal(together[task], dare(stack, density=density, _place=HERE)[task])
        assert abs((together[task] != 0).double().mean().item() - density) < 0.05
    windows = [0.1, 0.15, 0.3]
    for rescale in ("element", "l1", None):
        together = della(stack, density=DENSITIES, epsilon=windows, rescale=rescale, _place=HERE)
        for task, (density, window) in enumerate(zip(DENSITIES, windows, strict=True)):
            alone = della(stack, density=density, epsilon=window, rescale=rescale, _place=HERE)
            assert torch.equal(together[task], alone[task])


@pytest.mark.parametrize(
    ("rule", "own"),
    [("ties", "keep"), ("dare", "density"), ("breadcrumbs", "density"), ("della", "density")],
)
def test_there_is_one_value_or_one_for_each_task(rule: str, own: str) -> None:
    extra = {"gamma": 0.0} if rule == "breadcrumbs" else {}
    assert RULES[rule].settings({own: [0.5, 0.4], **extra}, 2)[own] == [0.5, 0.4]
    with pytest.raises(InputError, match=f"rule '{rule}': {own}: 2 values, expected 3, one for each task"):
        RULES[rule].settings({own: [0.5, 0.4], **extra}, 3)
    with pytest.raises(InputError, match=rf"rule '{rule}': {own}.1 is 1.5"):
        RULES[rule].settings({own: [0.5, 1.5], **extra})
    with pytest.raises(InputError, match=rf"rule '{rule}+lines'".replace("+", r"\+")):
        RULES[f"{rule}+lines"].settings({own: [0.5, 0.0], **extra})


@pytest.mark.parametrize(
    ("rule", "params", "message"),
    [
        ("breadcrumbs", {"density": [0.5, 0.9], "gamma": 0.2}, "density 0.9 and gamma 0.2 add up"),
        ("breadcrumbs", {"density": [0.5, 0.9], "gamma": [0.2, 0.2]}, "density 0.9 and gamma 0.2 add up"),
        ("breadcrumbs", {"gamma": [0.2, 0.2, 0.2]}, "gamma: 3 values, expected 2"),
        ("della", {"density": [0.5, 0.9]}, "epsilon 0.15 takes probabilities around density 0.9"),
        ("della", {"epsilon": [0.1, 0.2, 0.1]}, "epsilon: 3 values, expected 2"),
    ],
)
def test_values_of_each_task_fit_together(rule: str, params: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RULES[rule].settings(params, 2)


def vectors() -> list[TaskVector]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"w": (30, 20), "b": (7,), "s": (), "e": (0, 4)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return [
        TaskVector.from_tensors(
            {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, base
        )
        for _ in range(3)
    ]


def stacked(given: Sequence[TaskVector]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in given]).double() for name in given[0]}


def test_the_whole_vector_is_trimmed_by_the_fraction_of_its_task() -> None:
    given = vectors()
    merged = combine("ties", given, keep=DENSITIES, trim="global", merge="sum")
    stacks = stacked(given)
    flat = torch.cat([stack.reshape(3, -1) for stack in stacks.values()], dim=1)
    trimmed = torch.stack([largest(row, keep) for row, keep in zip(flat, DENSITIES, strict=True)])
    sign = torch.where(trimmed.sum(0) < 0, -1.0, 1.0)
    expected = (trimmed * (trimmed.sign() == sign)).sum(0)
    assert_close(torch.cat([merged[name].reshape(-1) for name in stacks]).double(), expected)


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_rescaled_trimming_goes_by_rows(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    given = vectors()
    merged = combine("breadcrumbs+ties", given, density=DENSITIES, gamma=0, rescale="l1", keep=1)
    for name, stack in stacked(given).items():
        assert merged.in_rows(name)
        if stack.numel():
            kept = [matched(row, largest(row, own)) for row, own in zip(stack, DENSITIES, strict=True)]
            expected = elected(torch.stack(kept))
            assert_close(merged[name].double(), expected, rtol=1e-5, atol=1e-6)
            if stack.dim() > 1:
                parts = [merged.read(name, slice(row, row + 1)) for row in range(stack.shape[1])]
                assert torch.equal(torch.cat(parts), merged[name])


def test_what_is_left_of_nothing_is_not_rescaled() -> None:
    stack = torch.zeros(2, 5, dtype=torch.float64)
    stack[1] = torch.arange(5)
    made = breadcrumbs(stack, density=0.2, gamma=0.8, rescale="l1")
    assert torch.equal(made, torch.zeros(2, 5, dtype=torch.float64))


@pytest.mark.parametrize("rule", ["ties", "tsv", "magmax", "della"])
def test_large_tensors_of_many_axes_keep_their_shape(rule: str) -> None:
    base = {"conv": torch.zeros(96, 64, 4, 4)}
    generator = torch.Generator().manual_seed(0)
    deltas = [torch.randn(96, 64, 4, 4, generator=generator) for _ in range(2)]
    made = combine(rule, [TaskVector.from_tensors({"conv": one}, base) for one in deltas])
    known = RULES[rule]
    assert_close(
        made["conv"], known(torch.stack(deltas), **known.accepted_parameters({"_place": Place("conv")}))
    )
