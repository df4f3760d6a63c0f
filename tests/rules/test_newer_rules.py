"""ACTMat, DC-Merge, CART, TATR and Localize-and-Stitch against other ways to their values."""

import numpy as np
import pytest
import scipy.linalg  # type: ignore[import-untyped]
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close

from taskvec.rules import RULES
from taskvec.rules.actmat import actmat
from taskvec.rules.cart import cart
from taskvec.rules.dc_merge import dc_merge
from taskvec.rules.rule import Place
from taskvec.vectors import TaskVector, combine

few = settings(max_examples=25, deadline=None, derandomize=True)
Matrix = NDArray[np.float64]


@st.composite
def stacks(draw: st.DrawFn, tasks: int = 5) -> Tensor:
    """Float64 matrices (task, m, n) of full rank."""
    number, m, n = draw(st.integers(1, tasks)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(number, m, n, generator=generator, dtype=torch.float64)


def near(found: Tensor, expected: Matrix | Tensor, tolerance: float = 1e-8) -> None:
    other = torch.as_tensor(expected)
    assert (found - other).abs().max() <= tolerance * max(1.0, other.abs().max().item())


def orthogonal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    made: Tensor = torch.linalg.qr(torch.randn(*shape, generator=generator, dtype=torch.float64)).Q
    return made


# --- ACTMat


@few
@given(stacks())
def test_actmat_by_least_squares_on_rows_that_stand_for_inputs(stack: Tensor) -> None:
    inputs = np.concatenate([matrix.T for matrix in stack.numpy()], axis=1)
    outputs = np.concatenate([matrix @ matrix.T for matrix in stack.numpy()], axis=1)
    values = np.linalg.svd(inputs, compute_uv=False)
    if values[min(inputs.shape) - 1] > 1e-2 * values[0]:
        near(actmat(stack), np.linalg.lstsq(inputs.T, outputs.T, rcond=None)[0].T, 1e-6)


@pytest.mark.parametrize("cut", [1e-6, 0.05, 0.3, 0.9])
@pytest.mark.parametrize(("tasks", "shape"), [(2, (9, 5)), (3, (4, 7)), (2, (3, 40)), (1, (6, 6))])
def test_actmat_by_a_pseudo_inverse_with_and_without_something_cut(
    tasks: int, shape: tuple[int, int], cut: float
) -> None:
    stack = torch.randn(tasks, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrices, mean = stack.numpy(), stack.numpy().mean(0)
    gram = sum(matrix.T @ matrix for matrix in matrices)
    inverse = np.linalg.pinv(gram, rcond=cut, hermitian=True)
    wanted = sum((matrix - mean) @ matrix.T @ matrix for matrix in matrices)
    near(actmat(stack, cut=cut), mean + wanted @ inverse, 1e-9)


def test_actmat_adds_tasks_that_read_different_inputs() -> None:
    right = orthogonal(9, 9)
    stack = torch.stack([torch.randn(4, 3, dtype=torch.float64) @ right[3 * t : 3 * t + 3] for t in range(3)])
    assert_close(actmat(stack), stack.sum(0))


def test_actmat_counts_large_tasks_more_and_wudi_does_not() -> None:
    stack = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stack[0] *= 100
    assert (actmat(stack) - stack[0]).norm() < 0.01 * stack[0].norm()
    assert (RULES["wudi"](stack) - stack[0]).norm() > 0.1 * stack[0].norm()


def test_actmat_averages_what_is_cut_and_survives_any_size() -> None:
    stack = torch.diag(torch.tensor([1.0, 1e-2, 1e-5], dtype=torch.float64)).repeat(2, 1, 1)
    assert_close(actmat(stack), stack[0])
    assert_close(actmat(stack, cut=1e-3), stack[0])
    for size in (1e-30, 1e30):
        near(actmat(size * stack.float()).double() / size, stack[0], 1e-5)


# --- DC-Merge


def orthonormal(matrix: Matrix) -> Matrix:
    """The polar factor, by a square root."""
    return np.asarray(matrix @ scipy.linalg.pinvh(np.real(scipy.linalg.sqrtm(matrix.T @ matrix))))


def by_loops(stack: Tensor, entries: float) -> Matrix:
    """DC-Merge without torch: bases by eigenvectors and square roots, the election entry by entry."""
    tasks, m, n = stack.shape
    k = min(m, n) // tasks
    lefts, rights = [], []
    for matrix in stack.numpy():
        values, vectors = np.linalg.eigh(matrix @ matrix.T)
        u = vectors[:, np.argsort(-values)[:k]]
        lefts.append(u)
        rights.append(matrix.T @ u / np.linalg.norm(matrix.T @ u, axis=0))
    left, right = (orthonormal(np.concatenate(parts, axis=1)) for parts in (lefts, rights))
    inside = [left.T @ matrix @ right for matrix in stack.numpy()]
    d = tasks * k
    kept = min(d * d, max(1, round(entries * d)))
    for matrix in inside:
        matrix[np.abs(matrix) < np.sort(np.abs(matrix).ravel())[-kept]] = 0
    made = np.zeros((d, d))
    for row in range(d):
        for column in range(d):
            votes = [matrix[row, column] for matrix in inside]
            agree = [vote for vote in votes if vote * (1 if sum(votes) >= 0 else -1) > 0]
            if agree and row // k == column // k:
                made[row, column] = np.mean(agree)
    return np.asarray(left @ made @ right.T)


@few
@given(stacks(4), st.sampled_from([0.3, 0.768, 2.0, 100.0]))
def test_dc_merge_by_eigenvectors_and_loops(stack: Tensor, entries: float) -> None:
    tasks, m, n = stack.shape
    if min(m, n) >= tasks:
        near(dc_merge(stack, entries=entries), by_loops(stack, entries), 1e-5)


def test_dc_merge_of_one_task_keeps_its_leading_components() -> None:
    stack = torch.randn(1, 40, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, v = torch.linalg.svd(stack[0], full_matrices=False)
    assert_close(dc_merge(stack), (u[:, :31] * s[:31]) @ v[:31])  # round(0.768 * 40)
    assert round(0.768 * 768) == 590  # a thousandth of (768, 768)


def test_dc_merge_adds_tasks_that_share_no_direction() -> None:
    left, right = orthogonal(12, 12), orthogonal(9, 9)
    stack = torch.stack([left[:, 3 * t : 3 * t + 3] @ right[3 * t : 3 * t + 3] for t in range(3)])
    assert_close(dc_merge(stack, entries=1), stack.sum(0))


@pytest.mark.parametrize("shape", [(2, 7), (7, 2), (1, 1), (0, 4)])
def test_dc_merge_averages_matrices_too_small_for_so_many_tasks(shape: tuple[int, int]) -> None:
    stack = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dc_merge(stack), stack.mean(0))


def test_dc_merge_smooths_before_and_keeps_the_sum_of_the_singular_values() -> None:
    stack = torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(stack[0])
    for kind, ends in (("average", 1.0), ("linear", 5.0)):
        made = torch.linalg.svdvals(dc_merge(stack, smooth=kind, entries=1))  # type: ignore[arg-type]
        assert_close(made.sum(), values.sum())
        assert_close(made[0], ends * made[-1])


def test_dc_merge_of_low_rank_and_zero_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(3, 20, 2, generator=generator) @ torch.randn(3, 2, 30, generator=generator)
    low[1] = 0
    for kind in ("none", "average", "linear"):
        made = dc_merge(low, smooth=kind, entries=5)
        assert made.isfinite().all() and torch.linalg.matrix_rank(made) <= 4


# --- CART


@few
@given(stacks(), st.sampled_from([0.2, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 2.0]))
def test_cart_by_projections_on_eigenvectors(stack: Tensor, keep: float, strength: float) -> None:
    mean = stack.numpy().mean(0)
    kept = max(1, round(keep * min(mean.shape)))
    expected = mean.copy()
    for matrix in stack.numpy():
        values, vectors = np.linalg.eigh((matrix - mean).T @ (matrix - mean))
        leading = vectors[:, np.argsort(-values)[:kept]]
        expected += strength * (matrix - mean) @ leading @ leading.T
    near(cart(stack, keep=keep, strength=strength), expected, 1e-6)


def test_cart_of_two_tasks_or_with_everything_kept_is_the_mean() -> None:
    stack = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(cart(stack[:2]), stack[:2].mean(0))
    assert_close(cart(stack, keep=1), stack.mean(0))
    assert (cart(stack) - stack.mean(0)).norm() > 0.1


# --- TATR and Localize-and-Stitch


@st.composite
def vectors(draw: st.DrawFn) -> tuple[list[TaskVector], NDArray[np.float64]]:
    """Task vectors of three tensors, and all their entries (task, n), many of them equal."""
    number = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    shapes = {"a": (draw(st.integers(1, 9)), 5), "b": (7,), "c": (2, 3, draw(st.integers(1, 9)))}
    scale = draw(st.sampled_from([0.0, 1.0]))
    made = []
    for _ in range(number):
        coarse = {name: torch.randint(-2, 3, shape, generator=generator) for name, shape in shapes.items()}
        made.append(
            {
                name: value.double() + scale * torch.randn(value.shape, generator=generator).double()
                for name, value in coarse.items()
            }
        )
    flat = torch.stack([torch.cat([value.reshape(-1) for value in one.values()]) for one in made])
    return [TaskVector.from_tensors(one, None) for one in made], flat.numpy()


def flattened(vector: TaskVector) -> Tensor:
    return torch.cat([vector[name].reshape(-1) for name in sorted(vector)])


def trusted(flat: NDArray[np.float64], drop: float) -> NDArray[np.float64]:
    """The sum of (task, n), without what collides most, by all pairs and a sort."""
    tasks = len(flat)
    conflict = sum(
        (np.abs(flat[s]) * np.abs(flat[t]) for s in range(tasks) for t in range(tasks) if s != t),
        np.zeros(flat.shape[1]),
    )
    kept = max(1, round((1 - drop) * len(conflict)))
    bound = np.sort(conflict)[kept - 1] * (1 + 1e-12)
    return np.asarray(np.where(conflict > bound, 0, flat.sum(0)))


@few
@given(vectors(), st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.95]))
def test_tatr_by_all_pairs(given: tuple[list[TaskVector], NDArray[np.float64]], drop: float) -> None:
    made, flat = given
    near(flattened(combine("tatr", made, drop=drop)), trusted(flat, drop))
    split = combine("tatr", made, drop=drop, trim="tensor")
    for name in "abc":
        stack = np.stack([vector[name].reshape(-1).numpy() for vector in made])
        near(split[name].reshape(-1), trusted(stack, drop))


