"""Layers with gates: which of them change, and what is stored of that."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import taskvec as tv
from taskvec.cli import main
from taskvec.models.functional import encode
from taskvec.names import group_of, grouped
from taskvec.tasks.kinds.classification import Classifying
from taskvec.training.loop import train
from taskvec.training.regimes import Gates
from taskvec.training.space import move

RECIPE: dict[str, Any] = {"lr": 3e-3, "steps": 12, "batch_size": 16, "weight_decay": 0.1, "validations": 0}


def tuned(evaluator: tv.Evaluator, regime: tv.Regime | str, **settings: Any) -> tv.TaskVector:
    recipe = tv.TrainSettings.parse("", RECIPE | settings)
    return tv.finetune(evaluator.backbone, evaluator.part("pets"), regime=regime, settings=recipe)


def changed(vector: tv.TaskVector) -> list[str]:
    return [name for name in vector if vector.terms_at(name)]


@pytest.mark.parametrize(
    ("by", "towards", "optimizer"),
    [("layer", "zero", "adamw"), ("block", "pretrained", "adamw"), ("tensor", "zero", "sgd")],
)
def test_gates_that_cannot_close_are_ordinary_tuning(
    tiny_model: Path, tiny_suite: Path, by: Any, towards: str, optimizer: str
) -> None:
    """In float64, decay and clipping included."""
    backbone = tv.load_backbone(str(tiny_model)).double()
    part = tv.make_part(backbone, tv.load_suite(tiny_suite).task("pets"))
    assert isinstance(part.objective, Classifying)
    part = tv.Part(part.name, part.split, part.objective.head.double())
    start = {name: value.detach() for name, value in backbone.encoder_parameters().items()}
    given = {"steps": 6, "optimizer": optimizer, "decay_towards": towards, "clip": 0.5}
    recipe = tv.TrainSettings.parse("", RECIPE | given)
    gates = Gates(gates=by, strength=0.0, threshold=-1.0)
    plain, gated = (train(backbone, start, [part], recipe, gates=some) for some in (None, gates))
    assert gated.keys() <= plain.keys()
    for name, step in plain.items():
        assert_close(gated.get(name, torch.zeros_like(step)), step, rtol=0, atol=1e-12)


def test_closed_gates_leave_the_pretrained_model(evaluator: tv.Evaluator, tmp_path: Path) -> None:
    vector = tuned(evaluator, tv.Regime(space="gated", threshold=0.2))
    assert changed(vector) == []
    loaded = tv.TaskVector.load(vector.save(tmp_path / "none.safetensors"))
    assert changed(loaded) == [] and loaded.norm() == 0
    weights = tv.open_weights(evaluator.backbone.source)
    edited = tv.apply(weights, loaded)
    assert all(torch.equal(edited[name], weights[name]) for name in weights)


def test_that_nothing_changed_is_said(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["train", "-m", tiny_model, "-s", tiny_suite, "-t", "pets", "--lr", "3e-3", "--steps", "4", "-q"]
    for threshold in ("0.2", "0"):
        gates = ["--regime", "gated", "--threshold", threshold, "-o", tmp_path / f"{threshold}.safetensors"]
        with pytest.raises(SystemExit):
            main([str(argument) for argument in (*given, *gates)])
        assert ("note: no gate is open at the end" in capsys.readouterr().err) == (threshold == "0.2")


def test_fewer_layers_change_the_harder_gates_are_pushed(evaluator: tv.Evaluator) -> None:
    counts = [
        len(grouped(changed(tuned(evaluator, tv.Regime(space="gated", strength=strength), steps=40))))
        for strength in (0.0, 1.0, 3.0, 100.0)
    ]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1] == 0


def test_only_what_changed_is_stored(evaluator: tv.Evaluator, tmp_path: Path) -> None:
    figures: list[dict[str, float]] = []
    vector = tv.finetune(
        evaluator.backbone,
        evaluator.part("pets"),
        regime=tv.Regime(space="gated", strength=2.0),
        settings=tv.TrainSettings.parse("", RECIPE | {"steps": 40}),
        log=lambda _, values: figures.append(dict(values)),
    )
    every, some = list(evaluator.pretrained), changed(vector)
    assert 0 < len(some) < len(every)
    layers = grouped(every)
    opened = {group_of(name) for name in some}
    assert figures[-1]["open_layers"] == pytest.approx(len(opened) / len(layers), abs=1 / len(layers))
    assert figures[0]["open_layers"] == 1 and figures[0]["penalty"] == 0 < figures[-1]["penalty"]
    path = vector.save(tmp_path / "v.safetensors")
    assert set(tv.open_weights(path)) == set(some)
    assert path.stat().st_size < 0.95 * 4 * sum(value.numel() for value in evaluator.pretrained.values())
    told = vector.info.training or {}
    assert (vector.info.regime, told["space"], told["strength"], told["gates"]) == (
        "gated",
        "gated",
        2.0,
        "layer",
    )


def test_a_model_with_gates_learns(evaluator: tv.Evaluator) -> None:
    vector = tuned(evaluator, tv.Regime(space="gated", strength=0.3), steps=40)
    point = evaluator.points({"v": vector}).at({"v": 1.0})
    assert evaluator.score(point, "pets", "test").accuracy >= 0.75


@pytest.mark.parametrize("by", ["layer", "block"])
def test_a_stopped_training_goes_on_to_the_same_bits(
    evaluator: tv.Evaluator, tmp_path: Path, by: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskvec.training.checkpoint.Checkpoint.every", 0.0)
    regime = tv.Regime(space="gated", strength=2.0, gates=by)
    whole, path = tuned(evaluator, regime), tmp_path / "t.pt"

    class Stop(Exception):
        pass

    def stop(label: str, done: int, total: int, **facts: float) -> None:
        if done == 7:
            raise Stop

    def go_on(**watch: Any) -> tv.TaskVector:
        settings = tv.TrainSettings.parse("", RECIPE)
        part = evaluator.part("pets")
        return tv.finetune(
            evaluator.backbone, part, regime=regime, settings=settings, checkpoint=path, **watch
        )

    with pytest.raises(Stop):
        go_on(watch=stop)
    assert path.exists()
    again = go_on()
    assert changed(again) == changed(whole)
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_scores_are_not_clipped_with_the_weights(evaluator: tv.Evaluator) -> None:
    """However small the clipped gradient is, gates close as fast."""
    closed = tuned(evaluator, tv.Regime(space="gated", strength=100.0), clip=1e-6, steps=20, optimizer="sgd")
    assert changed(closed) == []


def test_penalties_reach_open_layers(evaluator: tv.Evaluator) -> None:
    free, short = (
        tuned(evaluator, tv.Regime(space="gated", strength=0.3), penalty={"kind": "decay", "strength": lam})
        for lam in (0, 30)
    )
    assert short.norm() < 0.7 * free.norm()


def test_the_joint_variant_starts_from_a_shared_network(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained on all tasks, written as a model, and a vector of few layers on top of that."""

    def command(*arguments: object) -> None:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 0, capsys.readouterr().err

    how = ["-s", tiny_suite, "--lr", "3e-3", "--steps", "12", "--batch-size", "16", "--quiet"]
    command("train", "-m", tiny_model, "-t", "pets", "taste", *how, "-o", tmp_path / "all.safetensors")
    command("apply", tiny_model, "-v", f"v={tmp_path / 'all.safetensors'}", "-o", tmp_path / "shared")
    gated = ["--regime", "gated", "--strength", "3", "-o", tmp_path / "pets.safetensors"]
    command("train", "-m", tmp_path / "shared", "-t", "pets", *how, *gated)
    vector = tv.TaskVector.load(tmp_path / "pets.safetensors")
    shared = tv.open_weights(tmp_path / "shared")
    assert vector.info.base is not None and vector.info.base.fingerprint == shared.fingerprint()
    edited = tv.apply(shared, vector)
    same = [name for name in shared if torch.equal(edited[name], shared[name])]
    assert len(changed(vector)) < len(shared) and set(same) >= set(shared) - set(changed(vector))


