"""Answers are trained, ranked and written on the device of the model, as on the CPU."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from elsewhere import ELSEWHERE, elsewhere
from language_models import save_language_model
from taskvec.evaluation.evaluator import Evaluator
from taskvec.tasks.task import Task

CODE = "def length(texts):\n    return [len(text) / 100 for text in texts]\n"


def tasks(folder: Path) -> list[Task]:
    rows = [
        {"split": split, "text": "the cat sat " + "on " * place, "label": place % 2}
        for split in ("train", "validation", "test")
        for place in range(6)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text(CODE)
    given: dict[str, Any] = {
        "kind": "generation",
        "data": {"source": "jsonl", "path": str(folder / "data.jsonl")},
        "answers": ["the mat", "ox"],
    }
    drawn = {"score": f"{folder}/mine.py:length", "sampling": {"count": 4, "max_new_tokens": 5}}
    return [
        Task.parse("", {"name": "ranked", **given}),
        Task.parse("", {"name": "written", **given, "metric": "exact_match"}),
        Task.parse("", {"name": "scored", **given, **drawn}),
    ]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_scores_of_a_trained_vector_are_those_of_the_cpu(kind: str, tmp_path: Path) -> None:
    backbone = tv.load_backbone(save_language_model(tmp_path / "model", kind), outputs="tokens")
    settings = tv.TrainSettings(lr=1e-3, steps=2, batch_size=4)

    def scores(evaluator: Evaluator) -> dict[str, Any]:
        vector = tv.finetune(evaluator.backbone, evaluator.part("ranked"), settings=settings)
        point = evaluator.points({"v": vector}).at({"v": 1.0})
        return {**evaluator.scores(point, ["ranked", "written", "scored"], "test")}

    near = scores(Evaluator(backbone, tasks(tmp_path), batch_size=4))
    with elsewhere():
        far = scores(Evaluator(deepcopy(backbone).to(ELSEWHERE), tasks(tmp_path), batch_size=4))
    assert far == near
