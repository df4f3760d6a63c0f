"""``experiments/nli.yaml`` on a random T5 of two layers and data of our own.

Both are tiny stand-ins, whose figures say nothing about inference. What is tested is that the file runs.
"""

import json
from pathlib import Path
from random import Random

import pytest

import taskvec as tv
from classifiers import WORDS, save_text
from taskvec.cli import main

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "nli.yaml"
FIELDS: dict[str, tuple[str, str, list[object]]] = {
    "snli": ("premise", "hypothesis", [0, 1, 2, -1]),
    "mnli": ("premise", "hypothesis", [0, 1, 2]),
    "qnli": ("question", "sentence", [0, 1]),
    "rte": ("sentence1", "sentence2", [0, 1]),
    "sick": ("sentence_A", "sentence_B", [0, 1, 2]),
    "scitail": ("premise", "hypothesis", ["entails", "neutral"]),
}
"""What the hub's files call the two texts, and their labels."""


def write_data(folder: Path) -> None:
    for task, (first, second, labels) in FIELDS.items():
        draw = Random(task)
        (folder / task).mkdir(parents=True)
        for split in (
            ("train", "test") if task in ("mnli", "qnli", "rte") else ("train", "validation", "test")
        ):
            with (folder / task / f"{split}.jsonl").open("w") as file:
                for place in range(48 if split == "train" else 12):
                    texts = {key: " ".join(draw.choices(WORDS[4:], k=4)) for key in (first, second)}
                    file.write(json.dumps({**texts, "label": labels[place % len(labels)]}) + "\n")


def test_the_t5_protocol_runs_as_it_is_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_text(tmp_path / "t5", "t5")
    write_data(tmp_path / "nli")
    monkeypatch.setenv("NLI_DATA", str(tmp_path / "nli"))
    declared = EXPERIMENT.read_text()
    changes = {
        "model: google/t5-v1_1-base": f"model: {tmp_path}/t5",
        "suites/nli6.yaml": f"{EXPERIMENT.parent}/suites/nli6.yaml",
    }
    changes |= {f"epochs: {epochs}": "epochs: 2" for epochs in (3, 20, 50)}
    for before, after in changes.items():
        assert before in declared
        declared = declared.replace(before, after)
    (tmp_path / "nli.yaml").write_text(declared)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "nli.yaml"), "-o", str(tmp_path / "run"), "--quiet"])
    assert ended.value.code == 0
    vectors = {path.name.split("-")[0]: path for path in (tmp_path / "run").glob("vectors/*/*/*.safetensors")}
    assert vectors.keys() == FIELDS.keys()
    for task, path in vectors.items():
        vector = tv.TaskVector.load(path)
        moved = [name for name in vector if vector.terms_at(name)]
        assert moved and all(name.startswith(("transformer.shared", "transformer.encoder")) for name in moved)
        training = vector.info.training or {}
        assert training["warmup"] == {"sick": 0.28, "rte": 0.2}.get(task, 0.02)
        assert training["examples"] == {task: {"snli": 36, "mnli": 44, "qnli": 44, "rte": 44}.get(task, 48)}
    assert "Addition of all 6 tasks" in (tmp_path / "run" / "report.md").read_text()