def test_closed_layers_stay_where_the_model_was_displaced_to(evaluator: tv.Evaluator) -> None:
    start, batch = evaluator.pretrained, evaluator.backbone.example()
    before = {name: torch.full_like(value, 0.01) for name, value in start.items()}
    moved = move(evaluator.backbone, start, "ordinary", None, 0, Gates(threshold=0.2), before)
    there = {name: value + before[name] for name, value in start.items()}
    assert_close(moved.outputs(batch), encode(evaluator.backbone, there, batch), rtol=0, atol=0)
    assert moved.displacement() == {}


@pytest.mark.parametrize(
    ("name", "layer", "block"),
    [
        ("encoder.layer.3.output.LayerNorm.bias", "encoder.layer.3.output.LayerNorm", "encoder.layer.3"),
        ("bert.embeddings.LayerNorm.gamma", "bert.embeddings.LayerNorm", "bert.embeddings.LayerNorm"),
        ("visual.attn.in_proj_weight", "visual.attn.in_proj", "visual.attn"),
        ("visual.class_embedding", "visual.class_embedding", "visual"),
        ("class_embedding", "class_embedding", "class_embedding"),
        ("layers.0.mlp.experts.gate_up_proj", "layers.0.mlp.experts.gate_up_proj", "layers.0"),
        ("layers.0.mlp.experts.gate_up_proj_bias", "layers.0.mlp.experts.gate_up_proj", "layers.0"),
        ("layer1.0.bn1.running_mean", "layer1.0.bn1", "layer1.0"),
        ("attn.relative_position_bias_table", "attn.relative_position_bias_table", "attn"),
        ("weight", "weight", "weight"),
    ],
)
def test_a_layer_is_a_weight_with_its_bias(name: str, layer: str, block: str) -> None:
    assert [group_of(name, by) for by in ("layer", "tensor", "block")] == [layer, name, block]
