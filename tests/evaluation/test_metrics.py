"""Metrics by their definitions, on predictions worked out by hand."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import taskvec as tv
from taskvec.errors import InputError, TaskvecError
from taskvec.evaluation.metrics import absolute, majority, normalized, score, wilson
from taskvec.runs.experiment import load_experiment
from taskvec.runs.report import facts_of, tables_of
from taskvec.runs.runner import Runner
from taskvec.studies.store import Store


def logits(predicted: list[int], classes: int = 2) -> torch.Tensor:
    return 5.0 * torch.nn.functional.one_hot(torch.tensor(predicted), classes)


def test_figures_of_a_case_worked_by_hand() -> None:
    # class 0: 2 of 3 found, class 1: 1 of 2 found; one false positive each
    found = score(logits([0, 0, 1, 1, 0]), torch.tensor([0, 0, 0, 1, 1]))
    assert found.accuracy == pytest.approx(3 / 5)
    assert found.recall == pytest.approx((2 / 3, 1 / 2))
    assert found.macro_f1 == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.matthews == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 2 * 3 * 2))
    right, wrong = math.log(1 + math.exp(-5)), math.log(1 + math.exp(5))
    assert found.perplexity == pytest.approx(math.exp((3 * right + 2 * wrong) / 5), rel=1e-5)
    assert found.value == found.accuracy


def test_the_value_is_the_tasks_own_metric() -> None:
    predicted, labels = logits([0, 1, 1]), torch.tensor([0, 0, 1])
    for metric in ("accuracy", "macro_f1", "matthews"):
        found = score(predicted, labels, metric)
        assert found.value == getattr(found, metric)


def test_a_class_without_examples_has_no_recall() -> None:
    record = score(logits([0, 1], 3), torch.tensor([0, 1])).record()
    assert record["recall"] == (1.0, 1.0, None)
    json.dumps(record, allow_nan=False)


def test_nothing_to_score_and_unknown_metrics_are_refused() -> None:
    with pytest.raises(InputError, match="split is empty"):
        score(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="'f1'; known: accuracy"):
        score(logits([0]), torch.tensor([0]), "f1")


def lowest_recall(labels: torch.Tensor, predicted: torch.Tensor) -> float:
    """Recall of the class that is found least."""
    return min(float((predicted[labels == c] == c).double().mean()) for c in set(labels.tolist()))


def test_a_metric_of_one_s_own_is_measured_searched_and_normalized_like_any_other(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tv.METRICS, "lowest_recall", lowest_recall)
    assert score(logits([0, 0, 1, 1, 0]), torch.tensor([0, 0, 0, 1, 1])).metric == "accuracy"
    found = score(logits([0, 0, 1, 1, 0]), torch.tensor([0, 0, 0, 1, 1]), "lowest_recall")
    assert (found.value, found.accuracy) == (0.5, 0.6)
    assert found.interval == wilson(3, 5)
    json.dumps(found.record(), allow_nan=False)

    text = tiny_suite.read_text().replace("defaults:\n", "defaults:\n  metric: lowest_recall\n")
    suite = tmp_path / "own.yaml"
    suite.write_text(text.replace("'{task}.jsonl'", f"'{tiny_suite.parent}/{{task}}.jsonl'"))
    experiment = tmp_path / "run.yaml"
    experiment.write_text(
        f"experiment: own\nmodel: {tiny_model}\nsuite: {suite}\ntasks: [pets, taste]\n"
        "regimes: {full: {}}\ntraining: {lr: 2e-3, steps: 12, batch_size: 16}\n"
        "search: {step: 0.5, coarse: 1, limit: 1}\n"
        "addition: {subsets: whole}\nnegation: {targets: [pets], keep: 0.1, baselines: [random]}\n"
    )
    results = Runner(*load_experiment(experiment), Store(tmp_path / "run")).run()
    facts = facts_of(results)
    of = facts["seeds"]["0"]["full"]
    assert facts["zero_shot"]["pets"]["test"]["metric"] == "lowest_recall"
    added = of["addition"][0]
    recalls = {task: min(test["recall"]) for task, test in added["test"].items()}
    assert added["values"] == pytest.approx(recalls)
    assert added["normalized"] == pytest.approx(normalized(recalls, of["single"]["test"]))
    assert tables_of(results)


def whatever(figure: object, labels: torch.Tensor, predicted: torch.Tensor) -> object:
    return figure


def test_a_metric_that_gives_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, words in ((math.nan, "gave nan on 1 examples"), ("good", "gave 'good'"), (None, "gave None")):
        monkeypatch.setitem(tv.METRICS, "odd", partial(whatever, wrong))
        with pytest.raises(TaskvecError, match=f"metric 'odd': {words}"):
            score(logits([0]), torch.tensor([0]), "odd")


def test_a_task_with_a_metric_that_there_is_not_is_refused_when_the_suite_is_read(
    tiny_suite: Path, tmp_path: Path
) -> None:
    suite = tmp_path / "own.yaml"
    suite.write_text(tiny_suite.read_text().replace("defaults:\n", "defaults:\n  metric: acuracy\n"))
    with pytest.raises(InputError, match=r"own\.yaml: .*metric: no metric called 'acuracy'; did you mean"):
        tv.load_suite(suite)


@given(st.integers(1, 10_000), st.data())
def test_the_interval_holds_the_proportion_and_stays_in_range(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= high <= 1


def test_the_interval_of_a_textbook_case() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-4)  # Newcombe 1998, table I


def test_normalized_is_a_mean_of_ratios_and_not_a_ratio_of_means() -> None:
    values, single = {"a": 0.5, "b": 0.9}, {"a": 1.0, "b": 0.9}
    assert absolute(values) == pytest.approx(0.7)
    assert normalized(values, single) == pytest.approx((0.5 + 1.0) / 2)


def test_a_task_that_its_own_model_never_gets_right_has_no_ratio() -> None:
    assert normalized({"a": 0.5, "b": 0.9}, {"a": 0.0, "b": 0.9}) == 1.0
    with pytest.raises(InputError, match="a: no single-task score is positive"):
        normalized({"a": 0.5}, {"a": -0.1})


def test_majority_is_the_share_of_the_most_frequent_class() -> None:
    assert majority(torch.tensor([0, 1, 1, 2])) == 0.5
