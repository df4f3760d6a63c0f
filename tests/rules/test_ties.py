"""Laws and values of TIES."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from rules.stacks import entries_of
from taskvec.errors import InputError
from taskvec.rules import RULES, quantiles
from taskvec.rules.magnitude import Cut, cuts_of, trim
from taskvec.rules.quantiles import Entries, find
from taskvec.rules.rule import Stacks
from taskvec.rules.ties import TIES as ties
from taskvec.vectors import TaskVector, combine

in_one_pass = quantiles._bracketed  # as ``way`` may have put another in its place
few = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def stacks(draw: st.DrawFn) -> Tensor:
    """(task, n) with many equal magnitudes, float32 or float64."""
    tasks, n = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randint(-3, 4, (tasks, n), generator=generator) * 0.25
    fine = torch.randn(tasks, n, generator=generator) * draw(st.sampled_from([0.0, 1.0, 1e-30]))
    return (values + fine).to(draw(st.sampled_from([torch.float32, torch.float64])))


def by_sorting(stack: Tensor, keep: float, merge: str = "mean") -> Tensor:
    """The same quantity by another route: numpy, a stable sort, a loop over entries."""
    tasks, n = stack.shape
    kept = min(n, max(1, round(keep * n))) if keep else 0
    trimmed = np.zeros((tasks, n))
    for task, row in enumerate(stack.double().numpy()):
        largest = np.argsort(-np.abs(row), kind="stable")[:kept]
        trimmed[task, largest] = row[largest]
    merged = np.zeros(n)
    for place, column in enumerate(trimmed.T):
        sign = -1.0 if column.sum() < 0 else 1.0
        agree = column[np.sign(column) == sign]
        if len(agree):
            merged[place] = {"mean": agree.mean, "sum": agree.sum}[merge]()
            if merge == "max":
                merged[place] = agree[np.abs(agree).argmax()]
    return torch.from_numpy(merged)


@few
@given(stacks(), st.floats(0, 1), st.sampled_from(["mean", "sum"]))
def test_value_by_sorting(stack: Tensor, keep: float, merge: Any) -> None:
    assert_close(
        ties(stack, keep=keep, merge=merge).double(), by_sorting(stack, keep, merge), atol=1e-6, rtol=1e-5
    )


def cut_at(stack: Tensor, keep: int) -> list[Cut]:
    return cuts_of(Stacks.single(stack), "", keep)


@few
@given(stack=stacks(), keep=st.integers(1, 40))
def test_trimming_keeps_exactly_what_a_stable_sort_keeps(way: str, stack: Tensor, keep: int) -> None:
    keep = min(keep, stack.shape[1])
    for row, cut in zip(stack, cut_at(stack, keep), strict=True):
        largest = np.argsort(-row.abs().numpy(), kind="stable")[:keep]
        expected = torch.zeros_like(row)
        expected[torch.from_numpy(largest)] = row[torch.from_numpy(largest)]
        assert torch.equal(trim(row, cut), expected)
        pieces = [trim(piece, cut, first) for first, piece in ((0, row[:7]), (7, row[7:]))]
        assert torch.equal(torch.cat(pieces), expected)


@few
@given(stack=stacks(), keep=st.integers(1, 40))
def test_what_is_found_in_pieces_is_what_is_found_in_the_whole(way: str, stack: Tensor, keep: int) -> None:
    keep = min(keep, stack.shape[1])
    pieces = [stack[:, :7], stack[:, 7:]]
    found = find(Entries(lambda: pieces, stack.shape[1], stack), keep)
    assert found == find(entries_of(stack), keep)


def test_a_sample_that_misleads_costs_a_pass_and_no_more() -> None:
    stack = torch.randn(2, 40_000, generator=torch.Generator().manual_seed(0))
    wrong = Entries(lambda: [stack], 40_000, torch.zeros(2, 100))
    assert find(wrong, 8_000) == find(entries_of(stack), 8_000)


def test_keeping_all_of_one_task_changes_nothing() -> None:
    stack = torch.randn(1, 5, 4)
    assert torch.equal(ties(stack, keep=1.0), stack[0])


def test_agreeing_signs_give_the_mean_or_the_sum_or_the_largest() -> None:
    stack = torch.rand(3, 6) + 0.1
    for sign in (1, -1):
        assert_close(ties(sign * stack, keep=1.0), sign * stack.mean(0))
        assert_close(ties(sign * stack, keep=1.0, merge="sum"), sign * stack.sum(0))
        assert_close(ties(sign * stack, keep=1.0, merge="max"), sign * stack.max(0).values)


def test_signs_are_elected_by_mass_or_by_count() -> None:
    stack = torch.tensor([[5.0], [-1.0], [-2.0]])
    assert ties(stack, keep=1.0).item() == 5.0
    assert ties(stack, keep=1.0, elect="count").item() == -1.5


def test_weights_before_the_election_can_turn_it_and_after_it_cannot() -> None:
    stack = torch.tensor([[3.0], [-2.0]])
    assert ties(stack, keep=1.0, weights=[1, 2]).item() == -2.0  # -4 wins; divided by its weight, 2
    assert ties(stack, keep=1.0, weights=[1, 2], weigh="after").item() == 3.0
    assert ties(stack, keep=1.0, weights=[4, 2], weigh="after").item() == 12.0  # divided by the count, 1


def test_keeping_nothing_gives_zero_and_a_small_tensor_keeps_one() -> None:
    stack = torch.tensor([[1.0, 2.0, 3.0]])
    assert not ties(stack, keep=0).any()
    assert torch.equal(ties(stack, keep=0.01), torch.tensor([0.0, 0.0, 3.0]))


def test_a_large_tensor_is_merged_in_pieces_without_a_seam() -> None:
    stack = torch.randn(2, 300_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stack[:, ::3] = 1.5  # ties beyond the cut, spread over every piece
    assert_close(ties(stack, keep=0.3), by_sorting(stack, 0.3), atol=0, rtol=0)


def two_tensors() -> list[TaskVector]:
    """Task vectors of one small and one large tensor."""
    generator = torch.Generator().manual_seed(0)
    return [
        TaskVector.from_tensors(
            {
                "quiet": torch.randn(3, 2, generator=generator),
                "loud": 100 * torch.randn(4, generator=generator),
            },
            None,
        )
        for _ in range(3)
    ]


def test_a_global_cut_is_one_over_the_whole_vector() -> None:
    vectors = two_tensors()
    merged = combine("ties", vectors, keep=0.6, trim="global", merge="sum")
    flat = torch.stack([torch.cat([vector["quiet"].reshape(-1), vector["loud"]]) for vector in vectors])
    expected = ties(flat, keep=0.6, merge="sum")
    assert torch.equal(torch.cat([merged["quiet"].reshape(-1), merged["loud"]]), expected)
    each = combine("ties", vectors, keep=0.6, merge="sum")
    assert not torch.equal(each["quiet"], merged["quiet"])


def test_global_and_tensor_cuts_are_the_same_for_a_single_tensor() -> None:
    stack = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    vectors = [TaskVector.from_tensors({"w": delta}, None) for delta in stack]
    one, whole = (combine("ties", vectors, keep=0.3, trim=where) for where in ("tensor", "global"))
    assert torch.equal(one["w"], whole["w"])
    assert torch.equal(one["w"], ties(stack, keep=0.3))


@pytest.mark.parametrize("keep", [-0.1, 1.1, float("nan"), "much"])
def test_a_fraction_outside_zero_to_one_is_refused(keep: object) -> None:
    with pytest.raises(InputError, match="rule 'ties': keep"):
        RULES["ties"].settings({"keep": keep})


def test_settings_hold_every_option() -> None:
    assert RULES["ties"].settings({"keep": 0.5}) == {
        "keep": 0.5, "trim": "tensor", "elect": "mass", "merge": "mean", "weights": None, "weigh": "before",
    }  # fmt: skip


def test_one_pass_does_for_a_large_piece_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantiles, "_PIECE", 100)
    monkeypatch.setattr(quantiles, "SMALL", 0)
    monkeypatch.setattr(quantiles, "_bracketed", in_one_pass)
    monkeypatch.delattr(quantiles, "_counted")
    stack = torch.randn(3, 5_000, generator=torch.Generator().manual_seed(0)).round(decimals=3)
    for rank in (37, 1_000):
        found = find(entries_of(stack), rank)
        expected = stack.abs().sort(dim=1, descending=True).values[:, rank - 1]
        assert [one.threshold for one in found] == expected.tolist()
