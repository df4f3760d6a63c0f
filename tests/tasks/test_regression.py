"""Tasks that ask for a number."""

import json
import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]
from torch.testing import assert_close

import taskvec as tv
from taskvec.errors import InputError
from taskvec.models.heads import ridge_probe
from taskvec.tasks.kinds.regression import Regressing, Regression, fisher, score
from taskvec.tasks.objective import Batch
from taskvec.training.finetune import finetune
from taskvec.training.settings import TrainSettings

WORDS = ["one", "two", "three", "four", "five", "film", "cat", "dog"]

numbers = st.lists(st.floats(-5, 5).map(lambda x: round(x, 1)), min_size=5, max_size=40)


def write(folder: Path, labels: Any = None, **more: Any) -> Path:
    """A suite with one task on pairs of texts: how many words they share, 0 to 4."""
    draw = Random(0)
    with (folder / "pairs.jsonl").open("w") as file:
        for split, count in {"train": 80, "validation": 30, "test": 30}.items():
            for place in range(count):
                first = draw.sample(WORDS, 4)
                second = draw.sample(WORDS, 4)
                label = len(set(first) & set(second)) + 0.5 if labels is None else labels[place % len(labels)]
                row = {"split": split, "label": label, "text": " ".join(first), "text2": " ".join(second)}
                file.write(json.dumps(row) + "\n")
    data = {"source": "jsonl", "path": "pairs.jsonl", "text2": "text2"}
    task = {"kind": "regression", "range": [0, 5], "data": data, **more}
    (folder / "suite.yaml").write_text(json.dumps({"suite": "mine", "tasks": {"pairs": task}}))
    return folder / "suite.yaml"


def only(suite: Path) -> Regression:
    task = tv.load_suite(suite).task("pairs")
    assert isinstance(task, Regression)
    return task


@given(numbers, st.integers(0, 1000))
def test_figures_are_those_of_scipy(labels: list[float], seed: int) -> None:
    wanted = np.array([*labels, 0.0, 1.0])
    found = np.round(wanted + np.random.default_rng(seed).normal(size=len(wanted)), 1)
    if np.ptp(found) == 0:
        return
    made = score(torch.from_numpy(found), torch.from_numpy(wanted))
    assert made.pearson == pytest.approx(stats.pearsonr(found, wanted).statistic, abs=1e-12)
    assert made.spearman == pytest.approx(stats.spearmanr(found, wanted).statistic, abs=1e-12)
    assert made.mse == pytest.approx(float(((found - wanted) ** 2).mean()))
    low, high = stats.pearsonr(found, wanted).confidence_interval(0.95)
    assert made.interval == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "mse"])
def test_the_value_is_the_metric_and_lies_in_its_interval(metric: str) -> None:
    draw = torch.Generator().manual_seed(0)
    wanted = torch.randn(50, generator=draw)
    made = score(wanted + torch.randn(50, generator=draw), wanted, metric)
    assert made.value == getattr(made, metric) and made.examples == 50
    assert made.interval is not None and made.interval[0] < made.value < made.interval[1]
    assert made.utility == (1 / made.mse if metric == "mse" else made.value)


def test_constant_labels_have_no_correlation_and_constant_predictions_have_none_with_them() -> None:
    rising, flat = torch.arange(4.0), torch.ones(4)
    with pytest.raises(
        InputError, match=r"metric 'pearson': undefined, as all 4 labels are 1; .* metric: mse"
    ):
        score(rising, flat)
    made = score(rising, flat, "mse")
    assert (made.pearson, made.spearman, made.value) == (None, None, 1.5)
    assert score(flat, rising).value == 0.0
    assert score(rising, rising).interval == (1.0, 1.0)
    assert fisher(0.5, 3, "pearson") is None


def test_the_probe_is_a_ridge_regression_at_one_of_its_strengths() -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(60, 5, generator=draw, dtype=torch.float64)
    unit = features / features.norm(dim=1, keepdim=True)
    labels = unit @ torch.tensor([1.0, -2, 0, 3, 0.5], dtype=torch.float64) + 2
    head = ridge_probe(features, labels)
    centred, middle = unit - unit.mean(0), labels - labels.mean()
    fits = [
        torch.linalg.solve(centred.T @ centred + alpha * torch.eye(5), centred.T @ middle)
        for alpha in np.logspace(-4, 4, 17)
    ]
    assert min(float((head.weight[0].double() - fit).norm()) for fit in fits) < 1e-5
    assert_close(head(features.float())[:, 0], labels.float(), rtol=1e-3, atol=1e-2)


