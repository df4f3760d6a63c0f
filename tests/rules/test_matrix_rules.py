"""TSV-M, Iso-C, Iso-CTS and WUDI against other ways to their values."""

import numpy as np
import pytest
import scipy.linalg  # type: ignore[import-untyped]
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close

from taskvec.errors import InputError
from taskvec.rules import RULES
from taskvec.rules.iso import iso_c, iso_cts
from taskvec.rules.rule import Place
from taskvec.rules.tsv import tsv
from taskvec.rules.wudi import wudi

few = settings(max_examples=25, deadline=None, derandomize=True)
Matrix = NDArray[np.float64]


@st.composite
def stacks(draw: st.DrawFn, tasks: int = 4) -> Tensor:
    """Float64 matrices (task, m, n) of full rank."""
    number, m, n = draw(st.integers(1, tasks)), draw(st.integers(1, 8)), draw(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(number, m, n, generator=generator, dtype=torch.float64)


def near(found: Tensor, expected: Matrix | Tensor, tolerance: float = 1e-8) -> None:
    other = torch.as_tensor(expected)
    assert (found - other).abs().max() <= tolerance * max(1.0, other.abs().max().item())


def orthonormal(matrix: Matrix) -> Matrix:
    """The polar factor, by a square root and not by an SVD; of a wide matrix by its transpose."""
    if matrix.shape[0] < matrix.shape[1]:
        return orthonormal(matrix.T).T
    return np.asarray(matrix @ scipy.linalg.pinvh(np.real(scipy.linalg.sqrtm(matrix.T @ matrix))))


def leading(matrix: Matrix, count: int) -> tuple[Matrix, Matrix, Matrix]:
    """The leading left vectors, values and right vectors, by the eigenvectors of M M^T."""
    values, vectors = np.linalg.eigh(matrix @ matrix.T)
    u = vectors[:, np.argsort(-values)[:count]]
    s = np.linalg.norm(matrix.T @ u, axis=0)
    return u, s, (matrix.T @ u / s).T


@few
@given(stacks(3))
def test_tsv_by_eigenvectors_and_square_roots(stack: Tensor) -> None:
    tasks, m, n = stack.shape
    k = max(1, min(m, n) // tasks)
    parts = [leading(matrix, k) for matrix in stack.numpy()]
    left = np.concatenate([u for u, _, _ in parts], axis=1)
    right = np.concatenate([v for _, _, v in parts], axis=0)
    if np.linalg.cond(left) < 1e3 and np.linalg.cond(right) < 1e3:
        values = np.diag(np.concatenate([s for _, s, _ in parts]))
        near(tsv(stack), orthonormal(left) @ values @ orthonormal(right), 1e-7)


def test_tsv_keeps_the_nuclear_norm_of_what_it_keeps() -> None:
    stack = torch.randn(3, 12, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = sum(torch.linalg.svdvals(delta)[:3].sum() for delta in stack)
    assert_close(torch.linalg.svdvals(tsv(stack)).sum(), kept)


def test_tsv_and_wudi_add_tasks_that_share_no_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64)).Q
    stack = torch.stack([left[:, 3 * t : 3 * t + 2] @ right[3 * t : 3 * t + 2] for t in range(3)])
    assert_close(tsv(stack), stack.sum(0))  # rank 2 of 3 allowed: null directions take no part
    assert_close(wudi(stack, ridge=0), stack.sum(0))


def test_more_tasks_than_directions_keep_one_each() -> None:
    stack = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert tsv(stack).isfinite().all() and tsv(stack).norm() > 0
    assert iso_cts(stack).isfinite().all()


@few
@given(stacks())
def test_iso_c_by_the_polar_factor(stack: Tensor) -> None:
    total = stack.sum(0).numpy()
    if np.linalg.cond(total) < 1e4:
        expected = np.linalg.norm(total, "nuc") / min(total.shape) * orthonormal(total)
        near(iso_c(stack), expected, 1e-6)
        near(iso_c(stack, rank="full"), expected, 1e-6)


@few
@given(stacks())
def test_iso_c_has_a_flat_spectrum_and_the_nuclear_norm_of_the_sum(stack: Tensor) -> None:
    values = torch.linalg.svdvals(iso_c(stack))
    assert_close(values, values.mean().expand_as(values))
    assert_close(values.sum(), torch.linalg.svdvals(stack.sum(0)).sum())


def test_iso_c_turns_with_the_basis_also_without_full_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q for n in (6, 5)
    )
    stack = torch.randn(2, 6, 2, generator=generator, dtype=torch.float64) @ torch.randn(
        2, 5, generator=generator, dtype=torch.float64
    )
    for rule in (iso_c, iso_cts, tsv):
        assert_close(rule(left @ stack @ right), left @ rule(stack) @ right)
    values = torch.linalg.svdvals(iso_c(stack))
    assert_close(values[:2], torch.linalg.svdvals(stack.sum(0))[:2].mean().expand(2))
    assert values[2:].max() < 1e-9
    full = torch.linalg.svdvals(iso_c(stack, rank="full"))
    assert_close(full, full[0].expand(5))
    assert_close(full.sum(), values.sum())


