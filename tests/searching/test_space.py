"""What is varied: paths into recipes, ranges, starts."""

from typing import Any

import pytest

from taskvec.config import parse_yaml
from taskvec.errors import InputError
from taskvec.searching.space import Space, open_space, parse_vary

VECTORS = {"base": "base", "vectors": {"math": "m", "code": "c"}}
RULED = {**VECTORS, "rule": "ties"}
FILTERED = {
    **RULED,
    "scale": {
        "filters": [{"match": "mlp", "value": 0.3}, {"match": "attn", "value": {"gradient": [0.5, 1]}}],
        "default": 1,
    },
}
SLERP: dict[str, Any] = {
    "merge_method": "slerp",
    "models": [{"model": "a"}, {"model": "b"}],
    "base_model": "a",
    "parameters": {"t": [{"filter": "mlp", "value": [0, 0.5, 1]}, {"value": 0.5}]},
}


def space_of(content: dict[str, Any], *vary: str) -> Space:
    return open_space("recipe.yaml", content, parse_vary(vary))


@pytest.mark.parametrize(
    ("content", "vary", "starts"),
    [
        ({**VECTORS, "expression": "0.4*math - 0.3*code"}, "weights.math=0..1.5", {"weights.math": 0.4}),
        (
            {**VECTORS, "expression": "2*(0.4*math - code/4)"},
            "weights.*=-1..1",
            {"weights.math": 0.8, "weights.code": -0.5},
        ),
        ({"base": "x", "vectors": {"one": "v"}}, "weights.one=0..2", {"weights.one": 1}),
        (RULED, "weights.code=0..2", {"weights.code": 1}),
        ({**RULED, "parameters": {"weights": [0.2, 0.7]}}, "weights.code=0..2", {"weights.code": 0.7}),
        ({**RULED, "parameters": {"weights": 0.3}}, "weights.math=0..2", {"weights.math": 0.3}),
        (RULED, "parameters.keep=0.05..0.5", {"parameters.keep": 0.2}),
        (RULED, "parameters.keep.code=0.05..0.5", {"parameters.keep.code": 0.2}),
        (RULED, "parameters.keep=0.5..0.9", {"parameters.keep": 0.7}),
        (RULED, "scale=0..1.5", {"scale": 1}),
        ({**RULED, "scale": {"gradient": [0.5, 1.0]}}, "scale.*=0..2", {"scale.0": 0.5, "scale.1": 1}),
        ({**RULED, "scale": {"gradient": [0.5, 1.0]}}, "scale.gradient.1=0..2", {"scale.1": 1}),
        (FILTERED, "scale.0=0..1", {"scale.0": 0.3}),
        (FILTERED, "scale.1.*=0..1", {"scale.1.0": 0.5, "scale.1.1": 1}),
        (FILTERED, "scale.default=0..2", {"scale.default": 1}),
        (SLERP, "parameters.t.0.1=0..1", {"parameters.t.0.1": 0.5}),
        (SLERP, "parameters.t.1=0..1", {"parameters.t.1": 0.5}),
        ({**VECTORS, "rule": "sum", "models": {"m-1.5": "x"}}, "weights.m-1.5=0..2", {"weights.m-1.5": 1}),
    ],
)
def test_a_path_leads_to_a_number_and_starts_there(
    content: dict[str, Any], vary: str, starts: dict[str, float]
) -> None:
    space = space_of(content, vary)
    assert space.values(space.start) == pytest.approx(starts)


def test_a_candidate_is_a_plain_recipe() -> None:
    space = space_of({**VECTORS, "expression": "0.4*math - 0.3*code"}, "weights.*=-1..1", "scale=0..2")
    assert space.recipe((0.5, -0.25, 1.0)) == {
        **VECTORS,
        "expression": "0.5*math - 0.25*code",
        "scale": 1.0,
    }
    ruled = space_of(RULED, "parameters.keep.code=0.05..0.5", "weights.math=0..1.5").recipe((0.1, 1.5))
    assert ruled["parameters"] == {
        "keep": {"math": 0.2, "code": 0.1},
        "weights": {"math": 1.5, "code": 1.0},
    }


