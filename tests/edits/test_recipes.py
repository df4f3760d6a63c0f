"""Recipes: what they make is what arithmetic in float64 makes, and what does not fit is refused in a line."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import taskvec as tv
from taskvec.config import read_yaml
from taskvec.edits.card import render_card
from taskvec.edits.merge import Merge
from taskvec.edits.parameters import interpolate
from taskvec.edits.plan import make_plan
from taskvec.edits.recipe import Recipe, read
from taskvec.errors import BaseMismatch, InputError, KeyMismatch, OutputExists
from taskvec.vectors import TaskVector
from taskvec.vectors.info import BaseInfo
from taskvec.vectors.statistics import StatisticsInfo
from taskvec.weights import open_weights, save_weights

BLOCKS = 5
SHAPES = {
    "embed.weight": (6, 4),
    **{f"layers.{block}.{part}.weight": (4, 4) for block in range(BLOCKS) for part in ("attn", "mlp")},
    **{f"layers.{block}.norm.weight": (4,) for block in range(BLOCKS)},
    "head.weight": (6, 4),
}
EACH = {name: int(name.split(".")[1]) if name.startswith("layers") else None for name in SHAPES}
"""Tensor -> the number of its block."""
State = dict[str, Tensor]


def state(seed: int, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def moved(seed: int, dtype: torch.dtype = torch.float32) -> State:
    step = state(seed)
    return {name: (value.float() + 0.1 * step[name]).to(dtype) for name, value in state(0, dtype).items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three fine-tuned models, and a stored vector of the third."""
    folder = tmp_path_factory.mktemp("recipes")
    save_weights({**state(0), "steps": torch.arange(3)}, folder / "base")
    (folder / "base" / "config.json").write_text('{"dtype": "float32"}')
    for seed, name in enumerate(("a", "b", "c"), start=1):
        save_weights({**moved(seed), "steps": torch.arange(3) + seed}, folder / name)
    TaskVector.between(folder / "base", folder / "c").save(folder / "c.safetensors", task="third")
    return folder


@pytest.fixture
def made(place: Path) -> Callable[..., Merge]:
    """The merge that the keys of a recipe make; two models, if it names none."""

    def make(**keys: Any) -> Merge:
        default = {} if "models" in keys or "vectors" in keys else {"models": {"a": "a", "b": "b"}}
        content = {"base": "base", **default, **keys}
        return read(
            place / "recipe.yaml", {key: value for key, value in content.items() if value is not None}
        )

    return make


Made = Callable[..., Merge]


def deltas(*seeds: int) -> list[dict[str, Tensor]]:
    base = {name: value.double() for name, value in state(0).items()}
    return [{name: moved(seed)[name].double() - base[name] for name in SHAPES} for seed in seeds]


def check(merge: Merge, expected: Mapping[str, Tensor], tolerance: float = 1e-6) -> None:
    """The merge is base + ``expected``, and integers are the base's."""
    for name, value in state(0).items():
        torch.testing.assert_close(
            merge.weights[name].double(), value.double() + expected[name], rtol=0, atol=tolerance
        )
    assert torch.equal(merge.weights["steps"], torch.arange(3))


def summed(
    weights: Mapping[str, list[float]] | list[float], scale: Mapping[str, float] | float = 1.0
) -> State:
    """``scale (w_1 tau_a + w_2 tau_b)``, where weights and scale may differ from tensor to tensor."""
    first, second = deltas(1, 2)
    made = {}
    for name in SHAPES:
        one, two = weights[name] if isinstance(weights, Mapping) else weights
        factor = scale[name] if isinstance(scale, Mapping) else scale
        made[name] = factor * (one * first[name] + two * second[name])
    return made


def along(anchors: list[float], elsewhere: float) -> dict[str, float]:
    """Piecewise linear over the blocks, by numpy."""
    return {
        name: elsewhere if block is None else by_numpy(block / (BLOCKS - 1), anchors)
        for name, block in EACH.items()
    }


def by_numpy(depth: float, anchors: list[float]) -> float:
    return float(np.interp(depth, np.linspace(0, 1, len(anchors)), anchors))