@few
@example(torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0.0)
@given(stacks(3), st.floats(0, 1))
def test_iso_cts_by_eigenvectors_and_square_roots(stack: Tensor, common: float) -> None:
    tasks, m, n = stack.shape
    r = min(m, n)
    own = min(round((r - int(common * r)) / tasks), r // tasks)
    shared = r - own * tasks
    total = stack.sum(0).numpy()
    if np.linalg.cond(total) > 1e3:
        return
    u, s, v = leading(total, shared)
    parts = [leading(matrix - u @ u.T @ matrix, own) for matrix in stack.numpy()]
    left = np.concatenate([*(part[0] for part in parts), u], axis=1)
    right = np.concatenate([*(part[2] for part in parts), v], axis=0)
    values = np.concatenate([*(part[1] for part in parts), s])
    if min(np.linalg.svd(left)[1].min(), np.linalg.svd(right)[1].min(), values.min()) > 1e-2:
        near(iso_cts(stack, common=common), values.mean() * orthonormal(left) @ orthonormal(right), 1e-6)


@few
@given(stacks())
def test_iso_cts_with_everything_common_is_iso_c(stack: Tensor) -> None:
    near(iso_cts(stack, common=1), iso_c(stack))
    near(iso_cts(stack[:1], common=0.5), iso_c(stack[:1]), 1e-6)


def interference(merged: Tensor, stack: Tensor) -> Tensor:
    losses = [((merged - d) @ d.T).square().sum() / d.square().sum() for d in stack]
    return torch.stack(losses).sum()


@few
@given(stacks())
def test_wudi_by_least_squares(stack: Tensor) -> None:
    # (M - D_t) D_t^T / |D_t| = 0 for all t is one overdetermined system in M.
    scaled = [d.numpy() / np.linalg.norm(d.numpy()) for d in stack]
    inputs = np.concatenate([d.T for d in scaled], axis=1)
    wanted = np.concatenate([matrix.numpy() @ d.T for matrix, d in zip(stack, scaled, strict=True)], axis=1)
    expected = np.linalg.lstsq(inputs.T, wanted.T, rcond=1e-9)[0].T
    if np.linalg.svd(inputs)[1].min() > 1e-3:
        near(wudi(stack, ridge=0), expected, 1e-6)


def test_wudi_has_no_gradient_left_and_less_interference_than_the_sum() -> None:
    stack = torch.randn(3, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for ridge in (0.0, 0.1):
        merged = wudi(stack, ridge=ridge).requires_grad_()
        loss = interference(merged, stack)
        read = torch.cat([delta / delta.norm() for delta in stack])
        penalty = ridge * torch.linalg.matrix_norm(read, 2) ** 2 * (merged - stack.mean(0)).square().sum()
        [gradient] = torch.autograd.grad(loss + penalty, merged)
        assert gradient.abs().max() < 1e-10
        assert loss < interference(stack.sum(0), stack)


def test_a_ridge_keeps_wudi_small_where_all_rows_are_as_many_as_the_inputs() -> None:
    # Four times 16 rows for 64 inputs: every task can be satisfied exactly.
    generator = torch.Generator().manual_seed(0)
    stack = torch.randn(4, 16, 64, generator=generator, dtype=torch.float64)
    stack[3] = torch.randn(16, 48, generator=generator, dtype=torch.float64) @ stack[:3].reshape(48, 64)
    stack[3] += 1e-5 * torch.randn(16, 64, generator=generator, dtype=torch.float64)
    bare, drawn = wudi(stack, ridge=0), wudi(stack)
    assert bare.norm() > 1000 * stack.sum(0).norm()
    assert drawn.norm() < stack.sum(0).norm()
    assert interference(drawn, stack) < interference(stack.sum(0), stack)


@pytest.mark.parametrize("rule", [tsv, iso_c, iso_cts, wudi])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 2), (2, 2, 3, 2)])
def test_what_is_no_matrix_is_averaged(rule: type, shape: tuple[int, ...]) -> None:
    stack = torch.randn(3, *shape, dtype=torch.float64)
    assert_close(rule(stack), stack.mean(0))


@pytest.mark.parametrize("name", ["tsv", "iso_c", "iso_cts", "wudi"])
def test_matrices_can_be_left_out_by_name(name: str) -> None:
    stack = torch.randn(2, 4, 3, dtype=torch.float64)
    rule = RULES[name]
    assert_close(rule(stack, exclude="embed", _place=Place("embed.weight")), stack.mean(0))
    assert_close(rule(stack, exclude="embed", _place=Place("head.weight")), rule(stack))
    with pytest.raises(InputError, match=f"rule '{name}': exclude is '\\['"):
        rule.settings({"exclude": "["})


@pytest.mark.parametrize("rule", [tsv, iso_c, iso_cts, wudi])
def test_a_zero_task_brings_no_arbitrary_directions(rule: type) -> None:
    stack = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stack[1] = 0
    assert_close(rule(stack.flip(0)), rule(stack))
    assert rule(stack).isfinite().all()
