"""Parameters of single tensors: as the rule by itself on that tensor, or refused in a line."""

from typing import Any

import pytest
import torch

from taskvec.errors import InputError
from taskvec.rules.dare import dare
from taskvec.rules.rule import Place
from taskvec.vectors import TaskVector, combine

SHAPES = {"layers.0.weight": (6, 5), "layers.1.weight": (5, 4), "bias": (7,)}
FIRST = next(iter(SHAPES))
Params = dict[str, Any]


def vectors() -> list[TaskVector]:
    generator = torch.Generator().manual_seed(0)
    return [
        TaskVector.from_tensors({n: torch.randn(s, generator=generator) for n, s in SHAPES.items()}, None)
        for _ in range(3)
    ]


@pytest.mark.parametrize(
    ("rule", "params", "own", "said"),
    [
        ("ties", {}, {"trim": "global"}, "'ties': trim differs from tensor to tensor, but 'ties' looks at"),
        ("ties", {"trim": "global"}, {"trim": "tensor"}, "'ties': trim differs"),
        ("ties", {"trim": "global"}, {"keep": 0.9}, "'ties': keep differs"),
        ("pcb", {"trim": "tensor"}, {"trim": "global"}, "'pcb': trim differs"),
        ("pcb", {}, {"ratio": 0.5}, "'pcb': ratio differs"),
        ("ties+lines", {"trim": "global"}, {"keep": 0.5}, r"'ties\+lines': keep differs .* 'ties' looks"),
        ("ties+lines", {}, {"alpha": 0.1}, r"'ties\+lines': alpha differs .* 'lines' looks"),
    ],
)
def test_what_is_settled_for_the_whole_model_is_one_value(
    rule: str, params: Params, own: Params, said: str
) -> None:
    with pytest.raises(InputError, match=f"^rule {said}[^\n]*$"):
        combine(rule, vectors(), each={FIRST: own}, **params)


@pytest.mark.parametrize(
    ("rule", "params", "own"),
    [
        ("ties", {}, {"keep": 0.9}),
        ("ties", {}, {"trim": "tensor", "weights": (1, 2, 3)}),
        ("ties", {}, {"weights": (0, 0, 0)}),
        ("pcb", {"trim": "tensor"}, {"ratio": 0.5}),
        ("dare+ties", {"density": 0.5}, {"density": 0.9, "keep": 0.5}),
        ("tsv", {}, {"exclude": "layers"}),
        ("knots", {}, {"inner": "mean"}),
    ],
)
def test_what_a_tensor_has_of_its_own_counts_there_alone(rule: str, params: Params, own: Params) -> None:
    mixed = combine(rule, vectors(), each={FIRST: own}, **params)
    alone, others = combine(rule, vectors(), **{**params, **own}), combine(rule, vectors(), **params)
    for name in SHAPES:
        assert torch.equal(mixed[name], (alone if name == FIRST else others)[name])
    assert not torch.equal(alone[FIRST], others[FIRST])


def test_rules_that_look_at_the_whole_model_take_the_rest_from_each_tensor() -> None:
    """The cuts are those of the whole model, and the weights the tensor's own."""
    weights = (1.0, 2.0, -3.0)
    mixed = combine("ties", vectors(), trim="global", each={FIRST: {"weights": weights}})
    alone = combine("ties", vectors(), trim="global", weights=weights)
    assert torch.equal(mixed[FIRST], alone[FIRST])


def test_norms_of_the_whole_model_are_those_after_each_tensor_dropped_its_own_share() -> None:
    given = vectors()
    stacks = {name: torch.stack([one[name] for one in given]).double() for name in SHAPES}
    dropped = dare(stacks[FIRST], density=0.5, _place=Place(FIRST, 0, 2))
    left = torch.cat([stack.flatten(1) for stack in (stacks | {FIRST: dropped}).values()], dim=1)
    squares = left.square().sum(1)
    mixed = combine("dare+metagpt", given, density=1.0, each={FIRST: {"density": 0.5}})
    expected = torch.einsum("t,tn->n", squares / squares.sum(), stacks["bias"])
    torch.testing.assert_close(mixed["bias"].double(), expected)
