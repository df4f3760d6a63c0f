"""Intervals by the bootstrap hold what they should, and are the same whenever they are asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef

from taskvec.tasks.intervals import FIGURES, macro_f1, matthews, of_classes, of_function, of_mean, of_ratio


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_figures_of_counts_are_those_of_labels_and_predictions(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = map(np.array, zip(*pairs, strict=True))
    table = confusion_matrix(labels, predicted, labels=range(4))[None].astype(float)
    counts = table.sum(2), table.sum(1), np.diagonal(table, axis1=1, axis2=2)
    expected = f1_score(labels, predicted, average="macro", zero_division=0.0)
    assert macro_f1(*counts)[0] == pytest.approx(expected, abs=1e-12)
    if len(set(labels) | set(predicted)) > 1:
        assert matthews(*counts)[0] == pytest.approx(matthews_corrcoef(labels, predicted), abs=1e-12)


def test_an_undefined_correlation_is_zero() -> None:
    assert matthews(np.array([[5.0, 0.0]]), np.array([[5.0, 0.0]]), np.array([[5.0, 0.0]]))[0] == 0.0


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=2000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert of_mean(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert of_mean([0.5] * 20) == (0.5, 0.5)
    low, high = of_ratio(np.full(20, 6.0), np.full(20, 3.0))
    assert (low, high) == (2.0, 2.0)


def test_drawing_counts_of_cells_is_drawing_examples() -> None:
    draw = np.random.default_rng(3)
    labels = draw.integers(3, size=400)
    predicted = np.where(draw.random(400) < 0.6, labels, draw.integers(3, size=400))
    by_cells = of_classes(labels, predicted, 3, FIGURES)
    scores = {
        "macro_f1": lambda at: float(f1_score(labels[at], predicted[at], average="macro")),
        "matthews": lambda at: float(matthews_corrcoef(labels[at], predicted[at])),
    }
    for name, score in scores.items():
        assert by_cells[name] == pytest.approx(of_function(400, score) or (), abs=0.02)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(1).random(50)
    assert of_mean(values) == of_mean(values)
    assert of_mean(values, seed=1) != of_mean(values)


def unsure(at: "np.typing.NDArray[np.int64]") -> float:
    """A figure that some draws do not have."""
    if 0 not in at:
        raise ValueError("one class only")
    return 1.0


def test_draws_without_a_figure_are_left_out_and_none_is_said_if_most_are() -> None:
    assert of_function(50, unsure) == (1.0, 1.0)
    assert of_function(50, lambda at: float("nan")) is None
