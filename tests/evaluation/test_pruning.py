"""Which layers of a vector are needed: how they are ranked, and that the fewest stay."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import taskvec as tv
from taskvec.cli import main
from taskvec.errors import BaseMismatch, InputError
from taskvec.evaluation.pruning import Cut, _fewest
from taskvec.models.functional import encode
from taskvec.names import grouped

RECIPE: dict[str, Any] = {"lr": 3e-3, "steps": 30, "batch_size": 16, "validations": 0}


@pytest.fixture(scope="module")
def vectors(evaluator: tv.Evaluator) -> dict[str, tv.TaskVector]:
    """By regime."""
    settings, part = tv.TrainSettings.parse("", RECIPE), evaluator.part("pets")
    return {
        regime: tv.finetune(evaluator.backbone, part, regime=regime, settings=settings)
        for regime in ("full", "tangent-attention", "lora")
    }


def changed(vector: tv.TaskVector) -> list[str]:
    return [name for name in vector if vector.terms_at(name)]


def loss_at(evaluator: tv.Evaluator, params: Any) -> torch.Tensor:
    """The mean validation loss, by another route: all examples at once, cross entropy written out."""
    backbone, split = evaluator.backbone, evaluator.split("pets", "validation")
    batch = backbone.collate(split.inputs)
    logits = evaluator.head("pets")(encode(backbone, params, batch))
    return torch.nn.functional.cross_entropy(logits, split.labels)


def moved(evaluator: tv.Evaluator, vector: tv.TaskVector, without: list[str]) -> dict[str, torch.Tensor]:
    start = evaluator.pretrained
    return {name: v + vector[name] * (name not in without) for name, v in start.items()}


@pytest.mark.parametrize("gates", ["layer", "block"])
def test_layers_are_ranked_by_the_loss_without_them(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector], gates: Any
) -> None:
    vector = vectors["full"]
    found = tv.prune_layers(evaluator, vector, "pets", gates=gates)
    whole = loss_at(evaluator, moved(evaluator, vector, []))
    layers = grouped([name for name in evaluator.pretrained if vector[name].any()], gates)
    assert set(found.importance) == set(layers)
    for layer, names in layers.items():
        expected = loss_at(evaluator, moved(evaluator, vector, names)) - whole
        assert found.importance[layer] == pytest.approx(float(expected), abs=1e-5)
    assert list(found.importance.values()) == sorted(found.importance.values(), reverse=True)


def test_first_order_is_the_slope_along_the_change(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector]
) -> None:
    vector = vectors["full"]
    found = tv.prune_layers(evaluator, vector, "pets", by="first-order")
    start = evaluator.pretrained
    layers = grouped([name for name in start if vector[name].any()])
    for layer in list(layers)[::4]:

        def along(step: torch.Tensor, names: list[str] = layers[layer]) -> torch.Tensor:
            params = {name: v + vector[name] * (1 + step * (name in names)) for name, v in start.items()}
            return loss_at(evaluator, params)

        step = torch.zeros((), requires_grad=True)
        [slope] = torch.autograd.grad(along(step), [step])
        assert found.importance[layer] == pytest.approx(float(slope.abs()), rel=1e-3, abs=1e-7)


def test_first_order_in_tangent_space_is_the_slope_there(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector]
) -> None:
    vector = vectors["tangent-attention"]
    found = tv.prune_layers(evaluator, vector, "pets", by="first-order")
    for layer in list(found.importance)[:3]:
        with_layer = {n: vector[n] if n.startswith(layer) else torch.zeros_like(vector[n]) for n in vector}
        part = tv.TaskVector.from_tensors(with_layer, evaluator.backbone.source)
        points = evaluator.points({"v": vector, "part": part}, space="tangent")

        def loss(share: float, points: tv.TangentPoints = points) -> float:
            logits, labels = evaluator.logits(points.at({"v": 1.0, "part": share}), "pets", "validation")
            return float(torch.nn.functional.cross_entropy(logits.double(), labels))

        assert found.importance[layer] == pytest.approx(
            abs(loss(0.05) - loss(-0.05)) / 0.1, rel=2e-2, abs=1e-5
        )


@pytest.mark.parametrize("by", ["loss", "first-order"])
@pytest.mark.parametrize("regime", ["full", "tangent-attention", "lora"])
def test_what_is_kept_is_stored_and_does_what_was_measured(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector], regime: str, by: Any, tmp_path: Path
) -> None:
    vector = vectors[regime]
    found = tv.prune_layers(evaluator, vector, "pets", by=by, tolerance=0.1)
    names = grouped(vector)
    kept = [name for layer in found.kept for name in names[layer] if vector[name].any()]
    path = found.vector.save(tmp_path / "v.safetensors")
    loaded = tv.TaskVector.load(path)
    assert set(changed(loaded)) == set(kept)
    assert_close({n: loaded[n] for n in kept}, {n: vector[n] for n in kept}, rtol=0, atol=0)
    stored = tv.open_weights(path)
    assert {name.split("#")[0].removesuffix(".left").removesuffix(".right") for name in stored} <= {
        *kept,
        *stored,
    }
    whole = vector.save(tmp_path / "whole.safetensors").stat().st_size
    assert len(found.kept) == len(found.importance) or path.stat().st_size < whole
    space = vector.info.space or "ordinary"
    point = evaluator.points({"v": loaded}, space=space).at({"v": 1.0})
    assert evaluator.score(point, "pets", "test").accuracy == found.test["pruned"]
    assert evaluator.score(point, "pets", "validation").accuracy == found.cut.value
    assert found.cut.value >= 0.9 * found.whole.value and found.cut.layers == len(found.kept)
    info = loaded.info
    assert (info.task, info.regime, info.space) == ("pets", regime, space) and info.metrics is None
    assert info.training and info.training["pruned"]["by"] == by and info.training["lr"] == 3e-3
    assert found.examples == 48
    layers, size = found.shares(found.cut)
    assert 0 <= layers <= 1 and 0 <= size <= 1


@pytest.mark.parametrize("total", [1, 2, 31, 32, 33, 100, 250])
@pytest.mark.parametrize("needed", [0, 1, 7, 1000])
def test_the_fewest_layers_that_do_are_found(total: int, needed: int) -> None:
    """Of a score that rises with every layer up to those that are needed."""
    needed, asked = min(needed, total), []

    def measure(count: int) -> Cut:
        asked.append(count)
        return Cut(count, count, min(count, needed) / max(1, needed) if needed else 1.0)

    curve, cut = _fewest(measure, total, 0.0)
    assert cut.layers == needed and [c.layers for c in curve] == sorted(set(asked))
    assert len(asked) == len(set(asked)) <= 33 + total / 32


def test_a_tolerance_counts_from_scores_below_zero_too() -> None:
    values = [-1.0, -0.6, -0.52, -0.5]
    _, cut = _fewest(lambda count: Cut(count, 0, values[count]), 3, 0.1)
    assert cut.layers == 2


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"tolerance": 1.5}, "tolerance: 1.5, expected a share of the score"),
        ({"tolerance": float("nan")}, "tolerance: nan"),
        (
            {"by": "first_order"},
            "by: 'first_order', expected loss or first-order; did you mean 'first-order'",
        ),
        ({"gates": "rows"}, "gates: 'rows', expected one of layer, tensor, block"),
        ({"space": "gated"}, "space: 'gated', expected ordinary or tangent"),
        ({"task": "pest"}, "no task called 'pest' here; did you mean 'pets'"),
    ],
)
def test_what_cannot_be_is_refused(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector], given: Any, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        tv.prune_layers(evaluator, vectors["full"], **{"task": "pets", **given})


@pytest.mark.parametrize("by", ["loss", "first-order"])
def test_of_a_vector_that_changes_nothing_no_layer_stays(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector], by: Any
) -> None:
    found = tv.prune_layers(evaluator, 0 * vectors["full"], "pets", by=by)
    assert found.kept == [] and len(found.curve) == 1 and found.shares(found.cut) == (0, 0)
    assert found.test["pruned"] == found.test["pretrained"] and changed(found.vector) == []


def test_a_vector_of_another_base_is_refused(evaluator: tv.Evaluator) -> None:
    base = {name: value + 1 for name, value in tv.open_weights(evaluator.backbone.source).items()}
    other = tv.TaskVector.from_tensors({"pooler.dense.bias": torch.ones(16)}, base)
    with pytest.raises(BaseMismatch):
        tv.prune_layers(evaluator, other, "pets")


def test_the_command_writes_few_layers(
    vectors: dict[str, tv.TaskVector],
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(*more: object) -> str:
        given = [tmp_path / "v.safetensors", "-m", tiny_model, "-s", tiny_suite, *more]
        with pytest.raises(SystemExit) as ended:
            main(["prune-layers", *map(str, given), "--quiet"])
        shown = capsys.readouterr()
        assert ended.value.code == 0, shown.err
        return shown.out

    vectors["full"].save(tmp_path / "v.safetensors")
    out = tmp_path / "few.safetensors"
    told = json.loads(command("-o", out, "--by", "first-order", "--tolerance", 0.2, "--json"))
    loaded = tv.TaskVector.load(out)
    assert set(grouped(changed(loaded))) == set(told["kept"])
    assert told["validation_labels"] == 48 and 0 < told["share_of_layers"] < 1
    assert told["validation"]["pruned"] >= 0.8 * told["validation"]["whole"]
    table = command("-o", tmp_path / "blocks", "--gates", "block")
    assert "pretrained" in table and "48 validation labels" in table


def test_a_vector_of_several_tasks_asks_for_one(
    evaluator: tv.Evaluator,
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = [evaluator.part("pets"), evaluator.part("taste")]
    settings = tv.TrainSettings(lr=3e-3, steps=4, batch_size=16)
    both = tv.finetune(evaluator.backbone, parts, settings=settings).save(tmp_path / "both.safetensors")
    given = [both, "-m", tiny_model, "-s", tiny_suite, "-o", tmp_path / "few.safetensors", "--quiet"]
    for more, code in (([], 2), (["--task", "taste"], 0)):
        with pytest.raises(SystemExit) as ended:
            main(["prune-layers", *map(str, given), *more])
        shown = capsys.readouterr()
        assert ended.value.code == code, shown.err
        assert ("is of the tasks pets+taste; name the one to measure with --task" in shown.err) == (code == 2)


def test_the_page_on_layer_masks_runs(
    evaluator: tv.Evaluator,
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "layer-masks.md").read_text()
    page = page.replace("-s text8", f"-s {tiny_suite} --limit 24").replace("trec6", "taste")
    page = page.replace("-m minilm", f"-m {tiny_model}").replace("apply minilm", f"apply {tiny_model}")
    page = (
        page.replace("sst2", "pets")
        .replace('"text8"', f'"{tiny_suite}"')
        .replace('"minilm"', f'"{tiny_model}"')
    )
    shown = re.findall(r"^    taskvec (.*)", page, re.MULTILINE)
    assert len(shown) == 5
    for words in shown:
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(words), "--quiet"])
        assert ended.value.code == 0, capsys.readouterr().err
    names: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, names)
    assert tv.TaskVector.load("pruned.safetensors").info.task == "pets"