def test_an_expression_is_a_linear_combination(made: Made) -> None:
    merge = made(expression="0.4*a - 0.3*b", scale=0.5)
    check(merge, summed([0.4, -0.3], 0.5))
    assert merge.passes() == (1, 0)


def test_what_is_left_out_is_said(made: Made) -> None:
    assert made(rule="sum").notes == (
        "a: differs, but integers are those of the base: 'steps'",
        "b: differs, but integers are those of the base: 'steps'",
    )


def test_models_and_stored_vectors_go_together(made: Made) -> None:
    merge = made(vectors={"c": "c.safetensors"}, models={"a": "a"}, expression="a + 2*c")
    first, third = deltas(1, 3)
    check(merge, {name: first[name] + 2 * third[name] for name in SHAPES})


def test_one_vector_needs_no_expression(made: Made) -> None:
    [third] = deltas(3)
    check(made(vectors={"c": "c.safetensors"}), third)


def test_weights_by_name_are_in_the_order_of_the_models(made: Made) -> None:
    check(made(rule="sum", parameters={"weights": {"b": -0.5, "a": 2}}), summed([2, -0.5]))
    check(made(rule="sum", parameters={"weights": [2, -0.5]}), summed([2, -0.5]))
    check(made(rule="sum", parameters={"weights": 0.25}), summed([0.25, 0.25]))


@pytest.mark.parametrize("target", ["b", 1])
def test_a_target_goes_by_name_or_number(made: Made, target: str | int) -> None:
    first, second = (torch.cat([delta.flatten() for delta in each.values()]) for each in deltas(1, 2))
    cosine = float(first @ second / first.norm() / second.norm())
    check(made(rule="cosine", parameters={"target": target}), summed([max(0.0, cosine), 1]))


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "7b-chat.v2", "математика-1"])
def test_names_for_a_rule_have_hyphens_and_dots(made: Made, name: str) -> None:
    merged = made(models={name: "a", "b": "b"}, rule="sum", parameters={"weights": {name: 0.5, "b": 2}})
    check(merged, summed([0.5, 2]))


def test_a_gradient_runs_from_the_first_block_to_the_last(made: Made) -> None:
    scale = along([0, 0.5, 3], elsewhere=0.25)
    check(made(rule="sum", scale={"gradient": [0, 0.5, 3], "default": 0.25}), summed([1, 1], scale))


def test_the_first_filter_that_matches_counts(made: Made) -> None:
    filters = [
        {"match": "re:.*norm.weight", "value": 0},
        {"match": "layers.0", "value": 2},
        {"match": "mlp", "value": {"gradient": [1, 0]}},
    ]
    depth = along([1, 0], elsewhere=0)
    scale = {
        name: 0.0
        if "norm" in name
        else 2.0
        if name.startswith("layers.0.")
        else depth[name]
        if "mlp" in name
        else 0.75
        for name in SHAPES
    }
    merge = made(rule="sum", scale={"filters": filters, "default": 0.75})
    check(merge, summed([1, 1], scale))
    assert torch.equal(merge.weights["layers.3.norm.weight"], state(0)["layers.3.norm.weight"])


def test_weights_vary_by_vector_and_by_depth(made: Made) -> None:
    merge = made(
        rule="sum",
        parameters={
            "weights": {
                "a": {"gradient": [0, 1], "default": 0.5},
                "b": {"filters": [{"match": "mlp", "value": -1}], "default": 2},
            }
        },
    )
    depth = along([0, 1], elsewhere=0.5)
    check(merge, summed({name: [depth[name], -1.0 if "mlp" in name else 2.0] for name in SHAPES}))


def test_weights_that_vary_are_normalised_tensor_by_tensor(made: Made) -> None:
    merge = made(rule="mean", parameters={"weights": {"a": {"gradient": [1, 3], "default": 1}, "b": 1}})
    depth = along([1, 3], elsewhere=1)
    shares = {name: [depth[name] / (depth[name] + 1), 1 / (depth[name] + 1)] for name in SHAPES}
    check(merge, summed(shares))