def test_a_regression_is_probed_trained_and_measured(tiny_model: Path, tmp_path: Path) -> None:
    task = only(write(tmp_path, max_length=16))
    backbone = tv.load_backbone(str(tiny_model))
    evaluator = tv.Evaluator(backbone, [task])
    before = evaluator.score(evaluator.pretrained, "pairs", "train")
    settings = TrainSettings(lr=3e-3, steps=60, batch_size=16)
    for regime, gain in {"full": 0.7, "tangent": 0.95}.items():
        vector = finetune(backbone, evaluator.part("pairs"), regime=regime, settings=settings)
        space: Any = "tangent" if regime == "tangent" else "ordinary"
        after = evaluator.score(evaluator.points({"v": vector}, space=space).at({"v": 1.0}), "pairs", "train")
        assert after.mse < gain * before.mse and after.pearson > before.pearson


def test_the_loss_is_the_mean_squared_error(evaluator: tv.Evaluator) -> None:
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(6, 4, generator=draw)
    labels = torch.randn(6, generator=draw)
    head = ridge_probe(features, labels)
    asked = Regressing(head)
    expected = ((head(features)[:, 0].double() - labels.double()) ** 2).mean()
    loss = asked.loss(features, Batch({}, labels, torch.arange(6)))
    assert_close(loss.double(), expected)


@pytest.mark.parametrize("labels", [["0.5", "2.25"], [1, 4], [0.0, 5.0]])
def test_numbers_may_be_written_in_any_way(labels: list[Any], tmp_path: Path) -> None:
    found = only(write(tmp_path, labels)).split("test").labels
    assert found.dtype == torch.float32 and found[:2].tolist() == [float(label) for label in labels]


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (["a lot", "2"], "row 111: label 'a lot', expected a finite number"),
        (["nan", "2"], "row 111: label 'nan', expected a finite number"),
        ([math.inf, 1], "expected a finite number"),
        ([7.5, 1], "row 111: label 7.5 is outside the range 0 to 5 of 'pairs'"),
        ([True, 1], "row 111: label True, expected a whole number"),
        ([None, 1], "row 111: the field 'label' is empty"),
    ],
)
def test_what_is_no_number_is_named_with_its_row(labels: list[Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        only(write(tmp_path, labels)).split("test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"range": [5, 0]}, r"range: \[5.0, 0.0\], expected the smallest label before the largest"),
        (
            {"classes": ["a", "b"]},
            "classes: a key of kind 'classification', and this task is of kind 'regression'",
        ),
        ({"head": "zero-shot"}, "head: .*'linear-probe' or 'own'"),
        ({"metric": "accuracy"}, "metric: .*'pearson', 'spearman' or 'mse'"),
        ({"checkpoint": "x"}, "checkpoint: 'x' lends its head, and this task has head: linear-probe"),
    ],
)
def test_a_wrong_key_is_one_line(more: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        only(write(tmp_path, **more))


def test_constant_training_labels_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    task = only(write(tmp_path, [2.0]))
    with pytest.raises(InputError, match=r"^pairs: all 80 training labels are 2, expected different numbers"):
        task.objective(tv.load_backbone(str(tiny_model)))


def test_a_number_is_no_class(tmp_path: Path) -> None:
    suite = write(tmp_path)
    text = suite.read_text().replace('"kind": "regression", "range": [0, 5]', '"classes": ["a", "b"]')
    suite.write_text(text)
    with pytest.raises(InputError, match=r"row 111: label \d\.5, expected a whole number or a class name"):
        tv.load_suite(suite).task("pairs").split("test")


def test_images_are_given_numbers_too(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        shades = np.arange(12, dtype=np.uint8) * 20
        arrays |= {
            f"x_{split}": np.broadcast_to(shades[:, None, None], (12, 32, 32)),
            f"y_{split}": shades / 240,
        }
    np.savez(tmp_path / "shades.npz", **arrays)
    data = {"source": "npz", "path": str(tmp_path / "shades.npz")}
    task = tv.Task.parse("task", {"name": "shade", "kind": "regression", "modality": "image", "data": data})
    evaluator = tv.Evaluator(tv.load_backbone("builtin"), [task])
    assert evaluator.score(evaluator.pretrained, "shade", "test").pearson > 0.9
