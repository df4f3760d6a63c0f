"""Breadcrumbs, MagMax, consensus, PCB, MetaGPT, SCE, NearSwap, Arcee Fusion and passthrough against numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax  # type: ignore[import-untyped]
from torch import Tensor
from torch.testing import assert_close

from rules.stacks import stacks
from taskvec.errors import InputError
from taskvec.rules import RULES, quantiles
from taskvec.rules.arcee_fusion import ARCEE_FUSION as arcee_fusion
from taskvec.rules.breadcrumbs import BREADCRUMBS as breadcrumbs
from taskvec.rules.consensus import consensus
from taskvec.rules.magmax import magmax
from taskvec.rules.magnitude import cuts_of, share, trim
from taskvec.rules.metagpt import METAGPT as metagpt
from taskvec.rules.nearswap import nearswap
from taskvec.rules.passthrough import passthrough
from taskvec.rules.pcb import PCB as pcb
from taskvec.rules.quantiles import Entries, kth_largest
from taskvec.rules.rule import Stacks
from taskvec.rules.sce import SCE as sce
from taskvec.vectors import TaskVector, combine

few = settings(max_examples=30, deadline=None, derandomize=True)
Flat = NDArray[np.float64]


def vectors(*stacks: Tensor) -> list[TaskVector]:
    """One vector a task, of tensors a, b, …"""
    names = "abcdef"
    return [
        TaskVector.from_tensors(dict(zip(names, deltas, strict=False)), None)
        for deltas in zip(*stacks, strict=True)
    ]


@few
@given(stacks(), st.sampled_from([torch.float32, torch.float64]), st.integers(1, 30))
def test_the_kth_largest_value_is_that_of_sorting(stack: Tensor, dtype: torch.dtype, rank: int) -> None:
    stack = stack.to(dtype)
    rank = min(rank, stack.shape[1])
    expected = stack.sort(descending=True).values[:, rank - 1]
    halves = [stack[:, :3], stack[:, 3:]]
    for small in (0, quantiles.SMALL):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(quantiles, "SMALL", small)
            for sample in (None, stack, stack[:, :2]):
                found = kth_largest(Entries(lambda: halves, stack.shape[1], sample), rank)
                assert torch.equal(found, expected)


@few
@given(stacks(), st.floats(0.01, 1), st.floats(0, 0.5))
def test_breadcrumbs_by_a_stable_sort(stack: Tensor, density: float, gamma: float) -> None:
    n = stack.shape[1]
    kept = min(n, max(1, round(density * n)))
    top = min(int(gamma * n), n - kept)
    expected = np.zeros_like(stack.numpy())
    for row, out in zip(stack.numpy(), expected, strict=True):
        middle = np.argsort(-np.abs(row), kind="stable")[top : top + kept]
        out[middle] = row[middle]
    assert torch.equal(breadcrumbs(stack, density=density, gamma=gamma), torch.from_numpy(expected))


def test_breadcrumbs_without_outliers_trim_by_magnitude_and_never_empty_a_tensor() -> None:
    stack = torch.randn(2, 50, dtype=torch.float64)
    cuts = cuts_of(Stacks.single(stack), "", share(50, 0.3))
    trimmed = torch.stack([trim(delta, cut) for delta, cut in zip(stack, cuts, strict=True)])
    assert torch.equal(breadcrumbs(stack, density=0.3, gamma=0), trimmed)
    assert torch.equal(breadcrumbs(stack, density=1, gamma=0), stack)
    small = torch.tensor([[5.0], [-1.0]])
    assert torch.equal(breadcrumbs(small, density=0.1, gamma=0.9), small)


@few
@given(stacks())
def test_magmax_by_argmax(stack: Tensor) -> None:
    flat = stack.numpy()
    last = len(flat) - 1 - np.abs(flat[::-1]).argmax(0)  # of equal magnitudes the later task
    expected = np.take_along_axis(flat, last[None], 0)[0]
    assert torch.equal(magmax(stack), torch.from_numpy(expected))


@few
@given(stacks(), st.integers(0, 5), st.floats(0, 2))
def test_consensus_by_counting(stack: Tensor, k: int, lam: float) -> None:
    expected = []
    for column in stack.numpy().T:
        masks = [abs(value) > lam * abs(column.sum() - value) for value in column]
        expected.append(column.sum() if sum(masks) >= k else 0.0)
    assert_close(
        consensus(stack, k=k, lam=lam), torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0
    )
    assert_close(consensus(stack, k=k, lam=[lam] * len(stack)), consensus(stack, k=k, lam=lam))


@few
@given(stacks())
def test_consensus_at_its_ends(stack: Tensor) -> None:
    assert torch.equal(consensus(stack, k=0), stack.sum(0))
    assert not consensus(stack, k=len(stack) + 1).any()
    assert torch.equal(consensus(stack[:1], k=1), stack[0])
    assert not consensus(torch.ones(2, 3), k=1, lam=1).any()  # a task needs more than an equal share
    lone = consensus(stack, k=1, lam=0)
    assert torch.equal(lone, stack.sum(0) * (stack != 0).any(0))


def balanced(flat: Flat, ratio: float) -> Flat:
    """The authors' formulas, by sorting; quantiles are the nearest order statistics."""
    tasks, n = flat.shape

    def minmax(x: Flat) -> Flat:
        spread = x.max(1, keepdims=True) - x.min(1, keepdims=True)
        constant = (x > 0).astype(float)
        return np.where(spread > 0, (x - x.min(1, keepdims=True)) / np.where(spread > 0, spread, 1), constant)

    size = np.sort(np.abs(flat), 1)
    tail = round(1e-4 * (n - 1))
    a = np.clip(np.abs(flat), size[:, [tail]], size[:, [n - 1 - tail]])
    beta = np.exp(tasks * minmax(a) ** 2) * np.tanh(flat * flat.sum(0))
    kept = min(n, max(1, round(ratio * n)))
    s = minmax(np.maximum(beta, np.sort(beta, 1)[:, [max(0, n - kept - 1)]]))
    return np.asarray((np.sign(flat) * a * s).sum(0) / np.maximum(s.sum(0), 1e-12))


