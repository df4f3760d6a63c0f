"""Edits in float64: the result is the float64 computation, rounded once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edits.mergekit_models import run
from taskvec.edits import recipe
from taskvec.errors import InputError
from taskvec.rules.dare import dare
from taskvec.rules.rule import Place
from taskvec.vectors import TaskVector, apply, combine
from taskvec.weights import open_weights, save_weights
from taskvec.weights.dtypes import rounded

SHAPES = {"layer.0.weight": (40, 30), "layer.1.weight": (9, 5, 4), "bias": (7,), "scale": ()}
WEIGHTS = (0.3, -1.7, 0.9)


def models(dtype: torch.dtype) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """A base and three models that lie close to it."""
    generator = torch.Generator().manual_seed(0)
    base = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()
    }
    tuned = [
        {
            name: v + 0.1 * torch.randn(v.shape, generator=generator, dtype=torch.float64)
            for name, v in base.items()
        }
        for _ in WEIGHTS
    ]
    return {n: v.to(dtype) for n, v in base.items()}, [
        {n: v.to(dtype) for n, v in one.items()} for one in tuned
    ]


def nearest(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest numbers that a narrow type can hold, by looking at its neighbours, ties to even."""
    guess = values.to(dtype)
    up, down = (torch.nextafter(guess, torch.full_like(guess, end)) for end in (torch.inf, -torch.inf))
    options = torch.stack([guess, up, down])
    distance = (options.double() - values).abs()
    best = distance.min(0).values
    integer = (
        torch.int64 if dtype == torch.float64 else torch.int32 if dtype == torch.float32 else torch.int16
    )
    odd = options.view(integer) & 1
    cost = torch.where(distance == best, odd.double(), 2.0)
    return options.gather(0, cost.argmin(0, keepdim=True))[0]


def summed(deltas: Tensor, name: str) -> Tensor:
    return WEIGHTS[0] * deltas[0] + WEIGHTS[1] * deltas[1] + WEIGHTS[2] * deltas[2]


def trimmed(deltas: Tensor, name: str) -> Tensor:
    kept = deltas.clone().reshape(3, -1)
    for row in kept:
        row[row.abs().argsort(descending=True, stable=True)[max(1, round(0.3 * len(row))) :]] = 0
    sign = torch.where(kept.sum(0) < 0, -1.0, 1.0)
    agree = kept * (kept.sign() == sign)
    total = agree[0] + agree[1] + agree[2]
    return (total / (agree != 0).sum(0).clamp(min=1)).reshape(deltas.shape[1:])


def dropped(deltas: Tensor, name: str) -> Tensor:
    kept = dare(deltas, density=0.5, _place=Place(name))
    return kept[0] + kept[1] + kept[2]


EDITS: dict[str, tuple[dict[str, Any], Callable[[Tensor, str], Tensor]]] = {
    "sum": ({"weights": WEIGHTS}, summed),
    "ties": ({"keep": 0.3}, trimmed),
    "dare": ({"density": 0.5}, dropped),
}


@pytest.mark.parametrize("rule", EDITS)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_the_result_is_the_float64_computation_rounded_once(
    stored: torch.dtype, rule: str, dtype: torch.dtype | None
) -> None:
    base, tuned = models(stored)
    params, oracle = EDITS[rule]
    edit = combine(rule, [TaskVector.between(base, one) for one in tuned], **params)
    made = apply(base, edit, 0.7, dtype=dtype, precision=torch.float64)
    for name in SHAPES:
        origin = base[name].double()
        deltas = torch.stack([one[name].double() - origin for one in tuned])
        exact = origin + 0.7 * oracle(deltas, name)
        best = (nearest(exact, dtype or stored).double() - exact).abs()
        assert made[name].dtype == (dtype or stored)
        # The oracle sums in another order, so it may be off by the last bits of float64.
        assert bool(((made[name].double() - exact).abs() <= best + 1e-14).all())


def test_float32_is_not_enough_for_that() -> None:
    base, tuned = models(torch.float32)
    edit = combine("sum", [TaskVector.between(base, one) for one in tuned], weights=WEIGHTS)
    narrow, wide = apply(base, edit), apply(base, edit, precision=torch.float64)
    assert not torch.equal(narrow["layer.0.weight"], wide["layer.0.weight"])
    error = (narrow["layer.0.weight"] - wide["layer.0.weight"]).abs().max()
    assert error <= 4 * torch.finfo(torch.float32).eps * 4


def test_thresholds_of_the_whole_model_are_found_in_the_same_precision() -> None:
    base, tuned = models(torch.float32)
    vectors = [TaskVector.between(base, one) for one in tuned]
    made = combine("ties", vectors, keep=0.3, trim="global", merge="sum")
    deltas = {n: torch.stack([one[n].double() - base[n].double() for one in tuned]) for n in SHAPES}
    flat = torch.cat([stack.reshape(3, -1) for stack in deltas.values()], dim=1)
    for row in flat:
        row[row.abs().argsort(descending=True, stable=True)[round(0.3 * len(row)) :]] = 0
    sign = torch.where(flat.sum(0) < 0, -1.0, 1.0)
    expected = (flat * (flat.sign() == sign)).sum(0)
    found = torch.cat([made.read(name, None, torch.float64).reshape(-1) for name in SHAPES])
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    apply(base, made, precision=torch.float64).prepare()


