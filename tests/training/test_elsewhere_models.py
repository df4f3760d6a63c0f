"""Models and tasks of every kind give on another device what they give on the CPU."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import classifiers
import image_families
import taskvec as tv
from checkpoints import save_bert
from elsewhere import ELSEWHERE, elsewhere
from language_models import TEXT, save_language_model
from taskvec.evaluation.evaluator import Evaluator
from taskvec.models.backbone import Backbone
from taskvec.models.heads import Head
from taskvec.models.loading import load_backbone
from taskvec.tasks.loaders import batches, features
from taskvec.tasks.split import Split
from taskvec.tasks.task import Task
from taskvec.training.regimes import Space

SETTINGS = tv.TrainSettings(lr=1e-3, steps=2, batch_size=3)
ROWS = [("the cat sat on", "the mat"), ("two men", "went home"), ("the dog ate", "the cake"), ("one", "ox")]


def both(backbone: Backbone) -> Iterator[Backbone]:
    """The model there, while the device is known, and here."""
    with elsewhere():
        moved = deepcopy(backbone).to(ELSEWHERE)
        assert isinstance(moved, Backbone)
        yield moved
    yield backbone


def same(found: tv.TaskVector, expected: tv.TaskVector) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].device.type == "cpu" and torch.equal(found[name], expected[name]) for name in expected
    )


def language(path: Path) -> Task:
    path.write_text(TEXT)
    data = {"source": "text", "path": str(path)}
    return Task.parse("", {"name": "text", "kind": "language", "data": data, "context": 24, "stride": 16})


def answers(path: Path, **fields: Any) -> Task:
    rows = [
        {"split": split, "text": prompt, "label": label}
        for split in ("train", "validation", "test")
        for prompt, label in ROWS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "jsonl", "path": str(path)}
    return Task.parse("", {"kind": "generation", "name": "talk", "data": data, **fields})


TASKS: dict[str, Callable[[Path], Task]] = {
    "language": language,
    "ranked": lambda path: answers(path, answers=[label for _, label in ROWS], metric="accuracy"),
    "written": lambda path: answers(path, metric="exact_match", sampling={"max_new_tokens": 3}),
}


@pytest.mark.parametrize(
    ("kind", "of", "regime"),
    [
        ("gpt2", "language", "full"),
        ("llama", "language", "tangent"),
        ("gpt2", "language", "lora"),
        ("llama", "ranked", "tangent-lora"),
        ("t5", "ranked", "full"),
        ("t5", "written", "attention"),
        ("gpt2", "written", "full"),
        ("bart", "ranked", "tangent"),
    ],
)
def test_language_models(tmp_path: Path, kind: str, of: str, regime: str) -> None:
    here = load_backbone(save_language_model(tmp_path / "model", kind), outputs="tokens")
    task, found = TASKS[of](tmp_path / "data"), []
    for backbone in both(here):
        evaluator = Evaluator(backbone, [task], batch_size=2)
        vector = tv.finetune(backbone, evaluator.part(task.name), regime=regime, settings=SETTINGS)
        space: Space = "tangent" if regime.startswith("tangent") else "ordinary"
        point = evaluator.points({"tau": vector}, space=space).at({"tau": 1.0})
        found.append((vector, evaluator.score(point, task.name, "test").record()))
    assert same(found[0][0], found[1][0]) and found[0][1] == found[1][1]


@pytest.mark.parametrize("family", ["vit", "mobilenet_v2", "convnext", "swin"])
def test_image_encoders(tmp_path: Path, family: str) -> None:
    here = load_backbone(image_families.save(family, tmp_path / "model"))
    draws = np.random.default_rng(0)
    images = [draws.integers(256, size=(32, 32, 3), dtype=np.uint8) for _ in range(6)]
    split = Split(images, torch.arange(6) % 2)
    head = Head(torch.randn(2, here.dim), None, normalize=True, classes=["a", "b"], kind="linear-probe")
    found: list[tuple[tv.TaskVector, tv.TaskVector, Tensor]] = []
    for backbone in both(here):
        part = tv.Part("pictures", split, head)
        vectors = [
            tv.finetune(backbone, part, regime=regime, settings=SETTINGS) for regime in ("full", "tangent")
        ]
        found.append((vectors[0], vectors[1], features(backbone, batches(backbone, split, 4))))
    assert same(found[0][0], found[1][0]) and same(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2])


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_classifiers_with_their_own_head(tmp_path: Path, family: str) -> None:
    network = classifiers.save_text(tmp_path / "model", family)
    here = load_backbone(tmp_path / "model", outputs="classifier")
    with torch.no_grad():
        for value in network.parameters():
            value += 0.1
    vector = tv.TaskVector.from_tensors(
        {name: torch.full_like(p, 0.1) for name, p in network.named_parameters()}, base=tmp_path / "model"
    )
    rows = [
        {"split": "test", "text": text, "label": place % 3}
        for place, text in enumerate(["one two", "a film", "cat"])
    ]
    (tmp_path / "data").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "jsonl", "path": str(tmp_path / "data")}
    task = Task.parse("", {"name": "own", "data": data, "classes": ["a", "b", "c"], "head": "own"})
    found = []
    for backbone in both(here):
        evaluator = Evaluator(backbone, [task])
        point = evaluator.points({"tau": vector}).at({"tau": 1.0})
        logits, _ = evaluator.logits(point, "own", "test")
        found.append((logits, evaluator.score(point, "own", "test")))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_regression(tmp_path: Path) -> None:
    here = load_backbone(save_bert(tmp_path / "model"))
    rows = [
        {"split": split, "text": text, "label": place / 2}
        for split in ("train", "validation", "test")
        for place, text in enumerate(["one two", "a film", "cat", "good dog", "bad"])
    ]
    (tmp_path / "data").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "jsonl", "path": str(tmp_path / "data")}
    task = Task.parse("", {"name": "number", "kind": "regression", "data": data})
    found = []
    for backbone in both(here):
        evaluator = Evaluator(backbone, [task])
        vector = tv.finetune(backbone, evaluator.part("number"), settings=SETTINGS)
        point = evaluator.points({"tau": vector}).at({"tau": 1.0})
        found.append((vector, evaluator.score(point, "number", "test")))
    assert same(found[0][0], found[1][0]) and found[0][1] == found[1][1]
