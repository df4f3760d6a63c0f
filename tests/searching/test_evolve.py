"""Files of mergekit-evolve: what they stand for, and what is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

import taskvec as tv
from edits.mergekit_models import save_models
from taskvec.errors import InputError
from taskvec.searching.evolve import Evolution, read_evolution
from taskvec.searching.scores import FunctionScore


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evolved")
    save_models(folder)
    return folder


def size(weights: Mapping[str, Tensor]) -> float:
    return -sum(float(weights[name].float().abs().sum()) for name in weights)


def write(folder: Path, **genome: Any) -> Path:
    path = folder / "evolve.yaml"
    path.write_text(yaml.safe_dump({"genome": genome, "tasks": [{"name": "arc_easy"}]}))
    return path


@pytest.mark.parametrize(
    ("genome", "numbers", "start"),
    [
        ({"merge_method": "linear"}, 2, 0.5),
        ({"merge_method": "task_arithmetic", "base_model": "base"}, 2, 0.5),
        ({"merge_method": "task_arithmetic", "base_model": "base", "filters": ["self_attn", "mlp"]}, 6, 0.5),
        ({"merge_method": "ties", "base_model": "base"}, 4, None),
        ({"merge_method": "dare_ties", "base_model": "a", "layer_granularity": 1}, None, None),
        ({"merge_method": "ties", "base_model": "base", "layer_granularity": 1, "smooth": True}, None, None),
        ({"merge_method": "slerp"}, 1, 0.5),
        ({"merge_method": "slerp", "layer_granularity": 1}, None, 0.5),
    ],
)
def test_each_method_is_searched(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    genome: dict[str, Any],
    numbers: int | None,
    start: float | None,
) -> None:
    monkeypatch.chdir(models)
    path = write(tmp_path, models=["a", "b"], **genome)
    found = tv.search(path, (), size, method="random", evaluations=2, folder=tmp_path / "run")
    assert numbers is None or len(found.values) == numbers
    assert start is None or set(found.start.values.values()) == {start}
    monkeypatch.chdir(tmp_path)  # paths in what is found hold from everywhere
    assert size(tv.open_recipe(tmp_path / "run" / "best.yaml").weights) == found.best.figures["score"]


def test_a_layer_granularity_gives_each_group_numbers_of_its_own(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    genome = {"models": ["a", "b"], "merge_method": "linear", "layer_granularity": 1}
    whole = tv.search(write(tmp_path, **genome), (), size, method="random", evaluations=1)
    layers = len(whole.values) // 2
    assert layers > 1 and "slices.0.sources.1.parameters.weight" in whole.values
    smooth = tv.search(write(tmp_path, **genome, smooth=True), (), size, method="random", evaluations=1)
    assert f"models.1.parameters.weight.{layers - 1}" in smooth.values
    with pytest.raises(InputError, match=rf"layer_granularity: {layers + 1}, expected a divisor"):
        tv.search(write(tmp_path, **{**genome, "layer_granularity": layers + 1}), (), size)


def test_negative_weights_are_searched_where_they_are_allowed(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    given = {"models": ["a", "b"], "merge_method": "linear", "normalize": False}
    for allowed in (False, True):
        path = write(tmp_path, **given, allow_negative_weights=allowed)
        found = tv.search(path, (), size, method="grid", points=2, evaluations=5)
        values = {value for each in found.evaluations for value in each.values.values()}
        assert min(values) == (-1.5 if allowed else 0)


@pytest.mark.parametrize(
    ("genome", "complaint"),
    [
        ({"merge_method": "della"}, r"a method that is not searched, expected one of linear"),
        ({"merge_method": "ties"}, r"base_model: missing, but ties starts from one"),
        ({"merge_method": "linear", "layer_granularty": 2}, r"did you mean 'layer_granularity'\?"),
        ({"merge_method": "slerp", "filters": ["mlp"]}, r"smooth, filters: of slerp there are none"),
        ({"merge_method": "slerp", "models": ["a", "b", "c"]}, r"models: 3 for slerp, expected two"),
        ({"merge_method": "linear", "models": ["a"]}, r"genome.models"),
        ({"merge_method": "linear", "models": [1, 2]}, r"expected a folder or a hub id"),
    ],
)
def test_what_has_no_counterpart_is_refused(tmp_path: Path, genome: dict[str, Any], complaint: str) -> None:
    path = write(tmp_path, **{"models": ["a", "b"], **genome})
    with pytest.raises(InputError, match=complaint) as refused:
        tv.search(path, (), size)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_tasks_are_weighed_as_there() -> None:
    """There the sum of weight times figure is maximized, so a perplexity has a negative weight."""
    tasks = [
        {"name": "arc_easy"},
        {"name": "wiki", "metric": "perplexity,none", "weight": -0.5},
        {"name": "gsm8k", "metric": "exact_match,strict-match", "weight": 2},
    ]
    genome = {"models": ["a", "b"], "merge_method": "linear"}
    evolution = Evolution.parse("", {"genome": genome, "tasks": tasks})
    score = FunctionScore(size, "size")
    assert score.lower_is_better("wiki.perplexity")
    assert evolution.weights(score) == {
        "arc_easy.acc": 1,
        "wiki.perplexity": 0.5,
        "gsm8k.exact_match,strict-match": 2,
    }


def test_other_files_are_none_of_it(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("base: x\n")
    assert read_evolution(tmp_path / "recipe.yaml") is None