def test_float64_is_rounded_to_16_bits_once() -> None:
    just_above = torch.tensor([1 + 2**-8 + 2**-40], dtype=torch.float64)
    assert rounded(just_above, torch.bfloat16).item() == 1 + 2**-7
    assert just_above.to(torch.bfloat16).item() == 1  # by way of float32
    generator = torch.Generator().manual_seed(1)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        values = torch.randn(5000, generator=generator, dtype=torch.float64)
        middle = (
            values.to(dtype).double()
            + torch.nextafter(values.to(dtype), torch.tensor(9.0, dtype=dtype)).double()
        ) / 2
        many = torch.cat([values, middle, middle * (1 + 2**-45), middle * (1 - 2**-45)])
        assert torch.equal(rounded(many, dtype), nearest(many, dtype))
    ends = torch.tensor([torch.inf, -torch.inf, 1e300, -0.0, 1e-320], dtype=torch.float64)
    assert rounded(ends, torch.bfloat16).tolist() == [torch.inf, -torch.inf, torch.inf, 0, 0]
    assert rounded(torch.tensor([torch.nan], dtype=torch.float64), torch.float16).isnan().all()


def test_a_wider_result_keeps_what_the_base_could_not_hold() -> None:
    base, tuned = models(torch.bfloat16)
    made = apply(base, 0.5 * TaskVector.between(base, tuned[0]), dtype=torch.float32)
    middle = (base["bias"].double() + tuned[0]["bias"].double()) / 2
    torch.testing.assert_close(made["bias"].double(), middle, rtol=1e-7, atol=0)


def test_another_precision_is_refused() -> None:
    base, tuned = models(torch.float32)
    with pytest.raises(InputError, match="precision: bfloat16, expected float32 or float64"):
        apply(base, TaskVector.between(base, tuned[0]), precision=torch.bfloat16)


def test_the_command_and_the_recipe_take_a_precision(tmp_path: Path) -> None:
    base, tuned = models(torch.float32)
    for name, tensors in {"base": base, "a": tuned[0], "b": tuned[1]}.items():
        save_weights(tensors, tmp_path / f"{name}.safetensors")
    vectors = {name: TaskVector.between(base, one) for name, one in zip("ab", tuned, strict=False)}
    for name, vector in vectors.items():
        vector.save(tmp_path / f"v{name}.safetensors")
    loaded = [TaskVector.load(tmp_path / f"v{name}.safetensors") for name in "ab"]
    edit = 0.3 * loaded[0] - 1.7 * loaded[1]
    expected = apply(open_weights(tmp_path / "base.safetensors"), edit, precision=torch.float64)
    given = {name: str(tmp_path / f"v{name}.safetensors") for name in "ab"}
    said = {"base": str(tmp_path / "base.safetensors"), "vectors": given, "expression": "0.3*a - 1.7*b"}
    made = recipe.read(tmp_path / "recipe.yaml", {**said, "precision": "float64"}).weights
    words = ["apply", said["base"], "-e", said["expression"], "-o", str(tmp_path / "out.safetensors")]
    run(*words, *(w for n, path in given.items() for w in ("-v", f"{n}={path}")), "--precision", "float64")
    written = open_weights(tmp_path / "out.safetensors")
    for name in SHAPES:
        assert torch.equal(made[name], expected[name])
        assert torch.equal(written[name], expected[name])
    with pytest.raises(InputError, match="precision"):
        recipe.read(tmp_path / "recipe.yaml", {**said, "precision": "float16"})


def test_a_linear_rule_with_weights_of_single_tensors_stays_a_linear_form() -> None:
    base, tuned = models(torch.float32)
    vectors = [TaskVector.between(base, one) for one in tuned]
    own = {"bias": (0.0, 1.0, 0.0), "layer.0.weight": (1.0, 1.0, -2.0)}
    made = combine("sum", vectors, weights=WEIGHTS, each={n: {"weights": w} for n, w in own.items()})
    for name in SHAPES:
        factors = own.get(name, WEIGHTS)
        expected = sum(
            w * (one[name].double() - base[name].double()) for w, one in zip(factors, tuned, strict=True)
        )
        torch.testing.assert_close(made[name].double(), expected, rtol=1e-5, atol=1e-6)
        assert [(source, c) for source, c in made.terms_at(name)] == [
            (next(iter(vector.terms)), w) for vector, w in zip(vectors, factors, strict=True) if w
        ]
    assert torch.equal(apply(base, made)["bias"], tuned[1]["bias"])  # bit for bit
    average = combine("mean", vectors, each={"bias": {"weights": (1, 1, 2)}})
    assert [c for _, c in average.terms_at("bias")] == [0.25, 0.25, 0.5]
    with pytest.raises(InputError, match="parameters for 'bais': no such tensor"):
        combine("sum", vectors, each={"bais": {"weights": WEIGHTS}})


def test_factors_of_factors_that_overflow_are_refused() -> None:
    base, tuned = models(torch.float32)
    vector = TaskVector.between(base, tuned[0]).scaled({"bias": 1e30}).scaled({"bias": 1e30})
    with pytest.raises(InputError, match=r"scale of 'bias': .*e\+60, expected a finite float32"):
        vector["bias"]