@pytest.mark.parametrize("trim", ["tensor", "global"])
def test_tatr_of_a_large_tensor_drops_the_share_it_says(trim: str) -> None:
    stack = torch.randn(3, 300, 400, generator=torch.Generator().manual_seed(0))
    made = RULES["tatr"](stack, drop=0.03, trim=trim)
    assert int((made == 0).sum()) == 120_000 - round(0.97 * 120_000)
    assert torch.equal(made[made != 0], stack.sum(0)[made != 0])


def stitched(flat: NDArray[np.float64], keep: float) -> NDArray[np.float64]:
    """The mean of what each task of (task, n) keeps, entry by entry."""
    kept = np.zeros_like(flat)
    for row, target in zip(flat, kept, strict=True):
        places = np.argsort(-np.abs(row), kind="stable")[: max(1, round(keep * len(row)))]
        target[places] = row[places]
    return np.array([column[column != 0].mean() if column.any() else 0.0 for column in kept.T])


@few
@given(vectors(), st.sampled_from([0.05, 0.3, 1.0]))
def test_localize_stitch_by_sorting(given: tuple[list[TaskVector], NDArray[np.float64]], keep: float) -> None:
    made, flat = given
    near(flattened(combine("localize_stitch", made, keep=keep)), stitched(flat, keep))
    split = combine("localize_stitch", made, keep=keep, trim="tensor")
    for name in "abc":
        stack = np.stack([vector[name].reshape(-1).numpy() for vector in made])
        near(split[name].reshape(-1), stitched(stack, keep))