def test_ranges_may_stand_in_the_recipe() -> None:
    content = {
        **RULED,
        "scale": {"gradient": [{"search": [0, 1], "start": 0.25}, 1.0]},
        "parameters": {"keep": {"search": [0.1, 0.9]}, "trim": {"choices": ["tensor", "global"]}},
    }
    space = space_of(content, "scale.1=0.5..2")
    assert space.values(space.start) == {
        "scale.0": 0.25,
        "parameters.keep": 0.5,
        "parameters.trim": "tensor",
        "scale.1": 1.0,
    }
    assert content["scale"] == {"gradient": [{"search": [0, 1], "start": 0.25}, 1.0]}  # stays as it was


def test_whole_numbers_and_choices_stay_what_they_are() -> None:
    space = space_of(RULED, "rule=ties|sum|mean", "scale=1..4:integer")
    for share in (0.0, 0.2, 0.4, 0.7, 1.0):
        values = space.values(space.numbers((share, share)))
        assert values["rule"] in ("ties", "sum", "mean") and isinstance(values["scale"], int)
    assert space.values(space.numbers((1.0, 1.0))) == {"rule": "mean", "scale": 4}


def test_an_alias_stands_for_numbers_of_their_own() -> None:
    shown = "{gradient: &line [{search: [0, 1]}, {search: [0, 2]}]}"
    text = f"base: b\nvectors: {{a: a}}\nrule: sum\nscale: {shown}\nparameters: {{weights: *line}}\n"
    space = space_of(parse_yaml(text))
    recipe = space.recipe((0.1, 0.2, 0.3, 0.4))
    assert recipe["scale"] == {"gradient": [0.1, 0.2]} and recipe["parameters"] == {"weights": [0.3, 0.4]}


@pytest.mark.parametrize(
    ("content", "vary", "complaint"),
    [
        (RULED, ["parameters.kep=0..1"], r"no number of recipe.yaml; did you mean 'parameters.keep'\?"),
        (RULED, ["weights.mathe=0..1"], r"no vector or model of that name; did you mean 'math'\?"),
        (RULED, ["max_shard_gb=0..1"], r"no number of recipe.yaml"),
        (RULED, ["scale=1..0"], r"an empty range 1\.\.0"),
        (RULED, ["scale=1..1"], r"an empty range 1\.\.1"),
        (RULED, ["scale=0..nan"], r"finite"),
        (RULED, ["scale=0.5"], r"expected a range LOW\.\.HIGH"),
        (RULED, ["scale"], r"expected PATH=LOW\.\.HIGH"),
        (RULED, ["scale=a..b"], r"expected two numbers"),
        (RULED, ["scale=0..1.5:integer"], r"expected whole ends"),
        (RULED, ["scale=1"], r"expected a range"),
        (RULED, ["rule=ties|ties"], r"expected two or more, each once"),
        (RULED, ["scale=0..1", "scale=0..2"], r"'scale' is given twice"),
        (RULED, ["weights.math=0..1", "parameters.weights.math=0..2"], r"'weights.math' is varied twice"),
        ({**RULED, "scale": {"search": [0, 1]}}, ["scale=0..2"], r"'scale' is varied twice"),
        ({**RULED, "scale": {"search": [0, 1], "integr": True}}, [], r"did you mean 'integer'\?"),
        ({**RULED, "scale": {"search": [0, 1], "choices": [1, 2]}}, [], r"expected search: .* or choices:"),
        ({**RULED, "scale": {"search": 3}}, [], r"recipe.yaml: scale: search"),
        ({**RULED, "scale": 2.0}, ["scale=0..1"], r"the recipe has 2, outside of 0\.\.1"),
        ({**RULED, "scale": 1.5}, ["scale=0..4:integer"], r"1.5, expected a whole number"),
        ({**RULED, "rule": "sum"}, ["rule=ties|mean"], r"'sum', none of the choices ties, mean"),
        (RULED, [], r"nothing to search; .*weights.math, weights.code, parameters.keep, scale"),
        ({**RULED, "rule": "magmax"}, ["weights.math=0..1"], r"rule 'magmax' takes no weights"),
        ({**RULED, "scale": {"gradient": [0, 1]}}, ["scale=0..1"], r"did you mean 'scale\.[01]'\?"),
        (RULED, ["parameters.trim=0..1"], r"'tensor', expected a number"),
    ],
)
def test_what_cannot_be_varied_is_refused_in_a_line(
    content: dict[str, Any], vary: list[str], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint) as refused:
        space_of(content, *vary)
    assert "\n" not in str(refused.value)