def ties(stack: list[Tensor], keep: float) -> Tensor:
    """TIES written anew, with a sort."""
    trimmed = []
    for delta in stack:
        flat = delta.flatten()
        kept = max(1, round(keep * len(flat)))
        largest = flat.abs().sort(descending=True).indices[:kept]
        trimmed.append(torch.zeros_like(flat).index_copy(0, largest, flat[largest]))
    votes = torch.stack(trimmed)
    sign = torch.where(votes.sum(0) < 0, -1.0, 1.0)
    agree = (votes.sign() == sign).double()
    return ((votes * agree).sum(0) / agree.sum(0).clamp(min=1)).reshape(stack[0].shape)


def test_ties_keeps_another_fraction_in_each_kind_of_layer(made: Made) -> None:
    keep = {"filters": [{"match": "mlp", "value": 0.75}], "default": 0.25}
    merge = made(rule="ties", parameters={"keep": keep}, scale=0.5)
    first, second = deltas(1, 2)
    expected = {
        name: 0.5 * ties([first[name], second[name]], 0.75 if "mlp" in name else 0.25) for name in SHAPES
    }
    check(merge, expected)
    assert merge.record["rule"]["elect"] == "mass"
    assert "keep" not in merge.record["rule"]  # it differs from tensor to tensor; the recipe says how


def test_averages_of_whole_models_need_no_base(made: Made) -> None:
    merge = made(
        base=None, models={"a": "a", "b": "b", "c": "c"}, rule="mean", parameters={"weights": [1, 2, 1]}
    )
    states = [moved(seed) for seed in (1, 2, 3)]
    for name in SHAPES:
        one, two, three = (values[name].double() for values in states)
        expected = (one + 2 * two + three) / 4
        torch.testing.assert_close(merge.weights[name].double(), expected, rtol=0, atol=1e-6)
    assert "no base: config, tokenizer and integer tensors are those of the first model, 'a'" in merge.notes
    assert set(merge.inputs) == {"a", "b", "c"}


