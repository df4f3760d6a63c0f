"""Edits of networks with batch norms: running statistics that a checkpoint's change holds move with it."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification

import taskvec as tv
from classifiers import build, nudge
from taskvec.cli import main

KINDS: dict[str, dict[str, Any]] = {
    "resnet": {},
    "mobilenet_v2": {"depth_multiplier": 0.25, "min_depth": 8},
    "convnext": {"image_size": 64},
}


def moved(network: Any, by: float) -> Any:
    """A network after a training: weights and running statistics are others."""
    other = nudge(deepcopy(network), 1)
    for name, value in other.named_buffers():
        if value.is_floating_point():
            value += by if name.endswith("mean") else 2 * by
    return other


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    base = build(request.param, "IMAGE", **KINDS[request.param])
    tuned = moved(base, 0.3)
    for name, network in {"base": base, "tuned": tuned}.items():
        network.save_pretrained(folder / name)
    draw = np.random.default_rng(0)
    images = {f"x_{part}": draw.integers(0, 256, (24, 64, 64, 3), np.uint8) for part in ("train", "test")}
    labels = {f"y_{part}": np.arange(24) % 3 for part in ("train", "test")}
    np.savez(folder / "data.npz", **images, **labels)  # type: ignore[arg-type]
    task = {"modality": "image", "classes": ["a", "b", "c"], "data": {"source": "npz", "path": "data.npz"}}
    tasks = {"own": {**task, "head": "own"}, "probe": {**task, "head": "linear-probe"}}
    (folder / "suite.yaml").write_text(json.dumps({"suite": "mine", "tasks": tasks}))
    return folder, base, tuned


def between(base: Any, tuned: Any, share: float) -> Any:
    """The network whose parameters and statistics are so far from one to the other, by torch alone."""
    made: Any = deepcopy(base).double()
    there = deepcopy(tuned).double().state_dict()
    state: Mapping[str, Tensor] = made.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            value += share * (there[name] - value)
    return made.eval()


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_an_edit_in_memory_is_the_edit_that_is_written(pair: tuple[Path, Any, Any], share: float) -> None:
    folder, base, tuned = pair
    vector = tv.TaskVector.between(folder / "base", folder / "tuned")
    task = tv.load_suite(folder / "suite.yaml").task("own")
    backbone = tv.load_backbone(folder / "base", "classifier")
    evaluator = tv.Evaluator(backbone, [task])
    logits, _ = evaluator.logits(evaluator.points({"c": vector}).at({"c": share}), "own", "test")

    network: Any = backbone
    pixels = network.normalized(network.stack(task.split("test").inputs)["pixel_values"]).double()
    expected = between(base, tuned, share)(pixel_values=pixels).logits
    torch.testing.assert_close(logits.double(), expected.detach(), rtol=1e-3, atol=1e-4)

    target = folder / f"edited{share}"
    tv.save_weights(tv.open_weights(folder / "base") + share * vector, target)
    written = AutoModelForImageClassification.from_pretrained(target).eval()
    torch.testing.assert_close(
        written(pixel_values=pixels.float()).logits.detach(), logits, rtol=1e-3, atol=1e-4
    )
    left = tv.load_backbone(folder / "base", "classifier").network.state_dict()
    assert all(torch.equal(value, left[name]) for name, value in backbone.network.state_dict().items())


def test_a_written_edit_behind_the_heads_of_the_base(
    pair: tuple[Path, Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, _ = pair
    vector = tv.TaskVector.between(folder / "base", folder / "tuned")
    vector.save(tmp_path / "c.safetensors")
    tv.save_weights(tv.open_weights(folder / "base") + 0.5 * vector, tmp_path / "edited")
    shared = ["-s", folder / "suite.yaml", "-t", "probe", "--json"]
    edited = ["eval", folder / "base", "-v", f"c={tmp_path / 'c.safetensors'}", "-e", "0.5*c", *shared]
    figures = []
    for line in (edited, ["eval", tmp_path / "edited", "--heads-from", folder / "base", *shared]):
        with pytest.raises(SystemExit) as stopped:
            main(list(map(str, line)))
        assert stopped.value.code == 0
        figures.append(json.loads(capsys.readouterr().out)["scores"]["probe"]["perplexity"])
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)


def test_an_own_network_moves_its_statistics_too() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    other = moved(network, 0.7)
    backbone = tv.wrap(network.eval(), collate=lambda texts: torch.ones(len(texts), 3), example="a")
    vector = tv.TaskVector.between(network, other)
    from taskvec.evaluation.points import add_vector

    found = add_vector(backbone, vector)(**backbone.collate(["a"]))
    torch.testing.assert_close(found, other.eval()(torch.ones(1, 3)))


def test_heads_of_a_base_that_names_its_tensors_otherwise(pair: tuple[Path, Any, Any]) -> None:
    from taskvec.evaluation.points import values_of

    folder, base, _ = pair
    base.base_model.save_pretrained(folder / "bare")  # without the prefix that a classifier puts before it
    bare, tuned = tv.load_backbone(folder / "bare"), tv.load_backbone(folder / "tuned")
    found = values_of(tuned, bare)
    assert found.keys() == {*bare.encoder_parameters(), *bare.statistics()}
    from taskvec.models.functional import encode

    batch = tuned.example()
    torch.testing.assert_close(encode(bare, found, batch), tuned(**batch))