def test_localize_stitch_keeps_in_full_what_only_one_task_keeps() -> None:
    stack = torch.tensor([[9.0, 0.1, -8.0, 0.2], [0.3, 7.0, 6.0, 0.1]])
    expected = torch.tensor([9.0, 7.0, -1.0, 0.0])
    assert torch.equal(RULES["localize_stitch"](stack, keep=0.5, _place=Place("w")), expected)


# --- All of them


@pytest.mark.parametrize("name", ["actmat", "dc_merge", "cart", "tatr", "localize_stitch", "svc"])
def test_bfloat16_models_and_more_tasks_than_rows(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"wide": (3, 40), "tall": (40, 3), "bias": (40,), "unchanged": (4, 4)}
    base = {key: torch.randn(shape, generator=generator).bfloat16() for key, shape in shapes.items()}
    models = [
        {
            key: value if key == "unchanged" else value + (torch.rand_like(value.float()) / 9).bfloat16()
            for key, value in base.items()
        }
        for _ in range(7)
    ]
    merged = combine(name, [TaskVector.between(base, model) for model in models])
    assert all(merged[key].isfinite().all() for key in merged)
    assert any(merged[key].norm() > 0 for key in merged)


@pytest.mark.parametrize("size", [1e-30, 1e25, 1e36])
@pytest.mark.parametrize("name", ["actmat", "dc_merge", "cart", "svc", "tsv+svc", "localize_stitch"])
def test_vectors_of_any_size_merge_alike(name: str, size: float) -> None:
    stack = torch.randn(4, 12, 20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    near(RULES[name]((size * stack).float()).double() / size, RULES[name](stack), 1e-3)


@pytest.mark.parametrize("size", [1e-170, 1e150])
def test_cart_of_float64_vectors_of_any_size(size: float) -> None:
    stack = torch.randn(4, 12, 20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    near(cart(size * stack) / size, cart(stack), 1e-6)
