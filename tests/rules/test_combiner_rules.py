"""Combiners as rules: the weights of whole models, layers or tensors, from what the vectors hold there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from taskvec.combiners import COMBINERS, combiner_called
from taskvec.errors import InputError, NonFinite
from taskvec.rules import RULES
from taskvec.rules.draws import draws
from taskvec.rules.rule import Place
from taskvec.vectors import TaskVector, combine
from taskvec.weights import blocks

WEIGHING = [name for name in COMBINERS if name not in ("sum", "mean", "graddrop")]
SHAPES = {
    "embed.weight": (7, 4),
    "layer.0.a.weight": (4, 4),
    "layer.0.b.bias": (4,),
    "layer.1.a.weight": (4, 4),
    "norm.scale": (),
}
LAYERS = {
    "embed.weight": "embed",
    "layer.0.a.weight": "layer.0",
    "layer.0.b.bias": "layer.0",
    "layer.1.a.weight": "layer.1",
    "norm.scale": "norm",
}
GROUPS: dict[str, Callable[[str], str]] = {
    "model": lambda name: "",
    "layer": lambda name: LAYERS[name],
    "tensor": lambda name: name,
}


def vectors(tasks: int, dtype: torch.dtype = torch.float64) -> list[TaskVector]:
    """Vectors that conflict; the second does not have the embeddings."""
    generator = torch.Generator().manual_seed(tasks)
    base = {name: torch.zeros(shape, dtype=dtype) for name, shape in SHAPES.items()}
    made = []
    for task in range(tasks):
        tuned = {
            name: value + torch.randn(value.shape, generator=generator, dtype=torch.float64).to(dtype)
            for name, value in base.items()
            if not (task == 1 and name == "embed.weight")
        }
        made.append(TaskVector.between(base, {**base, **tuned}))
    return made


def stacks(several: list[TaskVector], dtype: torch.dtype) -> dict[str, Tensor]:
    missing = {name: torch.zeros(shape, dtype=dtype) for name, shape in SHAPES.items()}
    return {
        name: torch.stack([vector[name] if name in vector else missing[name] for vector in several])
        for name in SHAPES
    }


@pytest.mark.parametrize("name", [name for name in WEIGHING if not COMBINERS[name].draws])
@pytest.mark.parametrize("per", GROUPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_merge_is_the_weighted_sum_by_groups(name: str, per: str, dtype: torch.dtype) -> None:
    given = vectors(4, dtype)
    found, dense = combine(name, given, per=per), stacks(given, dtype)
    for group in map(GROUPS[per], SHAPES):
        members = [tensor for tensor in SHAPES if GROUPS[per](tensor) == group]
        rows = torch.cat([dense[tensor].reshape(4, -1) for tensor in members], 1).double()
        weights = COMBINERS[name].chosen(rows @ rows.T)
        for tensor in members:
            expected = torch.tensordot(weights, dense[tensor].double(), 1)
            size = (weights.abs()[:, None] * rows.abs()).max()
            slack = 1e-9 if dtype == torch.float64 else 1e-6
            assert (found[tensor].double() - expected).abs().max() <= slack * size


@pytest.mark.parametrize("per", ["layer", "tensor"])
def test_groups_matter(per: str) -> None:
    given = vectors(4)
    whole, parts = combine("mgda", given), combine("mgda", given, per=per)
    assert any(not torch.allclose(whole[name], parts[name]) for name in SHAPES)


@pytest.mark.parametrize("name", WEIGHING)
@pytest.mark.parametrize("per", ["layer", "tensor"])
def test_groups_of_one_tensor_are_the_model(name: str, per: str) -> None:
    base = {"layers.0.weight": torch.zeros(5, 3)}
    given = [
        TaskVector.between(
            base, {"layers.0.weight": torch.randn(5, 3, generator=torch.Generator().manual_seed(n))}
        )
        for n in range(2)
    ]
    whole, parts = combine(name, given), combine(name, given, per=per)
    if name != "wpcgrad":  # what is drawn belongs to a group
        assert torch.equal(whole["layers.0.weight"], parts["layers.0.weight"])


def test_pcgrad_of_agreeing_vectors_is_their_sum_to_the_bit() -> None:
    base = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    given = [
        TaskVector.between(
            base,
            {
                name: torch.rand(shape, generator=torch.Generator().manual_seed(seed))
                for name, shape in SHAPES.items()
            },
        )
        for seed in range(3)
    ]
    total = combine("sum", given)
    for per in GROUPS:
        merged = combine("pcgrad", given, per=per)
        assert all(torch.equal(merged[name], total[name]) for name in SHAPES)


def test_pieces_of_a_tensor_are_weighed_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    given = vectors(3)
    expected = {name: combine("mgda", given, per="tensor")[name] for name in SHAPES}
    monkeypatch.setattr(blocks, "BLOCK", 5)
    pieces = combine("mgda", given, per="tensor")
    assert all(torch.allclose(pieces[name], expected[name], atol=1e-12) for name in SHAPES)


def test_draws_differ_between_groups_and_runs_are_the_same() -> None:
    base = {f"layers.{n}.weight": torch.zeros(3, 2) for n in range(40)}
    same = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(1))
    given = [TaskVector.between(base, dict.fromkeys(base, delta)) for delta in same]
    first = combine("pcgrad", given, per="layer")
    assert len({tuple(first[name].flatten().tolist()) for name in base}) > 5
    again = combine("pcgrad", given, per="layer")
    assert all(torch.equal(first[name], again[name]) for name in base)


def test_one_priority_for_each_vector() -> None:
    given = vectors(3)
    with pytest.raises(InputError, match="priorities: 2 values, expected 3, one for each task vector"):
        combine("wpcgrad", given, priorities=[1, 2])
    with pytest.raises(InputError, match="priorities are all 0, expected one above 0"):
        combine("wpcgrad", given, priorities=[0, 0, 0])
    with pytest.raises(InputError, match=r"priorities\.1 is -1"):
        combine("wpcgrad", given, priorities=[1, -1, 1])
    favoured = combine("wpcgrad", given, priorities=[1, 0, 0], choice="expected")
    assert not torch.equal(favoured["layer.0.a.weight"], combine("pcgrad", given)["layer.0.a.weight"])


def test_the_target_is_one_of_the_vectors() -> None:
    with pytest.raises(InputError, match="rule 'cosine': target is 3, expected a number below 3"):
        combine("cosine", vectors(3), target=3)


@pytest.mark.parametrize("name", WEIGHING)
def test_what_is_not_finite_is_named(name: str) -> None:
    given = vectors(3)
    spoiled = dict(given[1]) | {"layer.0.b.bias": torch.full((4,), float("nan"), dtype=torch.float64)}
    merged = combine(name, [given[0], TaskVector.from_tensors(spoiled, given[0].base.weights), given[2]])
    with pytest.raises(
        NonFinite, match=rf"rule '{name}': entries of task vector 2 are .* in 'layer\.0\.b\.bias'"
    ):
        merged["embed.weight"]


def test_tensors_may_have_parameters_of_their_own_where_they_are_weighed_alone() -> None:
    given, each = vectors(3), {"layer.1.a.weight": {"c": 0.0}}
    merged = combine("cagrad", given, per="tensor", each=each)
    mean = combine("mean", given)
    assert torch.allclose(merged["layer.1.a.weight"], mean["layer.1.a.weight"])
    assert not torch.allclose(merged["layer.0.a.weight"], mean["layer.0.a.weight"])
    with pytest.raises(InputError, match="c differs from tensor to tensor, but 'cagrad' looks at the whole"):
        combine("cagrad", given, each=each)
    priorities = {"embed.weight": {"priorities": [1, 2, 3]}}
    with pytest.raises(InputError, match="priorities differs from tensor to tensor"):
        combine("wpcgrad", given, each=priorities, priorities=[3, 2, 1])


@pytest.mark.parametrize("chain", ["dare+pcgrad", "breadcrumbs+upgrad", "cagrad+lines", "dare+graddrop"])
def test_chains_weigh_what_earlier_rules_left(chain: str) -> None:
    params: dict[str, Any] = {"blocks": r"layer\.(\d+)\."} if "lines" in chain else {}
    merged = combine(chain, vectors(3), **params)
    assert all(bool(merged[name].isfinite().all()) for name in SHAPES)


def test_graddrop_draws_by_the_place_of_an_entry() -> None:
    given = vectors(3)
    merged, dense = combine("graddrop", given, seed=4), stacks(given, torch.float64)
    for name, stack in dense.items():
        uniform = torch.from_numpy(draws(4, -1, Place(name), stack[0].numel()) / 2**32).reshape(
            stack.shape[1:]
        )
        expected = combiner_called("graddrop").merge(stack, uniform)
        assert torch.equal(merged[name], expected)


@pytest.mark.parametrize("name", [*WEIGHING, "graddrop"])
def test_parameters_are_those_of_the_combiner(name: str) -> None:
    found: dict[str, Any] = RULES[name].parameters()
    assert found.items() >= COMBINERS[name].defaults().items()
    assert all(f"\n    {parameter}: " in RULES[name].description for parameter in found)
