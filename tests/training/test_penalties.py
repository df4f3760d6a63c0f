"""Terms of the loss on the displacement itself."""

from typing import Any

import pytest
import torch

import taskvec as tv
from taskvec.errors import InputError

RECIPE: dict[str, Any] = {"lr": 3e-3, "steps": 4, "batch_size": 16, "weight_decay": 0, "validations": 0}


def tuned(evaluator: tv.Evaluator, regime: str = "full", **settings: Any) -> tv.TaskVector:
    recipe = tv.TrainSettings.parse("", RECIPE | settings)
    return tv.finetune(evaluator.backbone, evaluator.part("pets"), regime=regime, settings=recipe)


@pytest.mark.parametrize("regime", ["full", "tangent", "attention", "lora", "tangent-lora"])
def test_decay_towards_the_pretrained_model_shortens_the_vector(evaluator: tv.Evaluator, regime: str) -> None:
    free, short = (
        tuned(evaluator, regime, penalty=[{"kind": "decay", "strength": strength}]) for strength in (0, 30)
    )
    assert short.norm() < 0.7 * free.norm()


def test_without_strength_the_bits_are_those_of_no_penalty(evaluator: tv.Evaluator) -> None:
    none, weak = tuned(evaluator), tuned(evaluator, penalty={"kind": "decay", "strength": 0})
    assert all(torch.equal(none[name], weak[name]) for name in none)


def test_the_recipe_of_a_training_without_penalties_does_not_speak_of_them(evaluator: tv.Evaluator) -> None:
    plain, penalized = (tuned(evaluator, **more).info.training or {} for more in ({}, {"penalty": "decay"}))
    assert plain and "penalty" not in plain
    assert penalized["penalty"] == [{"strength": 1.0, "kind": "decay"}]


def test_an_unknown_penalty_is_refused() -> None:
    with pytest.raises(InputError, match="penalty"):
        tv.TrainSettings.parse("", {"penalty": {"kind": "dekay"}})
