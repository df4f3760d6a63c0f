"""What every registered rule obeys: the laws that ``taskvec.rules.rule`` lists."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskvec.combiners import COMBINERS
from taskvec.errors import InputError, NonFinite
from taskvec.rules import RULES, Rule
from taskvec.rules.rule import Place
from taskvec.vectors import TaskVector, apply, combine
from taskvec.weights import Weights, blocks, open_weights

# Every rule, and a chain of each kind.
NAMES = [*RULES, "dare+ties", "breadcrumbs+tsv", "tsv+lines", "dare+consensus+lines", "nearswap+karcher"]
NAMES += ["dare+fisher", "regmean+lines", "tsv+svc", "ties+svc", "dare+sum+lines+svc", "magmax+svc+lines"]
# Depth needs blocks, and the other laws are laws at any depth.
# The inner rule of knots decides by sizes, and which of two equal singular vectors is larger, rounding says.
PLAIN: dict[str, Any] = {"alpha": 0.7, "beta": 0.0, "inner": "mean"}
# Parameters with which one task vector stays as it is; rules that are not here do not promise it.
IDENTITY: dict[str, dict[str, Any]] = {
    **{
        key: {} for key in ("sum", "mean", "tsv", "wudi", "magmax", "metagpt", "multislerp", "karcher", "sce")
    },
    **{"passthrough": {}, "emr": {}, "ties": {"keep": 1}, "dare": {"density": 1}, "della": {"density": 1}},
    **{"breadcrumbs": {"density": 1, "gamma": 0}, "consensus": {"k": 1}, "nearswap": {"t": 100}},
    **{"lines": {"alpha": 1, "beta": 0}, "dare+ties": {"density": 1, "keep": 1}, "fisher": {}, "regmean": {}},
    "knots": {"inner": "ties", "options": {"keep": 1}},
    **{"actmat": {}, "dc_merge": {"entries": 1}, "cart": {}, "tatr": {}, "localize_stitch": {"keep": 1}},
    **{"svc": {}, "tsv+svc": {}},
    **{key: {} for key in COMBINERS if key != "nash_mtl"},
    "cagrad": {"c": 0},
}
# Parameters with which copies of one vector give that vector.
IDEMPOTENT: dict[str, dict[str, Any]] = {
    **{key: {} for key in ("mean", "wudi", "magmax", "metagpt", "model_stock", "slerp", "nuslerp")},
    **{"multislerp": {}, "karcher": {}, "sce": {}, "emr": {}, "ties": {"keep": 1}},
    **{"fisher": {}, "regmean": {}, "knots": {"inner": "ties", "options": {"keep": 1}}},
    **{"actmat": {}, "cart": {}, "localize_stitch": {"keep": 1}},
    **{key: {} for key in COMBINERS if not COMBINERS[key].sums and key not in ("nash_mtl", "sum")},
    **{"aligned_mtl": {"scale": "mean"}, "cagrad": {"c": 0}},
}

every_rule = pytest.mark.parametrize("name", NAMES)
few = settings(max_examples=12, deadline=None, derandomize=True)


def tasks_of(rule: Rule, wanted: int) -> int:
    """The number nearest to ``wanted`` that the rule is for."""
    least, most = rule.tasks
    return max(least, min(wanted, most or wanted))


def defaults(rule: Rule) -> dict[str, Any]:
    return {key: value for key, value in PLAIN.items() if key in rule.parameters()}


def merged(name: str, stack: Tensor, base: Tensor | None = None, **params: Any) -> Tensor:
    """The rule on one stack, with a base where it asks for one."""
    rule = RULES[name]
    origin = torch.ones(stack.shape[1:], dtype=stack.dtype) if base is None else base
    context = rule.accepted_parameters(
        {"_base": origin, "_stats": [statistics(rule, delta) for delta in stack]}
    )
    return rule(stack, **{**defaults(rule), **params}, **context)


def statistics(rule: Rule, delta: Tensor) -> Tensor | None:
    """Statistics that go with a random delta: they are as random, and follow it when tasks change places."""
    signs = delta.sign()
    if "regmean" not in rule.name:
        return signs + 1
    return signs.T @ signs / 64 if delta.dim() == 2 else None


def stats_of(rule: Rule, vectors: Sequence[TaskVector]) -> list[Weights] | None:
    """Statistics of every tensor of every vector, for rules that take them."""
    if "_stats" not in rule.keywords:
        return None
    found = [{name: statistics(rule, delta) for name, delta in vector.items()} for vector in vectors]
    return [open_weights({name: own for name, own in one.items() if own is not None}) for one in found]


def cancelled(name: str, given: Tensor) -> float:
    """The rounding of combiners that leave nothing of vectors which oppose each other."""
    return 1e-11 * given.abs().max().item() if name in COMBINERS and given.numel() else 0.0


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-7, besides: float = 0.0) -> None:
    """Equal but for rounding, at the size of the largest entry, and of the base's weights, which are ones."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    size = max((t.abs().max().item() for t in (found, expected) if t.numel()), default=0.0)
    assert bool(((found - expected).abs() <= tolerance * size + 1e-15 + besides).all()), (
        f"{found} is not {expected}"
    )


