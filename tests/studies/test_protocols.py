"""The protocols on a tiny model that learns tiny tasks: the shape of the phenomena, and of the records."""

from itertools import combinations
from typing import Any

import pytest

import taskvec as tv
from taskvec.errors import BaseMismatch, InputError
from taskvec.studies.addition import subsets

RECIPE = tv.TrainSettings(lr=2e-3, steps=15, batch_size=16, weight_decay=0.01, validations=0)
TASKS = ["pets", "taste", "number"]


@pytest.fixture(scope="module")
def vectors(evaluator: tv.Evaluator) -> dict[str, tv.TaskVector]:
    return {task: tv.finetune(evaluator.backbone, evaluator.part(task), settings=RECIPE) for task in TASKS}


@pytest.fixture(scope="module")
def points(evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector]) -> tv.Points:
    noise = {"noise": tv.TaskVector.random_like(vectors["pets"], seed=0)}
    return evaluator.points({**vectors, **noise})


def test_addition_makes_one_model_of_three(evaluator: tv.Evaluator, points: tv.Points) -> None:
    single = tv.single_task(evaluator, points, TASKS)
    record: dict[str, Any] = tv.addition(evaluator, points, TASKS, single, fixed={"1/T": 1 / 3})
    zero = sum(evaluator.values(evaluator.pretrained, TASKS, "test").values()) / 3
    assert record["absolute"] > zero + 0.1
    assert record["normalized"] == pytest.approx(
        sum(record["test"][task]["value"] / single["test"][task] for task in TASKS) / 3
    )
    assert record["fixed"]["1/T"]["coefficient"] == 1 / 3
    assert set(record["validation"]) == set(TASKS)


def test_a_single_task_value_is_that_of_its_own_vector(evaluator: tv.Evaluator, points: tv.Points) -> None:
    single = tv.single_task(evaluator, points, TASKS)
    expected = evaluator.score(points.at({"taste": 1.0}), "taste", "test").value
    assert single["test"]["taste"] == expected


def test_negation_forgets_the_target_and_noise_does_not(evaluator: tv.Evaluator, points: tv.Points) -> None:
    record: dict[str, Any] = tv.negation(
        evaluator,
        points,
        "pets",
        ["taste", "number"],
        subtract=["pets", "noise"],
        measure=["pets"],
        keep=0.7,
    )
    rows = record["rows"]
    assert list(rows) == ["pretrained", "pets", "negative pets", "negative noise"]
    assert rows["pets"]["target"] > rows["pretrained"]["target"]
    assert rows["negative pets"]["target"] <= rows["pretrained"]["target"] - 0.1
    assert rows["negative pets"]["target"] < rows["negative noise"]["target"]
    assert len(rows["negative pets"]["target_recall"]) == 2


def test_an_analogy_is_c_plus_b_minus_a(evaluator: tv.Evaluator, points: tv.Points) -> None:
    record: dict[str, Any] = tv.analogy(
        evaluator, points, a="number", b="pets", c="taste", target="pets", reference="pets"
    )
    rows = record["rows"]
    assert list(rows) == [
        "pretrained",
        "taste",
        "pets",
        "taste + pets",
        "taste + (pets - number)",
        "pets (trained)",
    ]
    chosen = rows["taste + (pets - number)"]["coefficients"]
    alpha = chosen["pets"]
    assert chosen == {"taste": alpha, "pets": alpha, "number": -alpha}
    params = points.at({"taste": alpha, "pets": alpha, "number": -alpha})
    assert rows["taste + (pets - number)"]["value"] == evaluator.score(params, "pets", "test").value
    assert rows["pets"]["value"] >= 0.9


def test_two_coefficients_are_at_least_as_good_on_validation_as_one(
    evaluator: tv.Evaluator, points: tv.Points
) -> None:
    def validated(coefficients: int) -> float:
        record: dict[str, Any] = tv.analogy(
            evaluator, points, a="number", b="pets", c="taste", target="pets", coefficients=coefficients
        )
        chosen = record["rows"]["taste + (pets - number)"]["coefficients"]
        return evaluator.score(points.at(chosen), "pets", "validation").value

    assert validated(2) >= validated(1)


