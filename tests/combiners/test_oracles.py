"""Combiners against independent computations on the vectors themselves, and against TorchJD."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls  # type: ignore[import-untyped]
from torch import Tensor

from taskvec.combiners import COMBINERS, combiner_called
from taskvec.combiners.conflicts import conflicts
from taskvec.combiners.pcgrad import orders, projected

Matrix = NDArray[np.float64]


def rows(tasks: int, size: int, seed: int, shared: float = 0.0) -> Matrix:
    """Vectors of sizes 1 to 5, with so much in common."""
    rng = np.random.default_rng(seed)
    lengths = rng.uniform(1, 5, (tasks, 1))
    return rng.normal(size=(tasks, size)) * lengths + shared * rng.normal(size=size)


SHAPES = [(1, 4), (2, 3), (3, 2), (4, 4), (5, 40), (8, 3), (12, 30)]
cases = pytest.mark.parametrize(
    "vectors",
    [rows(*shape, seed, shared) for shape in SHAPES for seed, shared in ((0, 0), (1, 2), (2, 0.5))],
    ids=lambda vectors: "x".join(map(str, vectors.shape)),
)


def weights(name: str, vectors: Matrix, seed: int = 0, **params: Any) -> Matrix:
    gram = torch.from_numpy(vectors @ vectors.T)
    return combiner_called(name, **params).chosen(gram, seed).numpy()


@cases
def test_pcgrad_is_that_on_the_vectors(vectors: Matrix) -> None:
    order = orders(len(vectors), 7)
    total = np.zeros(vectors.shape[1])
    for i, others in enumerate(order):
        left = vectors[i].copy()
        for j in others:
            if left @ vectors[j] < 0:
                left -= left @ vectors[j] / (vectors[j] @ vectors[j]) * vectors[j]
        total += left
    np.testing.assert_allclose(weights("pcgrad", vectors, 7) @ vectors, total, rtol=0, atol=1e-12 * 40)


def test_pcgrad_without_conflicts_is_the_sum_to_the_bit() -> None:
    vectors = np.abs(rows(5, 8, 0))
    assert weights("pcgrad", vectors).tolist() == [1] * 5
    assert weights("wpcgrad", vectors, priorities=[1, 2, 3, 4, 5]).tolist() == [1] * 5


def test_pcgrad_leaves_no_conflict_of_two() -> None:
    for seed in range(20):
        vectors = rows(2, 3, seed)
        assert (vectors @ (weights("pcgrad", vectors) @ vectors) >= -1e-12).all()


def test_pcgrad_follows_its_tasks_when_the_orders_do() -> None:
    vectors, order = rows(6, 4, 0), orders(6, 3)
    turned = np.array([4, 0, 5, 2, 1, 3])
    places = np.argsort(turned)
    there = projected(vectors[turned] @ vectors[turned].T, places[order[turned]])
    np.testing.assert_allclose(there, projected(vectors @ vectors.T, order)[turned], rtol=1e-12)


def test_orders_hold_every_other_task_once_and_are_spread() -> None:
    firsts = [orders(4, seed)[0, 0] for seed in range(300)]
    assert [sorted(others) for others in orders(4, 0)] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert all(70 < firsts.count(other) < 130 for other in (1, 2, 3))


OPPOSED = np.array([[1.0, 0.0], [-1.0, 1.0]])


@pytest.mark.parametrize(("priorities", "share"), [([1, 1], 0.5), ([3, 1], 0.25), ([1, 0], 0), ([0, 2], 1)])
def test_priorities_are_the_chance_of_staying(priorities: list[float], share: float) -> None:
    projected_first = np.array([1.0, 1.5])  # v_0 = g_0 + g_1 / 2
    projected_second = np.array([2.0, 1.0])  # v_1 = g_1 + g_0
    drawn = [weights("wpcgrad", OPPOSED, seed, priorities=priorities) for seed in range(400)]
    counted = np.mean([np.allclose(found, projected_first) for found in drawn])
    assert abs(counted - share) < 0.08
    assert all(np.allclose(w, projected_first) or np.allclose(w, projected_second) for w in drawn)
    expected = weights("wpcgrad", OPPOSED, priorities=priorities, choice="expected")
    np.testing.assert_allclose(expected, share * projected_first + (1 - share) * projected_second)


def test_equal_priorities_are_half_of_what_pcgrad_takes_from_two() -> None:
    vectors = rows(2, 3, 0)
    assert vectors[0] @ vectors[1] < 0
    halfway = (weights("pcgrad", vectors) + 1) / 2
    np.testing.assert_allclose(weights("wpcgrad", vectors, choice="expected"), halfway)


@cases
def test_mgda_is_the_shortest_mean(vectors: Matrix) -> None:
    chosen = weights("mgda", vectors)
    assert (chosen >= 0).all() and chosen.sum() == pytest.approx(1)
    along = vectors @ (chosen @ vectors)
    scale = (vectors**2).sum(1).max()
    assert (along >= chosen @ along - 1e-12 * scale).all()  # what makes a point the nearest of a convex set


def test_mgda_of_two_is_known() -> None:
    for seed in range(10):
        one, other = rows(2, 3, seed)
        share = np.clip(((other - one) @ other) / ((one - other) @ (one - other)), 0, 1)
        np.testing.assert_allclose(weights("mgda", np.stack([one, other])), [share, 1 - share], atol=1e-12)


def into_cone(vectors: Matrix, point: Matrix) -> Matrix:
    """The nearest point that conflicts with none of the vectors, in their own space."""
    added: Matrix = nnls(vectors.T, -point)[0]
    return point + vectors.T @ added


@cases
def test_upgrad_averages_projections(vectors: Matrix) -> None:
    expected = np.mean([into_cone(vectors, each) for each in vectors], 0)
    np.testing.assert_allclose(weights("upgrad", vectors) @ vectors, expected, rtol=0, atol=1e-9)


@cases
def test_dualproj_projects_the_mean(vectors: Matrix) -> None:
    expected = into_cone(vectors, vectors.mean(0))
    np.testing.assert_allclose(weights("dualproj", vectors) @ vectors, expected, rtol=0, atol=1e-9)


@cases
@pytest.mark.parametrize("c", [0.0, 0.1, 0.5, 0.9])
def test_cagrad_serves_the_worst_off_within_its_radius(vectors: Matrix, c: float) -> None:
    mean = vectors.mean(0)
    chosen = weights("cagrad", vectors, c=c)
    step, extra = chosen @ vectors, chosen - 1 / len(vectors)
    distance = c * np.linalg.norm(mean)
    if extra.any():
        assert np.linalg.norm(step - mean) == pytest.approx(distance, rel=1e-9)
        # The dual solution has weights on the worst-off alone: what makes both optimal.
        gains = vectors @ step
        assert (extra >= 0).all()
        assert (gains[extra > 1e-9 * extra.max()] <= gains.min() + 1e-7 * np.abs(gains).max()).all()
    else:
        assert c == 0 or np.linalg.norm(weights("mgda", vectors) @ vectors) < 1e-5 * distance


@cases
def test_nash_gains_are_the_inverse_of_the_weights(vectors: Matrix) -> None:
    if len(vectors) > vectors.shape[1]:
        return  # vectors that nearly cancel bargain for ever longer steps
    chosen = weights("nash_mtl", vectors, max_norm=1e9)
    np.testing.assert_allclose(vectors @ (chosen @ vectors), 1 / chosen, rtol=1e-7)
    step = chosen @ vectors
    assert np.linalg.norm(step) == pytest.approx(len(vectors) ** 0.5)
    np.testing.assert_allclose(weights("nash_mtl", vectors) @ vectors, step / np.linalg.norm(step), rtol=1e-7)
    assert np.linalg.norm(weights("nash_mtl", vectors, max_norm=0.2) @ vectors) == pytest.approx(0.2)


def test_nash_of_orthogonal_vectors_takes_unit_vectors() -> None:
    found = weights("nash_mtl", np.diag([1.0, 0.1, 20]), max_norm=10)
    np.testing.assert_allclose(found, [1, 10, 0.05])


@cases
@pytest.mark.parametrize("scale", ["min", "median", "mean"])
def test_aligned_mtl_is_the_mean_of_orthogonal_vectors(vectors: Matrix, scale: str) -> None:
    left, values, right = np.linalg.svd(vectors, full_matrices=False)
    squares = np.sort(values**2)
    size = {"min": squares[0], "median": squares[(len(squares) - 1) // 2], "mean": squares.mean()}[scale]
    expected = size**0.5 * (left @ right).mean(0)
    np.testing.assert_allclose(weights("aligned_mtl", vectors, scale=scale) @ vectors, expected, rtol=1e-7)


@cases
def test_imtl_g_is_impartial(vectors: Matrix) -> None:
    chosen = weights("imtl_g", vectors)
    assert chosen.sum() == pytest.approx(1)
    if len(vectors) <= vectors.shape[1]:
        projections = vectors @ (chosen @ vectors) / np.linalg.norm(vectors, axis=1)
        np.testing.assert_allclose(projections, projections[0], rtol=1e-7)


@cases
def test_config_has_equal_cosines_and_the_length_of_all_projections(vectors: Matrix) -> None:
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    best = np.linalg.pinv(units) @ np.ones(len(vectors))
    best /= np.linalg.norm(best)
    np.testing.assert_allclose(weights("config", vectors) @ vectors, (vectors @ best).sum() * best, rtol=1e-6)


def test_cosines_weigh_auxiliary_tasks() -> None:
    vectors = np.array([[2.0, 0], [0, 1], [-1, 0], [3, 0], [1, 1], [0, 0]])
    np.testing.assert_allclose(weights("cosine", vectors), [1, 0, 0, 1, 0.5**0.5, 0])
    np.testing.assert_allclose(weights("cosine", vectors, target=1), [0, 1, 0, 0, 0.5**0.5, 0])
    np.testing.assert_allclose(weights("cosine", vectors, target=5), [0, 0, 0, 0, 0, 1])


def test_graddrop_draws_signs_by_what_speaks_for_them() -> None:
    generator = torch.Generator().manual_seed(0)
    stack = torch.tensor([[3.0, -1, 2, 0, 1], [-1, -2, 5, 0, -1]])
    uniform = torch.rand(4000, 5, generator=generator, dtype=torch.float64)
    made = COMBINERS["graddrop"].merge(stack[:, None].expand(-1, 4000, -1), uniform)
    assert set(made[:, 0].tolist()) == {3, -1} and set(made[:, 4].tolist()) == {1, -1}
    assert torch.equal(made[:, 1:4], torch.tensor([-3.0, 7, 0]).expand(4000, 3))
    assert made[:, 0].eq(3).double().mean() == pytest.approx(0.75, abs=0.03)
    assert made[:, 4].eq(1).double().mean() == pytest.approx(0.5, abs=0.03)


# TorchJD, where it is installed. Its CAGrad stops at the solver's tolerance of 1e-8, 1e-4 in the weights.
THEIRS: dict[str, tuple[str, dict[str, Any], dict[str, Any], float]] = {
    "mean": ("MeanWeighting", {}, {}, 1e-12),
    "sum": ("SumWeighting", {}, {}, 1e-12),
    "upgrad": ("UPGradWeighting", {}, {"ridge": 1e-4}, 1e-7),
    "dualproj": ("DualProjWeighting", {}, {"ridge": 1e-4}, 1e-7),
    "cagrad": ("CAGradWeighting", {"c": 0.4}, {"c": 0.4}, 2e-3),
    "aligned_mtl": ("AlignedMTLWeighting", {"scale_mode": "median"}, {"scale": "median"}, 1e-7),
    "imtl_g": ("IMTLGWeighting", {}, {}, 1e-7),
}


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("shape", [(2, 3), (4, 4), (5, 40), (8, 100)])
def test_weights_agree_with_torchjd(name: str, shape: tuple[int, int]) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    weighting, given, ours, tolerance = THEIRS[name]
    try:
        theirs = getattr(aggregation, weighting)(**given)
    except ImportError as error:
        pytest.skip(str(error))
    for seed in range(3):
        vectors = rows(*shape, seed, shared=0.5)
        expected = theirs(torch.from_numpy(vectors @ vectors.T)).numpy()
        np.testing.assert_allclose(weights(name, vectors, **ours), expected, atol=tolerance, rtol=tolerance)


def test_pcgrad_of_two_and_config_agree_with_torchjd() -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    for seed in range(5):
        pair, several = rows(2, 3, seed), rows(4, 9, seed)
        theirs = aggregation.PCGradWeighting()(torch.from_numpy(pair @ pair.T)).numpy()
        np.testing.assert_allclose(weights("pcgrad", pair), theirs, atol=1e-12)
        step = aggregation.ConFIG()(torch.from_numpy(several)).numpy()
        np.testing.assert_allclose(weights("config", several) @ several, step, atol=1e-9)


def test_a_weighting_of_torchjd_is_a_combiner() -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    vectors = rows(3, 5, 0)
    gram = torch.from_numpy(vectors @ vectors.T)
    combiner = combiner_called(aggregation.PCGradWeighting())
    assert combiner.name == "PCGradWeighting"
    assert combiner.chosen(gram).shape == (3,) and combiner.chosen(gram).dtype == torch.float64


def as_weighting() -> Callable[[Tensor], Tensor]:
    """A module from Gram matrices to weights: the interface of TorchJD's weightings."""

    class ByNorm(torch.nn.Module):
        def forward(self, gram: Tensor) -> Tensor:
            return 1 / gram.diagonal().float().sqrt()

    return ByNorm()


def test_a_module_is_a_combiner() -> None:
    combiner = combiner_called(as_weighting())
    assert combiner.name == "ByNorm"
    assert combiner.chosen(torch.diag(torch.tensor([1.0, 4]))).tolist() == [1, 0.5]


def test_pairs_that_conflict_are_counted() -> None:
    vectors = rows(6, 4, 3)
    found = conflicts(torch.from_numpy(vectors @ vectors.T).float())
    pairs = [vectors[i] @ vectors[j] for i, j in combinations(range(6), 2)]
    assert found.rate == np.mean([pair < 0 for pair in pairs])
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found.cosines.numpy(), units @ units.T, atol=1e-6)
    assert found.least == pytest.approx(min(found.cosines[i, j] for i, j in combinations(range(6), 2)).item())
    alone = conflicts(torch.ones(1, 1))
    assert (alone.rate, alone.mean, alone.least) == (0, 1, 1)