@st.composite
def deltas(draw: st.DrawFn) -> Callable[[Rule], Tensor]:
    """A stack of updates (task, *shape) of 0 to 3 axes, some entries zero, float64, for a rule."""
    tasks = draw(st.integers(1, 4))
    shape = draw(st.lists(st.integers(1, 5), max_size=3))
    seed = draw(st.integers(0, 2**31))

    def stack(rule: Rule) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(tasks_of(rule, tasks), *shape, generator=generator, dtype=torch.float64)
        return values * (torch.rand(values.shape, generator=generator) > 0.2)

    return stack


@every_rule
@few
@given(deltas())
def test_the_order_of_tasks_is_irrelevant(name: str, stack: Callable[[Rule], Tensor]) -> None:
    given = stack(RULES[name])
    if "order" not in RULES[name].breaks:
        assert_near(merged(name, given.flip(0)), merged(name, given), besides=cancelled(name, given))


@every_rule
@few
@given(deltas(), st.floats(0.01, 100))
def test_output_scales_with_input(name: str, stack: Callable[[Rule], Tensor], c: float) -> None:
    given = stack(RULES[name])
    base = torch.ones(given.shape[1:], dtype=given.dtype)
    if "scale" not in RULES[name].breaks:
        slack = c * cancelled(name, given)
        assert_near(merged(name, c * given, c * base), c * merged(name, given, base), besides=slack)


@every_rule
@few
@given(deltas())
def test_inputs_are_left_alone_and_shape_and_dtype_kept(name: str, stack: Callable[[Rule], Tensor]) -> None:
    given = stack(RULES[name])
    before = given.clone()
    made = merged(name, given)
    assert torch.equal(given, before)
    assert made.shape == given.shape[1:] and made.dtype == given.dtype
    assert bool(made.isfinite().all())
    assert merged(name, given.float()).dtype == torch.float32


@every_rule
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0,), (0, 3), (3, 2), (2, 3, 2)])
def test_zero_in_zero_out(name: str, shape: tuple[int, ...]) -> None:
    zeros = torch.zeros(tasks_of(RULES[name], 3), *shape)
    assert torch.equal(merged(name, zeros), torch.zeros(shape))


@every_rule
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(), (6,), (5, 6), (2, 3, 4)])
def test_what_is_not_finite_is_refused_or_shows(name: str, bad: float, shape: tuple[int, ...]) -> None:
    for task in range(tasks_of(RULES[name], 3)):
        stack = torch.randn(tasks_of(RULES[name], 3), *shape, generator=torch.Generator().manual_seed(task))
        stack[task].view(-1)[-1] = bad
        with suppress(NonFinite):
            assert not merged(name, stack).isfinite().all()


@pytest.mark.parametrize("name", IDENTITY)
@few
@given(deltas())
def test_one_task_stays_as_it_is_where_the_rule_says_so(name: str, stack: Callable[[Rule], Tensor]) -> None:
    one = stack(RULES["passthrough"])
    assert_near(merged(name, one, **IDENTITY[name]), one[0])


@pytest.mark.parametrize("name", IDEMPOTENT)
@few
@given(deltas())
def test_copies_of_a_task_count_once_where_the_rule_says_so(
    name: str, stack: Callable[[Rule], Tensor]
) -> None:
    one = stack(RULES["passthrough"])
    copies = one.expand(tasks_of(RULES[name], 3), *one.shape[1:])
    assert_near(merged(name, copies, **IDEMPOTENT[name]), one[0])


@every_rule
def test_float32_stays_close_to_float64(name: str) -> None:
    shape = (tasks_of(RULES[name], 5), 64, 32)
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stack = stack.float().double()  # the same numbers for both
    exact, fast = merged(name, stack), merged(name, stack.float()).double()
    assert (fast - exact).norm() <= 64 * torch.finfo(torch.float32).eps * exact.norm()


