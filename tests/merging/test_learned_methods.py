"""Learned coefficients as methods, of tasks that not every signal suits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import taskvec as tv
from language_models import TEXT, save_language_model
from taskvec.merging import method_of
from taskvec.merging.method import Bench


def write(folder: Path, **tasks: Any) -> Path:
    """A suite file of tasks on 24 rows a split, of two texts with a number each."""
    parts, texts = ("train", "validation", "test"), ("a cat", "one dog")
    rows = [{"split": part, "text": texts[n % 2], "label": n % 2} for part in parts for n in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "jsonl", "path": "rows.jsonl"}
    blocks = {name: {"data": data, **task} for name, task in tasks.items()}
    (folder / "suite.yaml").write_text(json.dumps({"suite": "mine", "tasks": blocks}))
    return folder / "suite.yaml"


def bench_of(model: Path, suite: Path, outputs: Any) -> Bench:
    """With a random vector of each task of a suite."""
    evaluator = tv.Evaluator(tv.load_backbone(str(model), outputs), list(tv.load_suite(suite).tasks.values()))
    draw = torch.Generator().manual_seed(0)
    vectors = {
        task: tv.TaskVector.from_tensors(
            {name: 0.01 * torch.randn(p.shape, generator=draw) for name, p in evaluator.pretrained.items()},
            evaluator.backbone.source,
        )
        for task in evaluator.tasks
    }
    return Bench(evaluator, vectors)


@pytest.fixture
def with_numbers(tiny_model: Path, tmp_path: Path) -> Bench:
    animals = {"classes": ["cat", "dog"], "templates": ["a {}"]}
    return bench_of(tiny_model, write(tmp_path, animals=animals, count={"kind": "regression"}), "features")


@pytest.mark.parametrize("name", ["adamerging", "adarank", "tsv+learned_lines", "adamerging+surgery"])
def test_a_regression_has_no_entropy(with_numbers: Bench, name: str) -> None:
    reason = "learns by entropy of predictions, and count predicts no distribution"
    assert method_of(name).unfit(with_numbers) == reason


@pytest.mark.parametrize("entry", ["atlas", "supervised", "dv_basi", "sum"])
def test_a_regression_has_labels(with_numbers: Bench, entry: str) -> None:
    assert method_of(entry).unfit(with_numbers) is None


def test_the_table_says_what_was_left_out(with_numbers: Bench) -> None:
    evaluator, vectors = with_numbers.evaluator, with_numbers.vectors
    agreeing = {"rule": "adamerging", "signal": "agreement"}
    lines = {"after": "learned_lines", "of": "sum", "signal": "labels", "steps": 2}
    single = tv.single_task(evaluator, evaluator.points(vectors), list(vectors))
    rows = tv.methods(evaluator, vectors, [agreeing, lines], single=single, coefficient="default")
    found = {row["name"]: row for row in rows}
    assert "agreement of predictions" in str(found["adamerging (signal agreement)"]["left_out"])
    assert "outcomes" in found["sum+learned_lines (signal labels, steps 2)"]


def test_inputs_that_hold_the_answers_are_labels(tmp_path: Path) -> None:
    model = save_language_model(tmp_path / "gpt", "gpt2")
    answers = {"kind": "generation", "prompt": "{}", "answers": ["yes", "no"]}
    (tmp_path / "text.txt").write_text(TEXT)
    bench = bench_of(model, write(tmp_path, said=answers, other=answers), "tokens")
    points = bench.evaluator.points(bench.vectors)
    single = tv.single_task(bench.evaluator, points, bench.tasks)
    entry = {"rule": "adamerging", "steps": 1}
    rows = tv.methods(bench.evaluator, bench.vectors, [entry], single=single, coefficient="default")
    outcomes: Any = rows[-1]["outcomes"]
    assert [outcome["consumed"] for outcome in outcomes] == [["validation labels"]]
    on_test = Bench(bench.evaluator, bench.vectors, split="test")
    assert "would read the answers of the test split" in str(method_of(entry).unfit(on_test))
