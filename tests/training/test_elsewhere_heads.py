"""Trained heads and regressions give on another device what they give on the CPU."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from classifiers import save_text
from elsewhere import ELSEWHERE, elsewhere
from taskvec.models.backbone import Backbone
from taskvec.tasks.task import Task

SETTINGS = tv.TrainSettings(lr=1e-3, steps=2, batch_size=3)
TEXTS = ["one two", "a good film", "three", "bad dog", "cat", "four film"]


def task_of(folder: Path, **fields: Any) -> Task:
    rows = [
        {"split": split, "text": text, "label": place % 3}
        for split in ("train", "validation", "test")
        for place, text in enumerate(TEXTS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "jsonl", "path": str(folder / "rows.jsonl")}
    return Task.parse("", {"name": "it", "data": data, **fields})


def figures(backbone: Backbone, task: Task) -> list[float]:
    """The metric before and after a training, and at a point whose head is moved too."""
    evaluator = tv.Evaluator(backbone, [task])
    vector = tv.finetune(backbone, evaluator.part("it"), settings=SETTINGS)
    whole = tv.TaskVector.from_tensors(
        {name: value.detach().cpu() * 0.1 for name, value in backbone.head_parameters().items()},
        base=backbone.source,
    )
    points = [
        evaluator.pretrained,
        evaluator.points({"v": vector}).at({"v": 1.0}),
        evaluator.points({"v": whole}).at({"v": 1.0}),
    ]
    return [float(getattr(evaluator.score(p, "it", "test"), FIGURE[task.kind])) for p in points]


FIGURE = {"classification": "perplexity", "regression": "mse"}


@pytest.mark.parametrize(
    ("labels", "fields"),
    [
        (3, {"head": "own", "classes": ["a", "b", "c"]}),
        (1, {"kind": "regression", "head": "own"}),
        (3, {"kind": "regression"}),
    ],
)
def test_heads_go_where_the_model_is(labels: int, fields: dict[str, Any], tmp_path: Path) -> None:
    save_text(tmp_path / "model", "roberta", labels=labels)
    backbone = tv.load_backbone(tmp_path / "model", "classifier")
    task = task_of(tmp_path, **fields)
    expected = figures(backbone, task)
    with elsewhere():
        moved = deepcopy(backbone).to(ELSEWHERE)
        assert isinstance(moved, Backbone)
        assert figures(moved, task) == expected
    assert len(set(expected)) == (3 if fields.get("head") == "own" else 2)