def model(tasks: int) -> tuple[dict[str, Tensor], list[TaskVector]]:
    """A base with blocks, scalars, empty tensors and integers, and vectors of it with gaps."""
    generator = torch.Generator().manual_seed(tasks)
    shapes = {
        "embed.weight": (9, 4),
        **{f"layer.{n}.weight": (5, 6) for n in range(3)},
        "layer.0.bias": (5,),
        "layer.1.kernel": (4, 3, 2),
        "logit_scale": (),
        "single": (1,),
        "empty": (0, 3),
    }
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    base |= {"position_ids": torch.arange(6), "mask": torch.tensor([True, False])}
    vectors = []
    for task in range(tasks):
        tuned = {
            name: value + 0.1 * torch.randn(value.shape, generator=generator)
            if value.is_floating_point() and not (task == 1 and "bias" in name)
            else value
            for name, value in base.items()
        }
        vectors.append(TaskVector.between(base, tuned))
    return base, vectors


@every_rule
def test_pieces_order_and_threads_change_no_bit(name: str) -> None:
    _, vectors = model(tasks_of(RULES[name], 3))
    stats = stats_of(RULES[name], vectors)
    whole = combine(name, vectors, stats=stats)
    expected = {tensor: whole[tensor] for tensor in whole}
    backwards, pieces = combine(name, vectors, stats=stats), combine(name, vectors, stats=stats)
    assert all(torch.equal(backwards[tensor], expected[tensor]) for tensor in reversed(list(backwards)))
    with ThreadPoolExecutor(4) as pool:
        threaded = combine(name, vectors, stats=stats)
        read = dict(zip(threaded, pool.map(threaded.read, threaded), strict=True))
    for tensor, value in expected.items():
        assert torch.equal(read[tensor], value)
        if value.dim():
            count = blocks.row_count(tuple(value.shape))
            rows = [pieces.read(tensor, slice(row, row + 1)) for row in range(count)]
            assert torch.equal(
                torch.cat([value.reshape(-1)[:0], *(row.reshape(-1) for row in rows)]), value.reshape(-1)
            )
            every_second = slice(None, None, 2)
            assert torch.equal(pieces.read(tensor, every_second), blocks.rows_of(value, every_second))


@every_rule
def test_the_size_of_blocks_changes_no_more_than_the_order_of_sums(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, vectors = model(tasks_of(RULES[name], 3))
    stats = stats_of(RULES[name], vectors)
    whole = combine(name, vectors, stats=stats)
    expected = {tensor: whole[tensor] for tensor in whole}
    monkeypatch.setattr(blocks, "BLOCK", 7)
    pieces = combine(name, vectors, stats=stats)
    for tensor, value in expected.items():
        covering = blocks.row_blocks(value.shape) if pieces.in_rows(tensor) else [None]
        parts = [pieces.read(tensor, rows) for rows in covering]
        assert_near(torch.cat(parts).reshape(value.shape) if value.dim() else parts[0], value, 1e-6)


@every_rule
def test_a_model_is_edited_and_its_integers_stay(name: str) -> None:
    base, vectors = model(tasks_of(RULES[name], 3))
    most: dict[str, Any] = (
        {"density": 0.8} if name.startswith("dare") else {}
    )  # of few entries, a tenth may be none
    edit = combine(name, vectors, stats=stats_of(RULES[name], vectors), **most)
    edited = apply(base, edit)
    assert torch.equal(edited["position_ids"], base["position_ids"])
    assert torch.equal(edited["mask"], base["mask"])
    assert all(bool(tensor.isfinite().all()) for tensor in edited.values())
    assert any(not torch.equal(edited[tensor], base[tensor]) for tensor in edit)
    assert {tensor: edited[tensor].dtype for tensor in base} == {t: v.dtype for t, v in base.items()}


@every_rule
def test_a_merged_vector_equals_the_rule_on_its_tensors(name: str) -> None:
    base, vectors = model(tasks_of(RULES[name], 3))
    rule = RULES[name]
    if rule.measure_model is None:
        edit = combine(name, vectors, stats=stats_of(rule, vectors))
        for tensor in edit:
            stack = torch.stack([vector[tensor] for vector in vectors])
            stats = [statistics(rule, delta) for delta in stack]
            context = rule.accepted_parameters(
                {"_base": base[tensor], "_place": Place(tensor), "_stats": stats}
            )
            # A tensor that no vector changes is not computed.
            assert_near(edit[tensor], rule(stack, **context), 1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if "seed" in RULES[name].parameters()])
