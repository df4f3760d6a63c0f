"""What learning gives beside a vector: a recipe of the same model, a map, a record; the best step."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import taskvec as tv
from taskvec.coefficients.presets import preset
from taskvec.errors import InputError

Vectors = dict[str, tv.TaskVector]


@pytest.mark.parametrize("scope", ["task", "layer", "tensor"])
def test_a_recipe_makes_the_same_model(
    evaluator: tv.Evaluator, vectors: Vectors, tmp_path: Path, scope: str
) -> None:
    paths = {label: vector.save(tmp_path / f"{label}.safetensors") for label, vector in vectors.items()}
    stored = {label: tv.TaskVector.load(path) for label, path in paths.items()}
    chosen = tv.CoefficientSettings.parse("", {"scope": scope, "steps": 3, "batch": 8, "lr": 0.1})
    learned = tv.learn_coefficients(evaluator, stored, list(vectors), chosen)
    base = str(evaluator.backbone.source)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(learned.recipe(base, paths)))
    made, wanted = tv.open_recipe(tmp_path / "recipe.yaml").weights, tv.apply(base, learned.vector)
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("scope", ["task", "layer", "tensor"])
def test_a_recipe_of_coefficients_that_are_zero(
    evaluator: tv.Evaluator, vectors: Vectors, tmp_path: Path, scope: str
) -> None:
    paths = {label: vector.save(tmp_path / f"{label}.safetensors") for label, vector in vectors.items()}
    chosen = preset("atlas", {"scope": scope, "steps": 0})
    learned = tv.learn_coefficients(evaluator, vectors, list(vectors), chosen)
    base = str(evaluator.backbone.source)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(learned.recipe(base, paths)))
    made = tv.open_recipe(tmp_path / "recipe.yaml").weights
    assert all(torch.equal(made[name], value) for name, value in evaluator.pretrained.items())


@pytest.mark.parametrize("values", [{"scope": "partition"}, {"trim": 0.5}], ids=str)
def test_what_no_recipe_describes_is_refused(
    evaluator: tv.Evaluator, vectors: Vectors, values: dict[str, object]
) -> None:
    chosen = tv.CoefficientSettings.parse("", {"steps": 0, **values})
    learned = tv.learn_coefficients(evaluator, vectors, ["pets"], chosen)
    with pytest.raises(InputError, match="save the vector, and apply it with scale 1"):
        learned.recipe("base", dict.fromkeys(vectors, "x"))


def test_a_recipe_needs_every_path(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    learned = tv.learn_coefficients(evaluator, vectors, ["pets"], tv.CoefficientSettings(steps=0))
    with pytest.raises(InputError, match="no path for 'number'"):
        learned.recipe("base", {"pets": "x", "taste": "y"})


@pytest.mark.parametrize("scope", ["task", "layer", "tensor"])
def test_a_map_and_a_record(evaluator: tv.Evaluator, vectors: Vectors, tmp_path: Path, scope: str) -> None:
    pytest.importorskip("matplotlib")
    chosen = tv.CoefficientSettings.parse("", {"scope": scope, "steps": 1, "batch": 4})
    learned = tv.learn_coefficients(evaluator, vectors, list(vectors), chosen)
    learned.draw().draw().savefig(tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000
    record = json.loads(json.dumps(learned.record()))
    assert record["consumed"] == ["unlabelled validation inputs"] and len(record["trace"]) == 1


def test_the_best_step_is_kept(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    """With a rate that is far too high, the first step was the best."""
    changes = {"steps": 4, "batch": 16, "lr": 50.0, "weight_decay": 0.0}
    best = tv.learn_coefficients(
        evaluator, vectors, list(vectors), preset("supervised", {**changes, "keep": "best"})
    )
    last = tv.learn_coefficients(evaluator, vectors, list(vectors), preset("supervised", changes))
    assert {of["all"] for of in best.coefficients.values()} == {0.3}
    assert all(abs(of["all"]) > 1 for of in last.coefficients.values())
    with pytest.raises(InputError, match="keep: best goes by the loss of labels"):
        tv.CoefficientSettings.parse("", {"keep": "best"})
