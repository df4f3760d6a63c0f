"""Terms of the loss on the displacement itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

import taskvec as tv
from taskvec.errors import InputError
from taskvec.training.checkpoint import Checkpoint

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


PENALTIES: list[Any] = [
    "decay",
    {"kind": "tau_jp", "strength": 0.1},
    {"kind": "orthoreg", "form": "cosine"},
    [{"kind": "tau_jp", "power": 1, "sets": "all"}, "decay", {"kind": "orthoreg", "strength": 1e-3}],
]


@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
@pytest.mark.parametrize("regime", ["full", "tangent"])
def test_a_killed_training_goes_on_to_the_same_bits(
    evaluator: tv.Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, regime: str, penalty: Any
) -> None:
    monkeypatch.setattr(Checkpoint, "every", 0.0)
    settings = tv.TrainSettings.parse("", RECIPE | {"penalty": penalty})
    parts = [evaluator.part(name) for name in ("taste", "number")]

    def trained(**more: Any) -> tv.TaskVector:
        given: dict[str, Any] = {"settings": settings, "regime": regime, "references": parts}
        return tv.finetune(evaluator.backbone, evaluator.part("pets"), **given, **more)

    def stop(label: str, done: int, total: int, **facts: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    whole = trained()
    with pytest.raises(KeyboardInterrupt):
        trained(checkpoint=tmp_path / "state.pt", watch=stop)
    resumed = trained(checkpoint=tmp_path / "state.pt")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_penalties_of_a_list_add_up(evaluator: tv.Evaluator) -> None:
    def first(penalty: Any) -> float:
        """What the log says after two steps, when there is a displacement."""
        seen: list[float] = []
        settings = tv.TrainSettings.parse("", RECIPE | {"steps": 2, "lr": 1e-6, "penalty": penalty})
        tv.finetune(
            evaluator.backbone,
            evaluator.part("pets"),
            settings=settings,
            log=lambda _, values: seen.append(values["penalty"]),
        )
        return seen[0]

    one, two = {"kind": "orthoreg", "strength": 0.5}, {"kind": "orthoreg", "form": "code", "strength": 2.0}
    assert first([one, two]) == pytest.approx(first(one) + first(two))


@pytest.mark.parametrize("combiner", [None, "pcgrad"])
def test_joint_training_has_them_too(evaluator: tv.Evaluator, combiner: str | None) -> None:
    def trained(penalty: Any) -> tv.TaskVector:
        settings = tv.TrainSettings.parse("", RECIPE | {"penalty": penalty})
        parts = [evaluator.part(name) for name in ("pets", "taste")]
        others = [evaluator.part("number")]
        return tv.finetune(evaluator.backbone, parts, settings=settings, references=others, combiner=combiner)

    free, held = trained(()), trained([{"kind": "decay", "strength": 30}, "tau_jp"])
    assert held.norm() < 0.7 * free.norm()
    assert (held.info.training or {})["references"].keys() == {"number"}


def test_alternating_training_has_them_too(evaluator: tv.Evaluator) -> None:
    parts = [evaluator.part(name) for name in ("pets", "taste")]

    def trained(penalty: Any) -> tv.TaskVector:
        settings = tv.TrainSettings.parse("", RECIPE | {"penalty": penalty})
        return tv.atm(evaluator.backbone, parts, rounds=2, settings=settings)

    assert trained([{"kind": "decay", "strength": 30}, "tau_jp"]).norm() < 0.7 * trained(()).norm()


@pytest.mark.filterwarnings("ignore:.*float16.*")
def test_half_precision_scales_them_with_the_loss(evaluator: tv.Evaluator) -> None:
    def trained(**more: Any) -> torch.Tensor:
        settings = tv.TrainSettings.parse(
            "", RECIPE | {"penalty": [{"kind": "decay", "strength": 3}, "tau_jp"]} | more
        )
        others = [evaluator.part("taste")]
        vector = tv.finetune(evaluator.backbone, evaluator.part("pets"), settings=settings, references=others)
        return torch.cat([vector[name].flatten() for name in sorted(vector)])

    assert torch.cosine_similarity(trained(), trained(precision="fp16"), dim=0) > 0.8
