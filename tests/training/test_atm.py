"""ATM against what theory says it is: mean merging for one round, gradient descent for one step a round."""

import pytest
import torch
from torch.testing import assert_close

import taskvec as tv
from taskvec.errors import InputError, UnknownName
from taskvec.models.functional import encode

RECIPE = tv.TrainSettings(lr=3e-3, steps=8, batch_size=16, weight_decay=0.01, validations=0)


def parts(evaluator: tv.Evaluator) -> list[tv.Part]:
    return [evaluator.part(task) for task in evaluator.tasks]


def test_one_round_is_mean_merging_of_single_task_vectors(evaluator: tv.Evaluator) -> None:
    once = tv.atm(evaluator.backbone, parts(evaluator), rounds=1, settings=RECIPE)
    vectors = [tv.finetune(evaluator.backbone, part, settings=RECIPE) for part in parts(evaluator)]
    assert_close(dict(once), dict(tv.combine("mean", vectors)), rtol=1e-5, atol=1e-7)


def test_a_full_batch_step_a_round_is_multi_task_gradient_descent(evaluator: tv.Evaluator) -> None:
    backbone, tasks, rounds, lr = evaluator.backbone, parts(evaluator), 3, 0.05
    sgd = tv.TrainSettings(
        lr=lr, steps=rounds, batch_size=10**6, optimizer="sgd", schedule="constant", warmup=0, clip=None
    )
    displacement = tv.atm(backbone, tasks, rounds=rounds, settings=sgd)

    theta = {name: value.clone() for name, value in evaluator.pretrained.items()}
    for _ in range(rounds):
        leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
        losses = [
            torch.nn.functional.cross_entropy(
                part.head(encode(backbone, leaves, backbone.collate(part.split.inputs))),  # type: ignore[operator]
                part.split.labels,
            )
            for part in tasks
        ]
        slopes = torch.autograd.grad(sum(losses) / len(losses), list(leaves.values()))  # type: ignore[arg-type]
        theta = {name: theta[name] - lr * slope for name, slope in zip(leaves, slopes, strict=True)}
    moved = {name: displacement[name] for name in theta}
    expected = {name: value - evaluator.pretrained[name] for name, value in theta.items()}
    assert_close(moved, expected, rtol=1e-3, atol=2e-6)


def test_scale_and_rule_are_those_asked_for(evaluator: tv.Evaluator) -> None:
    options = {"rounds": 1, "settings": RECIPE, "regime": "attention"}
    mean = tv.atm(evaluator.backbone, parts(evaluator), **options)  # type: ignore[arg-type]
    third = tv.atm(evaluator.backbone, parts(evaluator), rule="sum", scale=1 / 3, **options)  # type: ignore[arg-type]
    assert_close(dict(third), dict(mean), rtol=1e-4, atol=1e-7)


def test_tangent_regimes_are_refused(evaluator: tv.Evaluator) -> None:
    with pytest.raises(InputError, match="regime 'tangent': ATM moves the point"):
        tv.atm(evaluator.backbone, [evaluator.part("pets")], rounds=1, regime="tangent")


def test_no_rounds_and_unknown_rules_are_refused(evaluator: tv.Evaluator) -> None:
    with pytest.raises(InputError, match="rounds: 0"):
        tv.atm(evaluator.backbone, parts(evaluator), rounds=0)
    with pytest.raises(UnknownName, match="did you mean 'mean'"):
        tv.atm(evaluator.backbone, parts(evaluator), rounds=1, rule="meen", settings=RECIPE)


def test_rounds_share_the_steps_that_there_are(evaluator: tv.Evaluator) -> None:
    taken: list[int] = []

    def count(label: str, done: int, total: int, **facts: float) -> None:
        taken.append(1)

    recipe = RECIPE.model_copy(update={"steps": 7})
    tv.atm(evaluator.backbone, parts(evaluator)[:1], rounds=3, settings=recipe, watch=count)
    assert len(taken) == 7
    with pytest.raises(InputError, match="rounds: 8 is more than the 7 training steps"):
        tv.atm(evaluator.backbone, parts(evaluator), rounds=8, settings=recipe)
