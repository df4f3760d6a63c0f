"""Masks over singular directions: what is kept is added; the gradient needs no graph through the merge."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from taskvec.coefficients.ranks import Ranks, add_ranks, along_ranks, choose, first_logits, ranked_matrices
from taskvec.rules.matrix import svd

SHAPES = [(5, 3), (3, 5), (4, 4), (1, 6), (6, 1)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def merge(of: list[Ranks], factors: Tensor, masks: Tensor) -> Tensor:
    merged = torch.zeros(of[0].u.shape[0], of[0].v.shape[1], dtype=torch.float64)
    for ranks, factor, mask in zip(of, factors.tolist(), masks, strict=True):
        add_ranks(merged, ranks, factor, mask)
    return merged


@pytest.mark.parametrize("shape", SHAPES)
def test_with_everything_kept_a_merge_is_the_weighted_sum(shape: tuple[int, int]) -> None:
    deltas, factors = noise(3, *shape), torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    of = [Ranks(*svd(delta)) for delta in deltas]
    merged = merge(of, factors, torch.ones(3, min(shape)))
    assert_close(merged, (factors[:, None, None] * deltas).sum(0), rtol=1e-12, atol=1e-12)


def test_with_nothing_kept_nothing_is_added() -> None:
    of = [Ranks(*svd(delta)) for delta in noise(2, 4, 3)]
    assert not merge(of, torch.ones(2), torch.zeros(2, 3)).any()


def test_what_is_kept_is_the_truncated_matrix() -> None:
    matrix = noise(5, 4)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    merged = merge([Ranks(u, s, v)], torch.tensor([0.3]).double(), choose(first_logits(4, 2)).mask[None])
    expected = torch.tensor([0.3]).double() * (u[:, :2] @ torch.diag(s[:2]) @ v[:2])
    assert_close(merged, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_autograd_and_finite_differences(shape: tuple[int, int]) -> None:
    """Of a soft mask, as the straight-through gradient is taken to be; the reference has a graph."""
    u, s, v = torch.linalg.svd(noise(2, *shape), full_matrices=False)
    target, factors, masks = noise(*shape, seed=1), noise(2, seed=2), noise(*s.shape, seed=3).sigmoid()

    def loss(factors: Tensor, masks: Tensor) -> Tensor:
        merged = torch.einsum("t,tmk,tk,tk,tkn->mn", factors, u, masks, s, v)
        return (merged - target).pow(4).sum()

    of = [Ranks(*parts) for parts in zip(u, s, v, strict=True)]
    slope = 4 * (merge(of, factors, masks) - target) ** 3
    along = torch.stack([along_ranks(ranks, slope) for ranks in of])
    leaves = factors.clone().requires_grad_(), masks.clone().requires_grad_()
    in_factors, in_masks = torch.autograd.grad(loss(*leaves), leaves)
    assert_close((masks * along).sum(1), in_factors, rtol=1e-10, atol=1e-10)
    assert_close(factors[:, None] * along, in_masks, rtol=1e-10, atol=1e-10)
    step = 1e-5 * noise(*masks.shape, seed=4)
    difference = (loss(factors, masks + step) - loss(factors, masks - step)) / 2
    assert_close((factors[:, None] * along * step).sum(), difference, rtol=1e-6, atol=1e-9)


def test_a_choice_is_hard_and_moves_like_its_probability() -> None:
    logits = torch.tensor([-0.1, 0.1, 3.0, 0.0], dtype=torch.float64, requires_grad=True)
    choice = choose(logits)
    assert choice.mask.tolist() == [0, 1, 1, 0]
    [expected] = torch.autograd.grad((logits / 10).sigmoid().sum(), logits)
    assert_close(choice.slope, expected, rtol=1e-12, atol=1e-12)


def test_the_largest_directions_are_kept_first() -> None:
    assert first_logits(5, 2).tolist() == pytest.approx([0.1, 0.1, -0.1, -0.1, -0.1])
    assert (first_logits(3, 7) > 0).all() and (first_logits(3, 0) < 0).all() and len(first_logits(0, 0)) == 0


def test_a_vector_that_moves_nothing_has_no_directions() -> None:
    ranks = Ranks(*svd(torch.zeros(3, 4)))
    merged = torch.ones(3, 4)
    add_ranks(merged, ranks, 1.0, torch.ones(0))
    assert torch.equal(merged, torch.ones(3, 4))
    assert along_ranks(ranks, torch.ones(3, 4)).shape == (0,)


def test_matrices_of_attention_and_feed_forward_layers_have_ranks() -> None:
    names = {
        "embeddings.word_embeddings.weight": (9, 4),
        "encoder.layer.0.attention.self.query.weight": (4, 4),
        "encoder.layer.0.attention.self.query.bias": (4,),
        "encoder.layer.0.intermediate.dense.weight": (8, 4),
        "encoder.layer.0.output.LayerNorm.weight": (4,),
        "pooler.dense.weight": (4, 4),
        "conv1.weight": (4, 3, 2, 2),
    }
    assert ranked_matrices(names) == [
        "encoder.layer.0.attention.self.query.weight",
        "encoder.layer.0.intermediate.dense.weight",
    ]


def test_a_network_of_other_names_has_ranks_in_all_its_matrices() -> None:
    shapes = {"0.weight": (3, 4), "0.bias": (3,), "embed.weight": (9, 3), "2.weight": (2, 3)}
    assert ranked_matrices(shapes) == ["0.weight", "2.weight"]
