"""Rules one after the other, and LiNeS, which comes after any."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from taskvec.errors import InputError, UnknownName
from taskvec.rules import RULES
from taskvec.rules.dare import DARE, dare
from taskvec.rules.rule import Place
from taskvec.rules.ties import TIES as ties
from taskvec.vectors import TaskVector, combine

NAMES = ["embed.weight", "encoder.layer.0.w", "encoder.layer.1.w", "encoder.layer.2.w", "head.0.weight"]
GENERATOR = torch.Generator().manual_seed(0)
STACKS = {name: torch.randn(3, 4, 5, generator=GENERATOR) for name in NAMES}


def vectors() -> list[TaskVector]:
    return [
        TaskVector.from_tensors({name: stack[t] for name, stack in STACKS.items()}, None) for t in range(3)
    ]


def by_stage(stage: str) -> list[str]:
    return [name for name in RULES if RULES[name].role == stage]


def test_dare_then_ties_is_ties_of_what_dare_leaves() -> None:
    merged = combine("dare+ties", vectors(), density=0.5, keep=0.8, seed=4)
    for name, stack in STACKS.items():
        dropped = dare(stack, density=0.5, seed=4, _place=Place(name))
        assert torch.equal(merged[name], ties(dropped, keep=0.8))


def test_a_rule_on_each_vector_by_itself_is_followed_by_the_sum() -> None:
    alone, chained = (combine(rule, vectors(), weights=[1, 2, 0.5]) for rule in ("dare", "dare+sum"))
    for name, stack in STACKS.items():
        expected = torch.tensordot(torch.tensor([1, 2, 0.5]), dare(stack, _place=Place(name)), dims=1)
        assert_close(alone[name], expected)
        assert torch.equal(chained[name], alone[name])
    assert torch.equal(combine(DARE, vectors())["embed.weight"], combine("dare", vectors())["embed.weight"])


def test_a_global_cut_sees_what_was_left_before_it() -> None:
    merged = combine(
        "breadcrumbs+ties", vectors(), density=0.5, gamma=0.1, keep=0.3, trim="global", merge="sum"
    )
    left = {
        name: RULES["breadcrumbs"].stages[0](stack, density=0.5, gamma=0.1) for name, stack in STACKS.items()
    }
    flat = torch.cat([stack.reshape(3, -1) for stack in left.values()], dim=1)
    expected = ties(flat, keep=0.3, merge="sum")
    assert torch.equal(torch.cat([merged[name].reshape(-1) for name in NAMES]), expected)


def test_metagpt_after_dare_weighs_what_dare_leaves() -> None:
    merged = combine("dare+metagpt", vectors(), density=0.3)
    left = {name: dare(stack, density=0.3, _place=Place(name)) for name, stack in STACKS.items()}
    squares = torch.stack([stack.double().square().sum((1, 2)) for stack in left.values()]).sum(0)
    for name, stack in left.items():
        assert_close(merged[name], torch.tensordot((squares / squares.sum()).float(), stack, dims=1))


@pytest.mark.parametrize("rule", ["sum", "ties", "tsv", "consensus"])
def test_lines_scale_blocks_by_depth_and_the_rest_by_alpha(rule: str) -> None:
    plain = combine(rule, vectors())
    scaled = combine(f"{rule}+lines", vectors(), alpha=0.2, beta=0.6)
    expected = dict(zip(NAMES, [0.2, 0.2, 0.5, 0.8, 0.2], strict=True))
    for name, factor in expected.items():
        assert_close(scaled[name], factor * plain[name])


def test_lines_find_alpha_from_the_norms() -> None:
    flat = combine("lines", vectors(), beta=0)
    for name, stack in STACKS.items():
        assert_close(flat[name], stack.mean(0))  # 1 / T after the sum
    merged = combine("ties", vectors())
    alpha = combine("sum", vectors()).norm() / merged.norm() / 3
    scaled = combine("ties+lines", vectors(), beta=0)
    for name in NAMES:
        assert_close(scaled[name], alpha * merged[name])


def lines_factor(name: str, names: list[str], **params: Any) -> float:
    vector = TaskVector.from_tensors({known: torch.ones(2) for known in names}, None)
    return float(combine("lines", [vector], alpha=0, beta=1, **params)[name][0])


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("vision_model.encoder.layers.{}.mlp.fc1.weight", 11),
        ("model.layers.{}.self_attn.q_proj.weight", 31),
        ("transformer.h.{}.attn.c_attn.weight", 11),
        ("bert.encoder.layer.{}.output.dense.bias", 5),
        ("visual.transformer.resblocks.{}.ln_1.weight", 11),
        ("blocks.{}.attn.qkv.weight", 11),
        ("encoder.block.{}.layer.0.SelfAttention.q.weight", 5),
    ],
)
def test_lines_find_the_blocks_of_usual_models(name: str, depth: int) -> None:
    names = [name.format(block) for block in range(depth + 1)]
    for block in (0, 1, depth):
        assert lines_factor(names[block], names) == pytest.approx(block / depth)


def test_lines_take_each_stack_of_blocks_by_itself_and_a_single_block_as_the_first() -> None:
    names = [
        *(f"text.layers.{n}.w" for n in range(3)),
        *(f"image.layers.{n}.w" for n in range(5)),
        "one.h.0.w",
    ]
    assert lines_factor("text.layers.1.w", names) == 0.5
    assert lines_factor("image.layers.1.w", names) == 0.25
    assert lines_factor("one.h.0.w", names) == 0
    odd = ["stage1.0.w", "stage1.1.w"]
    assert lines_factor("stage1.1.w", odd, blocks=r"stage1\.(\d+)") == 1


def test_lines_count_blocks_that_no_vector_changes() -> None:
    base = {f"layers.{n}.w": torch.zeros(2) for n in range(5)}
    tuned = base | {"layers.1.w": torch.ones(2)}
    merged = combine("lines", [TaskVector.between(base, tuned)], alpha=0, beta=1)
    assert_close(merged["layers.1.w"], torch.full((2,), 0.25))


def test_lines_without_blocks_or_with_a_strange_expression_are_refused() -> None:
    loose = [TaskVector.from_tensors({"w": torch.ones(2)}, None)]
    with pytest.raises(InputError, match=r"no tensor name matches blocks .* the first is 'w'"):
        combine("lines", loose)["w"]
    for blocks, message in (("(", "not a regular expression"), ("layer", "0 groups, expected one")):
        with pytest.raises(InputError, match=message):
            combine("lines", loose, blocks=blocks)
    for blocks, found in (("(w)", "'w'"), (r"(\d)?w", "None")):
        with pytest.raises(InputError, match=f"finds {found} in 'w', expected the block's number"):
            combine("lines", loose, blocks=blocks)["w"]


def test_every_order_but_each_merge_after_is_refused() -> None:
    for wrong in ("ties+dare", "lines+ties", "dare+breadcrumbs", "ties+sum", "dare+lines+ties"):
        assert wrong not in RULES
        with pytest.raises(
            InputError, match="expected at most one rule each, merge and after, in this order"
        ):
            RULES[wrong]
    with pytest.raises(UnknownName, match="no rule called 'tise'; did you mean 'ties'"):
        RULES["dare+tise"]
    assert "dare+ties" in RULES and "dare+tise" not in RULES


def test_a_parameter_has_one_meaning_in_a_chain() -> None:
    clashes = set()
    for parts in itertools.product(by_stage("each"), by_stage("merge"), by_stage("after")):
        try:
            chain = RULES["+".join(parts)]
        except InputError as error:
            assert "have the parameter" in str(error)
            clashes.add(parts[:2])
        else:
            assert chain.parameters() == {
                key: value for part in chain.stages for key, value in part.parameters().items()
            }
            private = [key for part in chain.stages for key in part.keywords if key.startswith("_")]
            assert {key for key in private if private.count(key) > 1} <= {"_place", "_base"}
    assert clashes == {("nearswap", "slerp")}


def test_a_chain_is_recorded_with_every_parameter_and_refuses_others() -> None:
    rule = combine("dare+ties", vectors(), seed=3).info.rule
    assert rule is not None
    assert (rule["name"], rule["density"], rule["seed"], rule["keep"]) == ("dare+ties", 0.1, 3, 0.2)
    with pytest.raises(
        InputError, match=r"rule 'dare\+ties': unknown parameter 'seeds'; did you mean 'seed'"
    ):
        combine("dare+ties", vectors(), seeds=3)


def test_singular_vectors_are_computed_once_however_many_scales_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0
    true = torch.linalg.svd

    def counted(matrix: torch.Tensor, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return true(matrix, **options)

    monkeypatch.setattr(torch.linalg, "svd", counted)
    merged = combine("tsv", vectors())
    first = merged["head.0.weight"]
    once = calls
    assert once == 5
    for scale in (0.1, 0.5, 1.0):
        assert_close((scale * merged)["head.0.weight"], scale * first)
    merged["head.0.weight"].mul_(0)  # what was read is the reader's
    assert torch.equal(merged["head.0.weight"], first) and math.isfinite(first.norm())
    assert calls == once
