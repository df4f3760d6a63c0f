"""The gap between a model and its linearization, and what non-linearity gains."""

import math

import pytest
import torch

import taskvec as tv
from taskvec.errors import InputError
from taskvec.studies.linearity import RegimePoints, follow, kernel_gap, linearity_gap, nonlinear_advantage

TASKS = ["pets", "taste"]


def vectors(evaluator: tv.Evaluator, regime: str = "full", seed: int = 0) -> dict[str, tv.TaskVector]:
    draw = torch.Generator().manual_seed(seed)
    return {
        task: tv.TaskVector.from_tensors(
            {name: 0.05 * torch.randn(p.shape, generator=draw) for name, p in evaluator.pretrained.items()},
            base=evaluator.backbone.ref,
            task=task,
            regime=regime,
        )
        for task in TASKS
    }


def test_the_gap_is_the_missed_share_of_the_movement() -> None:
    f0 = torch.zeros(2, 2)
    f, f_lin = torch.tensor([[3.0, 4.0], [0.0, 5.0]]), torch.tensor([[3.0, 4.0], [0.0, 4.0]])
    assert kernel_gap(f, f_lin, f0) == pytest.approx(0.1)  # missed (0 + 1) / 2, moved (5 + 5) / 2


def test_a_linear_model_has_no_gap_and_one_that_stands_still_has_none_to_give() -> None:
    f = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert kernel_gap(f, f, torch.zeros(5, 3)) == 0
    assert kernel_gap(f, f, f) is None


@pytest.mark.parametrize(
    ("nonlinear", "linear", "classes", "expected"),
    [(0.9, 0.6, 4, 0.4), (0.5, 1.0, 2, -1.0), (1.0, 0.1, 10, 1.0), (0.7, 0.7, 3, 0.0)],
)
def test_the_advantage_by_hand(nonlinear: float, linear: float, classes: int, expected: float) -> None:
    assert nonlinear_advantage(nonlinear, linear, classes) == pytest.approx(expected)


def test_a_task_of_one_class_has_no_advantage() -> None:
    with pytest.raises(InputError, match="2 or more"):
        nonlinear_advantage(0.5, 0.5, 1)


def test_the_gap_of_a_model_falls_linearly_with_the_coefficient(evaluator: tv.Evaluator) -> None:
    own = vectors(evaluator)
    ordinary, tangent = evaluator.points(own), evaluator.points(own, space="tangent")
    found = follow(evaluator, ordinary, tangent, "pets", [0.02, 0.04, 0.08])
    small, middle, large = (gap for gap in found.gap if gap is not None)
    assert math.log2(middle / small) == pytest.approx(1, abs=0.1)
    assert math.log2(large / middle) == pytest.approx(1, abs=0.2)
    assert 0 < small < 0.1


def test_accuracies_are_those_of_the_evaluator_in_either_space(evaluator: tv.Evaluator) -> None:
    own = vectors(evaluator)
    ordinary, tangent = evaluator.points(own), evaluator.points(own, space="tangent")
    found = follow(evaluator, ordinary, tangent, "taste", [0.5, 1.0])
    for place, coefficient in enumerate([0.5, 1.0]):
        at = {"taste": coefficient}
        scores = [evaluator.score(points.at(at), "taste", "test") for points in (ordinary, tangent)]
        assert [found.accuracy[place], found.accuracy_linear[place]] == [one.accuracy for one in scores]


def test_the_record_compares_with_the_linearization_and_with_tangent_training(
    evaluator: tv.Evaluator,
) -> None:
    own, linear = vectors(evaluator), vectors(evaluator, "tangent", seed=1)
    regimes = [
        RegimePoints("full", "ordinary", evaluator.points(own), evaluator.points(own, space="tangent")),
        RegimePoints(
            "tangent", "tangent", evaluator.points(linear), evaluator.points(linear, space="tangent")
        ),
    ]
    record = linearity_gap(evaluator, regimes, TASKS, coefficients=[0.5])
    assert record["coefficients"] == [0.5, 1.0]
    assert list(record["advantage"]) == ["full over its linearization", "full over tangent"]
    full, tangent = (record["regimes"][name]["tasks"]["pets"] for name in ("full", "tangent"))
    expected = 2 * (full["accuracy"][1] - tangent["accuracy_linear"][1])  # two classes
    assert record["advantage"]["full over tangent"]["tasks"]["pets"] == pytest.approx(expected)
    before = evaluator.score(evaluator.pretrained, "pets", "test").accuracy
    assert record["pretrained"]["pets"] == before


def test_regimes_of_ones_own_are_compared_by_what_they_train(evaluator: tv.Evaluator) -> None:
    def points(name: str, regime: tv.Regime) -> RegimePoints:
        own = vectors(evaluator)
        in_both = evaluator.points(own), evaluator.points(own, space="tangent")
        return RegimePoints(name, regime.evaluated_in, *in_both, trains=regime)

    regimes = [
        points("mine", tv.Regime("mlp", name="mine")),
        points("tangent-mine", tv.Regime("attention", "tangent", name="tangent-mine")),
        points("its tangent", tv.Regime("mlp", "tangent", name="its tangent")),
        points("small", tv.Regime("mlp", "lora", rank=2)),
        points("smaller, linear", tv.Regime("mlp", "tangent-lora", rank=1)),
        points("small, linear", tv.Regime("mlp", "tangent-lora", rank=2)),
    ]
    record = linearity_gap(evaluator, regimes, TASKS, coefficients=[0.5])
    assert list(record["advantage"]) == [
        "mine over its linearization",
        "mine over its tangent",
        "small over its linearization",
        "small over small, linear",
    ]


@pytest.mark.parametrize(("tasks", "coefficients"), [([], [1.0]), (["pets"], []), (["pets"], [0.0])])
def test_coefficients_are_positive_and_there_is_a_task(
    evaluator: tv.Evaluator, tasks: list[str], coefficients: list[float]
) -> None:
    with pytest.raises(InputError, match="positive coefficients"):
        linearity_gap(evaluator, [], tasks, coefficients=coefficients)
