"""KnOTS: merging in the space that the tasks' matrices span together."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskvec.errors import InputError, UnknownName
from taskvec.rules import RULES
from taskvec.vectors import TaskVector, combine

Array = NDArray[np.float64]
KNOTS = RULES["knots"]


def products(tasks: int = 3, shape: tuple[int, int] = (12, 9), rank: int = 2, seed: int = 0) -> Tensor:
    """What LoRA adapters of a rank change, each in a space of its own."""
    generator = torch.Generator().manual_seed(seed)
    b = torch.randn(tasks, shape[0], rank, generator=generator, dtype=torch.float64)
    a = torch.randn(tasks, rank, shape[1], generator=generator, dtype=torch.float64)
    return b @ a


def ties_of(parts: Array, keep: float) -> Array:
    """TIES entry by entry: trim, elect by the sum, average what agrees."""
    trimmed = np.zeros_like(parts)
    for task, part in enumerate(parts):
        largest = np.argsort(-np.abs(part), axis=None)[: max(1, round(keep * part.size))]
        trimmed[task].flat[largest] = part.flat[largest]
    merged = np.zeros(parts.shape[1:])
    for place in np.ndindex(*merged.shape):
        entries = trimmed[(slice(None), *place)]
        agreeing = [one for one in entries if one != 0 and (one > 0) == (entries.sum() >= 0)]
        merged[place] = np.mean(agreeing) if agreeing else 0.0
    return merged


def reference(deltas: Array, inner: Callable[[Array], Array]) -> Array:
    tasks, _, columns = deltas.shape
    u, s, v = np.linalg.svd(np.concatenate(list(deltas), axis=1), full_matrices=False)
    kept = s > 1e-10 * s[0]
    parts = np.stack([v[kept][:, task * columns : (task + 1) * columns] for task in range(tasks)])
    return np.asarray((u[:, kept] * s[kept]) @ inner(parts))


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (7, 1), (5, 40), (300, 270)])
@pytest.mark.parametrize("keep", [0.2, 0.7])
def test_it_is_the_definition_with_ties_inside(shape: tuple[int, int], keep: float) -> None:
    deltas = products(shape=shape)
    expected = reference(deltas.numpy(), lambda parts: ties_of(parts, keep))
    found = KNOTS(deltas, options={"keep": keep})
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("rank", [2, 9, 50])
def test_the_mean_inside_is_the_mean_and_the_sum_the_sum(rank: int) -> None:
    deltas = products(shape=(300, 280), rank=rank)  # of joint rank 6, 27 and 150: narrow, and whole
    assert torch.allclose(KNOTS(deltas, inner="mean"), deltas.mean(0), rtol=0, atol=1e-11)
    weights = [1.0, -2.0, 0.5]
    weighted = (torch.tensor(weights, dtype=torch.float64)[:, None, None] * deltas).sum(0)
    assert torch.allclose(
        KNOTS(deltas, inner="sum", options={"weights": weights}), weighted, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize(("shape", "rank"), [((40, 30), 2), ((300, 280), 16), ((600, 520), 64)])
def test_directions_of_float32_rounding_take_no_part(shape: tuple[int, int], rank: int) -> None:
    """A row of V is as long as any other, so rounding would otherwise decide what TIES keeps."""
    generator = torch.Generator().manual_seed(0)
    factors = [
        (torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator))
        for _ in range(3)
    ]
    rounded = torch.stack([b @ a for b, a in factors])
    exact = torch.stack([b.double() @ a.double() for b, a in factors])
    found, expected = KNOTS(rounded), KNOTS(exact)
    assert found.dtype == torch.float32
    missed = torch.linalg.vector_norm(found.double() - expected)
    assert missed < 1e-3 * torch.linalg.vector_norm(expected)  # entries at the cut may fall on either side


def test_ties_inside_is_homogeneous_and_knows_no_order_of_tasks() -> None:
    deltas = products()
    merged = KNOTS(deltas)
    assert torch.allclose(KNOTS(1e-6 * deltas), 1e-6 * merged, rtol=0, atol=1e-18)
    assert torch.allclose(KNOTS(deltas.flip(0)), merged, rtol=0, atol=1e-12)
    assert not torch.allclose(merged, RULES["ties"](deltas), atol=1e-2)


def test_other_tensors_and_those_left_out_by_name_are_merged_by_the_inner_rule() -> None:
    base = {"layer.weight": torch.zeros(6, 5), "embed.weight": torch.zeros(6, 5), "bias": torch.zeros(7)}
    generator = torch.Generator().manual_seed(0)
    vectors = [
        TaskVector.between(base, {n: torch.randn(v.shape, generator=generator) for n, v in base.items()})
        for _ in range(3)
    ]
    merged = combine("knots", vectors, exclude="embed", options={"keep": 0.5})
    inner = combine("ties", vectors, keep=0.5)
    assert torch.equal(merged["embed.weight"], inner["embed.weight"])
    assert torch.equal(merged["bias"], inner["bias"])
    assert not torch.allclose(merged["layer.weight"], inner["layer.weight"])
    assert merged.info.rule == {
        "name": "knots",
        "inner": "ties",
        "options": {"keep": 0.5},
        "exclude": "embed",
    }


def test_chains_go_inside_and_around() -> None:
    deltas = products()
    dropped = {"inner": "dare+ties", "options": {"density": 0.5, "keep": 1, "seed": 3}}
    assert torch.equal(KNOTS(deltas, **dropped), KNOTS(deltas, **dropped))
    assert not torch.equal(KNOTS(deltas, **dropped), KNOTS(deltas, options={"keep": 1}))
    outside = RULES["dare+knots"](deltas, density=0.5, seed=3, inner="mean")
    assert torch.allclose(outside, RULES["dare"](deltas, density=0.5, seed=3) / 3, atol=1e-12)


def test_no_global_random_numbers_are_drawn() -> None:
    state = torch.get_rng_state()
    KNOTS(products(shape=(300, 280)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"inner": "slerp"}, "inner is 'slerp', which needs the weights of the base"),
        ({"inner": "fisher"}, "inner is 'fisher', which needs statistics"),
        (
            {"options": {"trim": "global"}},
            "inner is 'ties', which with these options looks at the whole model",
        ),
        ({"inner": "metagpt"}, "inner is 'metagpt', which with these options looks at the whole model"),
        ({"inner": "ties+lines"}, r"inner is 'ties\+lines', which with these options looks at the whole"),
        ({"options": {"kep": 1}}, "unknown parameter 'kep'; did you mean 'keep'"),
        ({"options": {"weights": [1, 2]}}, "weights: 2 values, expected 3"),
        ({"exclude": "("}, "not a regular expression"),
    ],
)
def test_what_cannot_be_inside_is_refused_before_anything_is_read(params: dict[str, Any], said: str) -> None:
    vectors = [TaskVector.from_tensors({"w": torch.ones(2, 2) * n}, None) for n in range(3)]
    with pytest.raises(InputError, match=said):
        combine("knots", vectors, **params)
    with pytest.raises(UnknownName, match="did you mean 'ties'"):
        combine("knots", vectors, inner="tise")
