"""Trained heads and running statistics move with vectors, and the gradient knows."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import taskvec as tv
from classifiers import build, nudge

KINDS: dict[str, dict[str, Any]] = {"resnet": {}, "convnext": {"image_size": 64}}


def moved(network: Any, seed: int) -> Any:
    """A network after a training: weights and running statistics are others."""
    other = nudge(deepcopy(network), seed)
    for name, value in other.named_buffers():
        if value.is_floating_point():
            value += 0.05 * seed if name.endswith("mean") else 0.1 * seed
    return other


@pytest.mark.parametrize(("kind", "signal"), [("resnet", "labels"), ("convnext", "entropy")])
def test_the_slope_is_that_of_networks_between(tmp_path: Path, kind: str, signal: str) -> None:
    base = build(kind, "IMAGE", **KINDS[kind])
    tuned = [moved(base, seed) for seed in (1, 2)]
    for name, network in zip(("base", "a", "b"), (base, *tuned), strict=True):
        network.save_pretrained(tmp_path / name)
    draw = np.random.default_rng(0)
    data = {f"x_{part}": draw.integers(0, 256, (12, 64, 64, 3), np.uint8) for part in ("train", "test")}
    labels = {f"y_{part}": np.arange(12) % 3 for part in ("train", "test")}
    np.savez(tmp_path / "data.npz", **data, **labels)  # type: ignore[arg-type]
    task = {"modality": "image", "head": "own", "classes": ["a", "b", "c"]}
    suite = {"suite": "mine", "tasks": {"own": {**task, "data": {"source": "npz", "path": "data.npz"}}}}
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))
    backbone = tv.load_backbone(str(tmp_path / "base"), "classifier")
    evaluator = tv.Evaluator(backbone, [tv.load_suite(tmp_path / "suite.yaml").task("own")])
    vectors = {name: tv.TaskVector.between(tmp_path / "base", tmp_path / name) for name in ("a", "b")}
    chosen = tv.CoefficientSettings.model_validate(
        {"signal": signal, "split": "train", "steps": 1, "batch": 100, "optimizer": "sgd", "lr": 1.0}
    )
    learned = tv.learn_coefficients(evaluator, vectors, ["own"], chosen)
    split = evaluator.split("own", "train")
    encoder: Any = backbone
    pixels = encoder.normalized(encoder.stack(split.inputs)["pixel_values"]).double()

    def cost(a: float, b: float) -> float:
        made: Any = deepcopy(base).double()
        states = [network.double().state_dict() for network in (deepcopy(of) for of in (base, *tuned))]
        for name, value in made.state_dict().items():
            if value.is_floating_point():
                start, first, second = (state[name] for state in states)
                value += a * (first - start) + b * (second - start)
        with torch.no_grad():
            logits = made.eval()(pixel_values=pixels).logits
        if signal == "labels":
            return float(cross_entropy(logits, split.labels))
        return float(torch.special.entr(logits.softmax(1)).sum(1).mean())

    step = 1e-5
    slopes = {
        "a": (cost(0.3 + step, 0.3) - cost(0.3 - step, 0.3)) / (2 * step),
        "b": (cost(0.3, 0.3 + step) - cost(0.3, 0.3 - step)) / (2 * step),
    }
    assert learned.trace[0] == pytest.approx(cost(0.3, 0.3), rel=1e-4)
    found = {name: 0.3 - of["all"] for name, of in learned.coefficients.items()}
    assert found == pytest.approx(slopes, rel=2e-3, abs=1e-5)