def test_slerp_of_weights_needs_no_base(made: Made) -> None:
    merge = made(base=None, rule="slerp", parameters={"t": {"gradient": [0, 1], "default": 0.5}})
    depth = along([0, 1], elsewhere=0.5)
    for name in SHAPES:
        p, q = moved(1)[name].double(), moved(2)[name].double()
        angle = torch.arccos((p * q).sum() / p.norm() / q.norm())
        t = depth[name]
        point = (torch.sin((1 - t) * angle) * p + torch.sin(t * angle) * q) / torch.sin(angle)
        if torch.cos(angle) > 0.9995:
            point = (1 - t) * p + t * q
        torch.testing.assert_close(merge.weights[name].double(), point, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_the_dtype_of_the_result(made: Made, dtype: str) -> None:
    merge = made(expression="a + b", dtype=dtype)
    kind = getattr(torch, dtype)
    assert {merge.weights.spec(name).dtype for name in SHAPES} == {kind}
    assert merge.weights.spec("steps").dtype == torch.int64
    assert merge.files["config.json"] == f'{{\n  "dtype": "{dtype}"\n}}\n'
    wanted = (state(0)["embed.weight"].double() + summed([1, 1])["embed.weight"]).to(kind)
    torch.testing.assert_close(merge.weights["embed.weight"], wanted, rtol=1e-2, atol=1e-6)


anchors = st.lists(st.floats(-2, 2, allow_nan=False), min_size=2, max_size=6)


@given(anchors, st.floats(0, 1))
def test_gradients_interpolate_as_numpy_does(values: list[float], depth: float) -> None:
    assert interpolate(values, depth) == pytest.approx(by_numpy(depth, values), abs=1e-12)


@settings(max_examples=10, deadline=None)
@given(st.floats(-2, 2), st.sampled_from(["sum", "ties", "mean"]))
def test_a_value_is_the_same_in_every_form(place: Path, value: float, rule: str) -> None:
    forms = (
        value,
        {"gradient": [value, value, value], "default": value},
        {"filters": [{"match": "mlp", "value": value}], "default": value},
        {"filters": [{"match": "re:.*", "value": {"gradient": [value, value], "default": value}}]},
    )
    content = {"base": "base", "models": {"a": "a", "b": "b"}, "rule": rule}
    made = [read(place / "recipe.yaml", {**content, "scale": form}).weights for form in forms]
    for name in ("embed.weight", "layers.1.mlp.weight"):
        for weights in made[1:]:
            torch.testing.assert_close(weights[name], made[0][name], rtol=0, atol=1e-6)


def test_the_schema_names_every_key() -> None:
    schema = Recipe.model_json_schema()
    assert set(schema["properties"]) >= {"base", "vectors", "models", "rule", "parameters", "scale", "dtype"}
    assert schema["additionalProperties"] is False
    assert all("description" in field for field in schema["properties"].values())
    assert set(schema["$defs"]) >= {"Gradient", "Filters", "Filter"}


def test_the_plan_counts_and_writes_nothing(made: Made, place: Path) -> None:
    before = sorted(place.iterdir())
    found = make_plan(made(rule="ties", parameters={"trim": "global"}), place / "out", memory=1e6)
    assert (found.edited, found.copied) == (len(SHAPES), 1)
    assert found.passes > found.ahead > 0
    assert found.read == sum(
        (place / name / "model.safetensors").stat().st_size for name in ("base", "a", "b")
    )
    assert sum(found.shards) <= found.written
    assert (found.largest, found.largest_bytes) == ("embed.weight", 6 * 4 * 4)
    assert found.seconds > 0
    assert sorted(place.iterdir()) == before
    with pytest.raises(OutputExists, match="input"):
        make_plan(made(rule="ties"), place / "a", memory=1e6, force=True)


def test_the_plan_knows_the_shards_that_are_written(made: Made, place: Path, tmp_path: Path) -> None:
    merge = made(expression="a + b", max_shard_gb=300e-9)
    found = make_plan(merge, tmp_path / "out", memory=1e6)
    save_weights(merge.weights, tmp_path / "out", max_shard_size=merge.max_shard_size, like=merge.like)
    written = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert [path.stat().st_size for path in written] == list(found.shards)


def test_the_card_says_what_the_model_is_made_of(made: Made, place: Path) -> None:
    text = render_card(made(rule="ties", parameters={"keep": 0.5}), "out")
    assert "# out" in text
    assert "keep: 0.5" in text
    assert open_weights(place / "a").fingerprint() in text


BAD: dict[str, tuple[dict[str, Any], type[InputError], str]] = {
    "unknown key": ({"paramaters": {}}, InputError, "unknown key 'paramaters'; did you mean 'parameters'"),
    "unknown parameter": (
        {"rule": "ties", "parameters": {"kep": 1}},
        InputError,
        "'kep'; did you mean 'keep'",
    ),
    "unknown rule": ({"rule": "tise"}, InputError, "did you mean 'ties'"),
    "unknown key in a filter": (
        {"rule": "ties", "scale": {"filters": [{"mach": "mlp", "value": 1}], "default": 1}},
        InputError,
        "scale: unknown key 'mach' in 'filters.0'; did you mean 'match'",
    ),
    "misspelt gradient": (
        {"rule": "ties", "scale": {"gradent": [0, 1]}},
        InputError,
        "did you mean 'gradient'",
    ),
    "misspelt filters": (
        {"rule": "ties", "parameters": {"keep": {"filtres": [{"match": "mlp", "value": 1}]}}},
        InputError,
        "did you mean 'filters'",
    ),
    "NaN in a weight": ({"rule": "sum", "parameters": {"weights": [1, float("nan")]}}, InputError, "finite"),
    "infinity in a weight by name": (
        {"rule": "sum", "parameters": {"weights": {"a": 1, "b": float("inf")}}},
        InputError,
        "parameters.weights: b: inf, expected a finite number",
    ),
    "NaN in a gradient": (
        {"rule": "sum", "scale": {"gradient": [0, float("nan")]}},
        InputError,
        "gradient.1",
    ),
    "NaN in the scale": ({"rule": "sum", "scale": float("nan")}, InputError, "scale: nan"),
    "a scale beyond float32": ({"rule": "sum", "scale": 1e39}, InputError, "that float32 can hold"),
    "a scale of 400 digits": ({"rule": "sum", "scale": 10**400}, InputError, "that float32 can hold"),
    "a word for the scale": (
        {"rule": "sum", "scale": "half"},
        InputError,
        "scale: 'half', expected a number",
    ),
    "a gradient of one value": ({"rule": "sum", "scale": {"gradient": [1]}}, InputError, "at least 2"),
    "a gradient leaves tensors out": (
        {"rule": "sum", "scale": {"gradient": [0, 1]}},
        InputError,
        r"no block gives 'embed.weight' a value \(1 more\); add a default",
    ),
    "filters leave tensors out": (
        {"rule": "sum", "scale": {"filters": [{"match": "layers", "value": 1}]}},
        InputError,
        "no filter gives 'embed.weight' a value",
    ),
    "a filter that matches nothing": (
        {"rule": "sum", "scale": {"filters": [{"match": "conv", "value": 1}], "default": 1}},
        InputError,
        r"filter 1 \('conv'\): no tensor's name matches",
    ),
    "a filter behind another": (
        {
            "rule": "sum",
            "scale": {
                "filters": [{"match": "layers", "value": 1}, {"match": "mlp", "value": 2}],
                "default": 1,
            },
        },
        InputError,
        r"filter 2 \('mlp'\): all it matches is taken by earlier filters",
    ),
    "a broken pattern": (
        {"rule": "sum", "scale": {"filters": [{"match": "re:(", "value": 1}], "default": 1}},
        InputError,
        "not a regular expression",
    ),
    "an unknown vector": (
        {"rule": "sum", "parameters": {"weights": {"a": 1, "bb": 1}}},
        InputError,
        "no vector or model called 'bb'; did you mean 'b'",
    ),
    "an unknown target": (
        {"rule": "cosine", "parameters": {"target": "aa"}},
        InputError,
        "parameters.target: no vector or model called 'aa'; did you mean 'a'",
    ),
    "a vector without weight": (
        {"rule": "sum", "parameters": {"weights": {"a": 1}}},
        InputError,
        "no value for 'b'",
    ),
    "three weights of two": ({"rule": "sum", "parameters": {"weights": [1, 2, 3]}}, InputError, "3 values"),
    "an empty density": ({"rule": "dare", "parameters": {"density": 0}}, InputError, "density is 0"),
    "a gradient down to an empty density": (
        {"rule": "dare", "parameters": {"density": {"gradient": [0, 1], "default": 1}}},
        InputError,
        "density is 0",
    ),
    "more outliers than entries": (
        {"rule": "breadcrumbs", "parameters": {"density": 0.5, "gamma": 0.6}},
        InputError,
        "add up to more than 1",
    ),
    "a threshold of the whole model that varies": (
        {
            "rule": "ties",
            "parameters": {"trim": "global", "keep": {"gradient": [0.1, 0.5], "default": 0.2}},
        },
        InputError,
        "rule 'ties': keep differs from tensor to tensor, but 'ties' looks at the whole model",
    ),
    "the same model twice": (
        {"models": {"a": "a", "again": "a/model.safetensors"}, "rule": "sum"},
        InputError,
        "'a' and 'again' are the same",
    ),
    "a name twice": (
        {"models": {"c": "a"}, "vectors": {"c": "c.safetensors"}, "rule": "sum"},
        InputError,
        "'c' is a vector and a model",
    ),
    "a reserved name": ({"models": {"default": "a"}}, InputError, "the name 'default'"),
    "a name of two words": ({"models": {"my model": "a"}}, InputError, "the name 'my model'"),
    "a hyphen in an expression": (
        {"models": {"a-b": "a", "c": "b"}, "expression": "a - b + c"},
        InputError,
        "the name 'a-b', expected one word of letters, digits and _; an expression takes - and .",
    ),
    "a name that begins with a dot": ({"models": {".a": "a"}}, InputError, "the name '.a'"),
    "no models": ({"models": {}}, InputError, "no vectors and no models"),
    "neither rule nor expression": ({}, InputError, "expected an expression over them, or a rule"),
    "rule and expression": ({"rule": "sum", "expression": "a+b"}, InputError, "expected one of them"),
    "a name that the expression lacks": ({"expression": "a"}, InputError, "'b' is not in the expression"),
    "parameters without a rule": (
        {"expression": "a+b", "parameters": {"keep": 1}},
        InputError,
        "parameters without a rule",
    ),
    "statistics missing": ({"rule": "fisher"}, InputError, "statistics: missing"),
    "no base": ({"base": None, "rule": "ties"}, InputError, "base: missing, but rule 'ties' starts from one"),
    "no base, one model": ({"base": None, "models": {"a": "a"}, "rule": "mean"}, InputError, "two or more"),
    "no base, a scale": ({"base": None, "rule": "mean", "scale": 0.5}, InputError, "a scale without a base"),
    "a path that is not there": (
        {"models": {"a": "a", "b": "nowhere"}, "rule": "sum"},
        InputError,
        "models: b: .*nowhere: no such file or folder; paths are relative to the recipe",
    ),
    "weights among the vectors": (
        {"models": {}, "vectors": {"a": "a"}},
        InputError,
        "holds weights, expected a task vector",
    ),
    "a vector among the models": (
        {"models": {"c": "c.safetensors"}},
        InputError,
        "holds a task vector, expected the weights",
    ),
    "a dtype that does not exist": ({"expression": "a+b", "dtype": "bf16"}, InputError, "dtype: "),
    "shards of no size": ({"expression": "a+b", "max_shard_gb": 0}, InputError, "max_shard_gb: "),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_in_a_line(made: Made, place: Path, case: str) -> None:
    keys, kind, message = BAD[case]
    with pytest.raises(kind, match=message) as told:
        made(**keys)
    assert str(told.value).startswith(str(place / "recipe.yaml"))
    assert "\n" not in str(told.value)


def test_statistics_go_by_the_names_of_the_models(made: Made, place: Path, tmp_path: Path) -> None:
    information = {name: {k: v.abs() for k, v in state(seed).items()} for name, seed in (("a", 7), ("b", 8))}
    for name, tensors in information.items():
        said = StatisticsInfo(
            kind="fisher",
            model=BaseInfo(ref=str(place / name)),
            task=name,
            data="none",
            split="validation",
            examples=1,
            seed=0,
        )
        save_weights(tensors, tmp_path / f"{name}.safetensors", metadata=said.header())
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in ("b", "a")}
    merge = made(rule="fisher", statistics=paths, parameters={"floor": 0})
    first, second = deltas(1, 2)
    one, two = ({n: v.double() for n, v in information[name].items()} for name in ("a", "b"))
    expected = {n: (one[n] * first[n] + two[n] * second[n]) / (one[n] + two[n]) for n in SHAPES}
    check(merge, expected, tolerance=1e-5)
    assert "statistics of a" in merge.inputs
    with pytest.raises(InputError, match="no value for 'b'"):
        made(rule="fisher", statistics={"a": paths["a"]})


def test_masked_vectors_are_named_with_their_task(made: Made, place: Path) -> None:
    models = {name: TaskVector.between(place / "base", place / name) for name in ("a", "b")}
    masked = tv.emr(models)
    if not (place / "masked.safetensors").exists():
        masked.save(place / "masked.safetensors")
    keys = {"vectors": {"x": "masked.safetensors#a", "y": "masked.safetensors#b"}, "models": {}}
    expected = {
        name: masked.vector("a")[name].double() - 2 * masked.vector("b")[name].double() for name in SHAPES
    }
    check(made(**keys, expression="x - 2*y"), expected)
    with pytest.raises(InputError, match="'x' and 'again' are the same"):
        made(vectors={"x": "masked.safetensors#a", "again": "masked.safetensors#a"}, models={}, rule="sum")


def test_a_recipe_that_holds_itself_is_refused(made: Made) -> None:
    value: dict[str, Any] = {"default": 1, "filters": []}
    value["filters"].append({"match": "mlp", "value": value})
    with pytest.raises(InputError, match="nested too deeply"):
        made(rule="sum", scale=value)


def test_the_base_among_the_models_is_noted(made: Made) -> None:
    merge = made(models={"a": "a", "same": "base"}, rule="mean")
    assert "same: the base itself, so its task vector is zero" in merge.notes
    check(merge, summed([0.5, 0]))


def test_a_vector_of_another_base_is_refused_unless_it_is_asked_for(made: Made, place: Path) -> None:
    with pytest.raises(BaseMismatch):
        made(base="a", vectors={"c": "c.safetensors"})
    merge = made(base="a", vectors={"c": "c.safetensors"}, allow_other_base=True)
    [third] = deltas(3)
    wanted = moved(1)["head.weight"].double() + third["head.weight"]
    torch.testing.assert_close(merge.weights["head.weight"].double(), wanted, rtol=0, atol=1e-6)


def changed(name: str) -> State:
    tensors = moved(1)
    if name == "shape":
        tensors["layers.0.mlp.weight"] = torch.zeros(5, 4)
    elif name == "vocabulary":
        tensors["embed.weight"] = torch.zeros(9, 4)
    elif name == "extra":
        tensors["layers.9.mlp.weight"] = torch.zeros(4, 4)
    elif name == "missing":
        del tensors["head.weight"]
    elif name == "dtype":
        tensors["head.weight"] = tensors["head.weight"].to(torch.float8_e5m2)
    return tensors


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shape", r"'layers.0.mlp.weight' has shape \(5, 4\)"),
        ("vocabulary", "vocabularies of 9 and 6 tokens"),
        ("extra", "'layers.9.mlp.weight' found"),
        ("missing", "'head.weight' is missing"),
        ("dtype", "'head.weight' has dtype float8_e5m2"),
    ],
)
def test_models_that_do_not_match_are_refused(place: Path, tmp_path: Path, kind: str, message: str) -> None:
    save_weights({**changed(kind), "steps": torch.arange(3)}, tmp_path / "odd")
    content = {"base": str(place / "base"), "models": {"a": str(place / "a"), "odd": "odd"}, "rule": "mean"}
    with pytest.raises(KeyMismatch, match=message):
        read(tmp_path / "recipe.yaml", content)
    policies = {"on_extra": "drop", "on_missing": "zero"}
    if kind in ("extra", "missing"):
        merge = read(tmp_path / "recipe.yaml", {**content, **policies})
        assert sum(note.startswith("odd: ") for note in merge.notes) == 1
        assert set(merge.weights) == {*SHAPES, "steps"}


PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL))
def test_every_recipe_of_the_documentation_is_valid(tmp_path: Path, block: str) -> None:
    names = [
        f"model.layers.{layer}.{part}.weight"
        for layer in range(3)
        for part in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    ]
    shapes = dict.fromkeys(("model.embed_tokens.weight", *names, "lm_head.weight"), (4, 4))
    for seed, folder in enumerate(("base", "math", "code", "chat")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        save_weights(tensors, tmp_path / folder)
    TaskVector.between(tmp_path / "base", tmp_path / "chat").save(tmp_path / "chat.safetensors")
    (tmp_path / "recipe.yaml").write_text(block)
    merge = tv.open_recipe(tmp_path / "recipe.yaml")
    assert all(bool(merge.weights[name].isfinite().all()) for name in shapes)
    assert not torch.equal(merge.weights["lm_head.weight"], open_weights(tmp_path / "base")["lm_head.weight"])


def test_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("a: [1e-1, 2E+3, -1e4, 12, 1.5e-3, x1e-1, 1e]\n")
    assert read_yaml(tmp_path / "r.yaml") == {"a": [0.1, 2000.0, -1e4, 12, 0.0015, "x1e-1", "1e"]}