@few
@given(stacks(), st.floats(0.05, 1))
def test_pcb_by_sorting(stack: Tensor, ratio: float) -> None:
    if all(len(np.unique(np.abs(row))) > 1 for row in stack.numpy()):
        assert_close(
            pcb(stack, ratio=ratio), torch.from_numpy(balanced(stack.numpy(), ratio)), atol=1e-7, rtol=1e-6
        )


def test_pcb_clamps_the_tails_of_a_large_vector() -> None:
    stack = torch.randn(2, 30_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(pcb(stack), torch.from_numpy(balanced(stack.numpy(), 0.05)))


def test_pcb_of_one_task_keeps_its_top_entries() -> None:
    stack = torch.randn(1, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    merged = pcb(stack, ratio=0.1)
    top = stack[0].abs().argsort(descending=True)[:40]
    assert_close(merged[top], stack[0][top])
    assert int(merged.count_nonzero()) == 40


def test_pcb_competes_over_the_whole_vector_or_in_each_tensor() -> None:
    generator = torch.Generator().manual_seed(0)
    quiet, loud = (c * torch.randn(3, 40, generator=generator) for c in (0.1, 5))
    whole = combine("pcb", vectors(quiet, loud), ratio=0.2)
    joined = pcb(torch.cat([quiet, loud], dim=1), ratio=0.2)
    assert_close(torch.cat([whole["a"], whole["b"]]), joined)
    each = combine("pcb", vectors(quiet, loud), ratio=0.2, trim="tensor")
    assert_close(each["a"], pcb(quiet, ratio=0.2))
    assert not torch.allclose(each["a"], whole["a"])
    assert_close(combine("pcb", vectors(quiet), ratio=0.2)["a"], pcb(quiet, ratio=0.2))


def test_pcb_stays_finite_for_many_tasks_and_equal_magnitudes() -> None:
    assert pcb(torch.randn(100, 5)).isfinite().all()
    assert_close(pcb(torch.full((2, 5), 0.5)), torch.full((5,), 0.5))


def test_metagpt_weighs_by_the_norms_of_whole_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 4, 2, generator=generator), torch.randn(3, 5, generator=generator)
    squares = np.array(
        [np.linalg.norm(np.r_[x.numpy().ravel(), y.numpy()]) ** 2 for x, y in zip(a, b, strict=True)]
    )
    share = torch.from_numpy(squares / squares.sum()).float()
    merged = combine("metagpt", vectors(a, b))
    assert_close(merged["a"], torch.tensordot(share, a, dims=1))
    assert_close(merged["b"], torch.tensordot(share, b, dims=1))
    assert_close(metagpt(a[:1]), a[0])
    equal = torch.nn.functional.normalize(b, dim=1)
    assert_close(metagpt(equal), equal.mean(0))


def test_metagpt_minimises_its_loss_for_orthogonal_vectors() -> None:
    stack = torch.linalg.qr(torch.randn(5, 3, dtype=torch.float64)).Q.T * torch.tensor([[1.0], [2], [0.5]])
    shares = torch.linalg.lstsq(stack.T, metagpt(stack)[:, None]).solution[:, 0].requires_grad_()
    merged = shares @ stack
    loss = sum(tau.square().sum() * (merged - tau).square().sum() for tau in stack)
    [gradient] = torch.autograd.grad(torch.as_tensor(loss), shares)
    assert gradient.abs().max() < 1e-9


@few
@given(stacks(), st.floats(0.05, 1))
def test_sce_by_loops(stack: Tensor, select_topk: float) -> None:
    flat = stack.numpy().copy()
    variance = flat.var(0)
    if select_topk < 1 and variance.any():
        differing = int(np.count_nonzero(variance))
        count = min(differing, max(1, round(select_topk * differing)))
        ranked = np.sort(variance)[::-1]
        if count < len(ranked) and np.isclose(ranked[count - 1], ranked[count]):
            return
        flat[:, variance < ranked[count - 1]] = 0
    energy = (flat**2).sum(1)
    weights = energy / energy.sum() if energy.sum() else energy
    expected = []
    for column in flat.T:
        sign = 1.0 if column.sum() >= 0 else -1.0
        agree = [(w, v) for w, v in zip(weights, column, strict=True) if np.sign(v) == sign]
        total = sum(w for w, _ in agree)
        expected.append(sum(w * v for w, v in agree) / total if total else 0.0)
    if all(abs(total) > 1e-9 or not column.any() for total, column in zip(flat.sum(0), flat.T, strict=True)):
        assert_close(sce(stack, select_topk=select_topk), torch.tensor(expected, dtype=torch.float64))


def test_sce_elects_plus_where_tasks_balance() -> None:
    assert sce(torch.tensor([[1.0], [-1.0]])).item() == 1.0


def test_nearswap_moves_by_t_at_most() -> None:
    base, tuned = torch.randn(2, 3, 20, dtype=torch.float64)
    share = np.minimum(1, 0.3 / np.abs((tuned - base).numpy()))
    expected = share * tuned.numpy() + (1 - share) * base.numpy()
    assert_close(base + nearswap((tuned - base)[None], t=0.3)[0], torch.from_numpy(expected))


@pytest.mark.parametrize("shape", [(), (9,), (6, 7), (3, 4, 5)])
def test_arcee_fusion_by_entropies(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    base, delta = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    after, before = (softmax(x.numpy(), axis=-1 if shape else None) + 1e-8 for x in (base + delta, base))
    divergence = rel_entr(after, before)
    divergence = divergence.sum(-1, keepdims=True) if shape else divergence
    importance = np.abs(delta.numpy()) * np.maximum(divergence, 0)
    first, median, third = np.quantile(importance, [0.25, 0.5, 0.75], method="lower")
    expected = np.where(importance >= median + 1.5 * (third - first), delta.numpy(), 0)
    assert_close(arcee_fusion(delta[None], _base=base)[0], torch.from_numpy(np.asarray(expected)))


def test_passthrough_scales_weights_and_not_the_vector() -> None:
    base, delta = torch.randn(2, 3, 4, dtype=torch.float64)
    assert_close(base + passthrough(delta[None], scale=0.5, _base=base), 0.5 * (base + delta))
    assert torch.equal(passthrough(delta[None]), delta)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("breadcrumbs", {"density": 0}, "density is 0"),
        ("breadcrumbs", {"density": 1}, "density 1 and gamma 0.01 add up to more than 1"),
        ("breadcrumbs", {"gamma": 1}, "gamma is 1"),
        ("consensus", {"lam": -1}, "lam is -1: input should be greater"),
        ("consensus", {"lam": [0.4, -1]}, "lam.1 is -1: input should be greater"),
        ("consensus", {"k": 1.5}, "k is 1.5"),
        ("pcb", {"ratio": 0}, "ratio is 0"),
        ("sce", {"select_topk": 0}, "select_topk is 0"),
        ("nearswap", {"t": 0}, "t is 0"),
        ("ties", {"keep": 0}, "keep is 0"),
        ("passthrough", {"scale": float("nan")}, "scale is nan"),
    ],
)
def test_what_would_empty_a_tensor_or_mean_nothing_is_refused(
    name: str, params: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=f"rule '{name}': {message}"):
        RULES[name].settings(params)


def test_a_consensus_that_cannot_be_is_refused_before_anything_is_read() -> None:
    two = vectors(torch.ones(2, 3))
    with pytest.raises(InputError, match="k is 3, expected at most 2, the number of task vectors"):
        combine("consensus", two, k=3)
    with pytest.raises(InputError, match="lam: 1 values, expected 2"):
        combine("consensus", two, lam=[0.4])
