"""Metrics by their definitions, on predictions worked out by hand."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from taskvec.errors import InputError
from taskvec.evaluation.metrics import absolute, majority, normalized, score, wilson


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
