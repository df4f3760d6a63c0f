"""Deltas as pairs of bfloat16 weights are the same deltas, to the bit."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskvec.rules.dare import dare
from taskvec.rules.pairs import Pairs
from taskvec.rules.quantiles import Entries, find, kth_largest
from taskvec.rules.rule import Place
from taskvec.rules.ties import TIES as merged_by_ties
from taskvec.vectors import TaskVector, combine
from taskvec.weights import blocks

few = settings(max_examples=40, deadline=None, derandomize=True)


def bits(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint16).numpy()


def paired(base: Tensor, tuned: list[Tensor]) -> Pairs:
    shape = (len(tuned), *base.shape)
    return Pairs(tuple(map(bits, tuned)), (bits(base),) * len(tuned), shape)


@st.composite
def weights(draw: st.DrawFn) -> tuple[Tensor, list[Tensor]]:
    """A base and fine-tuned weights in bfloat16, with many equal differences, and some that overflow."""
    tasks, n = draw(st.integers(1, 4)), draw(st.integers(1, 5000))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    base = torch.randn(n, generator=generator).bfloat16()
    moved = [base.float() + 0.1 * torch.randn(n, generator=generator) for _ in range(tasks)]
    for one in moved:
        one[draw(st.integers(0, n - 1))] = draw(st.sampled_from([0.0, 1.0, 3e38, -3e38]))
    return base, [one.bfloat16() for one in moved]


@few
@given(weights())
def test_they_are_the_differences(drawn: tuple[Tensor, list[Tensor]]) -> None:
    base, tuned = drawn
    expected = torch.stack([one.float() - base.float() for one in tuned])
    pairs = paired(base, tuned)
    assert torch.equal(pairs.stack(), expected)
    assert all(torch.equal(one, other) for one, other in zip(pairs, expected, strict=True))
    half = len(base) // 2
    assert torch.equal(pairs.part(half, (len(base) - half,)).stack(), expected[:, half:])


@few
@given(drawn=weights(), share=st.floats(0, 1))
def test_the_same_entry_is_found(way: str, drawn: tuple[Tensor, list[Tensor]], share: float) -> None:
    pairs = paired(*drawn)
    stack, number = pairs.stack(), pairs.shape[1]
    rank = max(1, math.floor(share * number))
    one, other = Entries(lambda: [pairs], number, stack), Entries(lambda: [stack], number, stack)
    assert find(one, rank) == find(other, rank)
    assert torch.equal(kth_largest(one, rank), kth_largest(other, rank))


@few
@given(
    drawn=weights(),
    keep=st.floats(0.01, 1),
    elect=st.sampled_from(["mass", "count"]),
    merge=st.sampled_from(["mean", "sum", "max"]),
    weigh=st.sampled_from(["before", "after"]),
)
def test_ties_makes_the_same_of_them(drawn: tuple[Tensor, list[Tensor]], **options: Any) -> None:
    pairs = paired(*drawn)
    options["weights"] = [0.5 + task for task in range(len(pairs))]
    assert torch.equal(merged_by_ties(pairs, **options), merged_by_ties(pairs.stack(), **options))


@few
@given(drawn=weights(), density=st.sampled_from([0.001, 0.3, 0.5, 1.0]), seed=st.integers(0, 9))
def test_dare_makes_the_same_of_them(drawn: tuple[Tensor, list[Tensor]], density: float, seed: int) -> None:
    pairs = paired(*drawn)
    place = Place("w", 5)
    one, other = (dare(given, density=density, seed=seed, _place=place) for given in (pairs, pairs.stack()))
    assert torch.equal(one, other)


def test_what_is_not_finite_stays_so() -> None:
    base, tuned = torch.zeros(6).bfloat16(), torch.tensor([1, math.nan, 2, math.inf, -math.inf, 3]).bfloat16()
    pairs = paired(base, [tuned, tuned])
    for made in (merged_by_ties(pairs, keep=1.0), dare(pairs, density=0.01)[0]):
        assert made.isfinite().tolist() == [True, False, True, False, False, True]


@pytest.mark.parametrize(
    ("rule", "params"),
    [
        ("ties", {"keep": 0.3}),
        ("ties", {"keep": 0.3, "trim": "global"}),
        ("ties", {"keep": 1.0}),
        ("dare", {"density": 0.3}),
        ("dare+ties", {"density": 0.5, "keep": 0.7}),
        ("ties+lines", {"alpha": "auto"}),
        ("dare+metagpt", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("block", [300, 1 << 19])
def test_models_in_bfloat16_combine_as_the_same_numbers_in_float32_do(
    rule: str, params: dict[str, Any], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    shapes = {"layer.0.a": (30, 40), "layer.1.b": (5, 6, 70), "layer.2.c": (9,), "none": (0, 4)}
    base = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    tuned = [
        {name: (t + 0.1 * torch.randn(t.shape, generator=generator)).bfloat16() for name, t in base.items()}
        for _ in range(3)
    ]
    made = []
    for dtype in (torch.bfloat16, torch.float32):
        start, *ends = ({name: t.to(dtype) for name, t in one.items()} for one in (base, *tuned))
        merged = combine(rule, [TaskVector.between(start, end) for end in ends], **params)
        made.append({name: merged[name] for name in merged})
    assert all(torch.equal(made[0][name], made[1][name]) for name in shapes)