def test_subsets_are_those_asked_for() -> None:
    assert list(subsets(TASKS, "all")) == [*combinations(TASKS, 2), tuple(TASKS)]
    assert list(subsets(["a", "b", "c", "d"], "pairs"))[-1] == ("a", "b", "c", "d")
    assert list(subsets(TASKS, "whole")) == [tuple(TASKS)]
    with pytest.raises(InputError, match="'some' is not one of all, pairs, whole"):
        list(subsets(TASKS, "some"))


def test_protocols_refuse_what_makes_no_sense(evaluator: tv.Evaluator, points: tv.Points) -> None:
    with pytest.raises(InputError, match="two or more distinct tasks"):
        tv.addition(evaluator, points, ["pets", "pets"], {})
    with pytest.raises(InputError, match="needs control tasks other than itself"):
        tv.negation(evaluator, points, "pets", ["pets"], subtract=["pets"])
    with pytest.raises(InputError, match="three different vectors"):
        tv.analogy(evaluator, points, a="pets", b="taste", c="pets", target="number")


def test_a_vector_of_another_model_is_refused(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector]
) -> None:
    other = {name: value + 1 for name, value in tv.open_weights(evaluator.backbone.ref).items()}
    deltas = {name: vectors["pets"][name] for name in vectors["pets"]}
    foreign = tv.TaskVector.from_tensors(deltas, base=other)
    with pytest.raises(BaseMismatch):
        evaluator.points({"foreign": foreign})


@pytest.fixture(scope="module")
def linear(evaluator: tv.Evaluator) -> tv.Points:
    vectors = {
        task: tv.finetune(evaluator.backbone, evaluator.part(task), regime="tangent", settings=RECIPE)
        for task in TASKS
    }
    return evaluator.points(vectors, space="tangent")


def test_addition_in_tangent_space_also_finds_a_coefficient_for_every_task(
    evaluator: tv.Evaluator, linear: tv.Points
) -> None:
    single = tv.single_task(evaluator, linear, TASKS)
    record: dict[str, Any] = tv.addition(evaluator, linear, TASKS, single, each=True)
    zero = sum(evaluator.values(evaluator.pretrained, TASKS, "test").values()) / 3
    assert record["absolute"] > zero + 0.1
    each = record["each"]
    best = max(height for _, height in record["trace"])
    assert each["objective"] >= best - 1e-12
    values = evaluator.values(linear.at(each["coefficients"]), TASKS, "test")
    assert each["values"] == values
    assert each["normalized"] == pytest.approx(sum(values[t] / single["test"][t] for t in TASKS) / 3)


def test_a_sum_without_a_task_is_the_sum_of_the_others(evaluator: tv.Evaluator, linear: tv.Points) -> None:
    single = tv.single_task(evaluator, linear, TASKS)
    record: dict[str, Any] = tv.addition(evaluator, linear, TASKS, single, each=True)
    others = linear.at({"pets": record["coefficient"], "number": record["coefficient"]})
    assert record["without"]["taste"]["values"] == evaluator.values(others, TASKS, "test")
    assert record["without"]["taste"]["values"]["taste"] < record["test"]["taste"]["value"]


def test_the_protocols_take_points_of_tangent_space(evaluator: tv.Evaluator, linear: tv.Points) -> None:
    forgotten: dict[str, Any] = tv.negation(
        evaluator, linear, "pets", ["taste", "number"], subtract=["pets"], measure=["pets"], keep=0.7
    )
    rows = forgotten["rows"]
    assert rows["negative pets"]["target"] < rows["pretrained"]["target"] < rows["pets"]["target"]
    solved: dict[str, Any] = tv.analogy(evaluator, linear, a="number", b="pets", c="taste", target="pets")
    alpha = solved["rows"]["pets"]["coefficients"]["pets"]
    assert (
        solved["rows"]["pets"]["value"] == evaluator.score(linear.at({"pets": alpha}), "pets", "test").value
    )