def test_a_seed_decides_everything_random(name: str) -> None:
    _, vectors = model(6)
    stats = stats_of(RULES[name], vectors)
    # Enough is left for rules that follow; at single tensors random vectors conflict.
    known = {"density": 0.5, "per": "tensor"}
    half: dict[str, Any] = RULES[name].accepted_parameters(known)
    first, again, other = (combine(name, vectors, seed=seed, stats=stats, **half) for seed in (1, 1, 2))
    assert all(torch.equal(first[tensor], again[tensor]) for tensor in first)
    assert any(not torch.equal(first[tensor], other[tensor]) for tensor in first)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    combine(name, vectors, stats=stats)["embed.weight"]
    assert torch.equal(torch.get_rng_state(), state)


@every_rule
def test_a_rule_says_what_it_is(name: str) -> None:
    rule = RULES[name]
    assert rule.name == name
    assert rule.summary.endswith(".") and len(rule.summary) < 105
    assert rule.consumes in {"deltas", "deltas, base", "deltas, unlabelled inputs"}
    assert ("_stats" in rule.keywords) == (rule.consumes == "deltas, unlabelled inputs")
    assert "_base" not in rule.keywords or rule.consumes == "deltas, base"
    if "+" not in name:
        assert "Source:" in rule.description or name == "mean"


@every_rule
def test_unknown_parameters_name_the_nearest(name: str) -> None:
    rule = RULES[name]
    for known in rule.parameters():
        if len(known) > 3:
            with pytest.raises(InputError, match=f"unknown parameter '{known}x'; did you mean '{known}'"):
                rule.settings({f"{known}x": 1})
    with pytest.raises(InputError, match="unknown parameter 'zzz'; known: "):
        rule.settings({"zzz": 1})


@every_rule
def test_numbers_of_weights_and_of_tasks_are_checked_before_anything_is_read(name: str) -> None:
    rule = RULES[name]
    _, vectors = model(3)
    if "weights" in rule.parameters():
        count = tasks_of(rule, 1)
        with pytest.raises(InputError, match=f"weights: 3 values, expected {count}, one for each"):
            combine(name, vectors[:count], weights=[1, 2, 3])
        with pytest.raises(InputError, match=f"rule '{name}'".replace("+", r"\+")):
            combine(name, vectors[:count], weights=[float("nan")] * count)
    least, most = rule.tasks
    for wrong in ({least - 1} if least > 1 else set()) | ({most + 1} if most else set()):
        with pytest.raises(InputError, match=f"{wrong} task vectors, expected"):
            combine(name, vectors[:wrong])
        with pytest.raises(InputError, match=f"{wrong} task vectors, expected"):
            rule(torch.zeros(wrong, 2))


@pytest.mark.parametrize("name", [name for name in NAMES if "_base" in RULES[name].keywords])
def test_a_rule_on_weights_asks_for_those_of_the_base(name: str) -> None:
    base, vectors = model(tasks_of(RULES[name], 2))
    params = {"scale": 0.5} if name == "passthrough" else {"of": "weights"} if name == "multislerp" else {}
    loose = [TaskVector.from_tensors(dict(vector), None) for vector in vectors]
    with pytest.raises(InputError, match="with_base"):
        combine(name, loose, **params)["embed.weight"]
    held = combine(name, [vector.with_base(open_weights(base)) for vector in loose], **params)
    assert_near(held["embed.weight"], combine(name, vectors, **params)["embed.weight"], 1e-5)


@every_rule
def test_a_rule_has_a_usual_scale_and_nothing_is_scaled_by_it_unasked(name: str) -> None:
    rule = RULES[name]
    assert 0 < rule.coefficient < 10
    assert "coefficient" not in rule.parameters()
    stack = torch.ones(tasks_of(rule, 3), 4, 4)
    own = replace(rule, coefficient=7.0)
    context = {"_base": torch.ones(4, 4), "_stats": [torch.eye(4)] * len(stack)}
    values = {**defaults(rule), **rule.accepted_parameters(context)}
    assert torch.equal(own(stack, **values), rule(stack, **values))


USUAL = {
    "sum": 0.3,
    "mean": 1,
    "ties": 1,
    "dare": 0.3,
    "dare+ties": 0.5,
    "dare+tsv": 1,
    "pcb": 1.2,
    "wudi": 1,
}
USUAL |= {"breadcrumbs": 0.3, "breadcrumbs+ties": 1, "magmax": 0.5, "iso_c": 1, "lines": 1, "magmax+lines": 1}
USUAL |= {"dare+ties+lines": 1, "dare+magmax": 0.5, "tatr": 0.3, "svc": 1, "tsv+svc": 1, "cart": 1}


@pytest.mark.parametrize("name", USUAL)
def test_the_usual_scale_is_that_of_the_source(name: str) -> None:
    assert RULES[name].coefficient == USUAL[name]
