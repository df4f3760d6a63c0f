"""Half precision: gradients stay in range, and overflows cost a step."""

from pathlib import Path

import pytest
import torch

import taskvec as tv
from taskvec.errors import InputError, TaskvecError
from taskvec.training.checkpoint import Checkpoint
from taskvec.training.scaling import LossScale

SETTINGS = tv.TrainSettings(lr=1e-3, steps=6, batch_size=16, precision="fp16")


def leaves(*slopes: float) -> list[torch.Tensor]:
    made = [torch.zeros(2, requires_grad=True) for _ in slopes]
    for leaf, slope in zip(made, slopes, strict=True):
        leaf.grad = torch.full((2,), slope)
    return made


def test_gradients_are_those_of_the_loss_itself() -> None:
    scale, given = LossScale.of("fp16"), leaves(3.0, 0.5)
    for leaf in given:
        assert leaf.grad is not None
        leaf.grad *= scale.factor
    assert scale.unscale(given)
    assert [leaf.grad[0].item() for leaf in given if leaf.grad is not None] == [3.0, 0.5]


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_an_overflow_halves_the_factor_and_costs_the_step(bad: float) -> None:
    scale = LossScale.of("fp16")
    assert not scale.unscale(leaves(1.0, bad))
    assert scale.factor == 2.0**15


def test_a_long_calm_doubles_the_factor() -> None:
    scale = LossScale.of("fp16")
    for _ in range(2000):
        scale.unscale(leaves(1.0))
    assert (scale.factor, scale.calm) == (2.0**17, 0)


def test_gradients_that_no_factor_mends_are_an_error() -> None:
    scale = LossScale.of("fp16")
    with pytest.raises(TaskvecError, match="precision fp16: gradients are not finite, however the loss is"):
        for _ in range(40):
            scale.unscale(leaves(float("nan")))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_other_precisions_are_not_scaled(precision: str) -> None:
    scale = LossScale.of(precision)  # type: ignore[arg-type]
    assert scale.factor == 1.0 and scale.unscale(leaves(float("nan"))) and scale.factor == 1.0


def test_a_training_comes_close_to_that_in_float32(evaluator: tv.Evaluator) -> None:
    part = evaluator.part("pets")
    narrow = tv.finetune(evaluator.backbone, part, settings=SETTINGS)
    wide = tv.finetune(
        evaluator.backbone, part, settings=SETTINGS.model_copy(update={"precision": "float32"})
    )
    assert narrow.cosine(wide) > 0.98


def test_tangent_space_is_refused(evaluator: tv.Evaluator) -> None:
    with pytest.raises(InputError, match="precision: fp16 in tangent space"):
        tv.finetune(evaluator.backbone, evaluator.part("pets"), regime="tangent", settings=SETTINGS)
    half = tv.Evaluator(evaluator.backbone, list(evaluator.tasks.values()), precision="fp16")
    vector = tv.finetune(evaluator.backbone, evaluator.part("pets"), settings=SETTINGS)
    assert 0 <= half.score(half.points({"a": vector}).at({"a": 1.0}), "pets", "test").value <= 1
    with pytest.raises(InputError, match="precision: fp16 in tangent space"):
        half.score(half.points({"a": vector}, space="tangent").at({"a": 1.0}), "pets", "test")


def test_a_killed_training_goes_on_with_the_factor(
    evaluator: tv.Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "every", 0.0)
    path, part = tmp_path / "state.pt", evaluator.part("pets")
    whole = tv.finetune(evaluator.backbone, part, settings=SETTINGS)

    def stop(label: str, done: int, total: int, **facts: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tv.finetune(evaluator.backbone, part, settings=SETTINGS, checkpoint=path, watch=stop)
    assert torch.load(path)["scaling"] == [2.0**16, 3]
    resumed = tv.finetune(evaluator.backbone, part, settings=SETTINGS, checkpoint=path)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    "scaling", [[0.0, 1], [float("inf"), 1], [1.0, -1], [1, 1], [1.0], "ab", [1.0, True]]
)
def test_a_damaged_factor_is_refused(
    evaluator: tv.Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaling: object
) -> None:
    monkeypatch.setattr(Checkpoint, "every", 0.0)
    path, part = tmp_path / "state.pt", evaluator.part("pets")

    def stop(label: str, done: int, total: int, **facts: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tv.finetune(evaluator.backbone, part, settings=SETTINGS, checkpoint=path, watch=stop)
    torch.save({**torch.load(path), "scaling": scaling}, path)
    with pytest.raises(InputError, match=r"damaged training checkpoint \(\w+\); remove it to start anew"):
        tv.finetune(evaluator.backbone, part, settings=SETTINGS, checkpoint=path)


@pytest.mark.parametrize(("device", "goes_on"), [("cuda:0", True), ("cpu", False)])
def test_heads_of_another_device_may_differ_by_rounding(
    evaluator: tv.Evaluator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    goes_on: bool,
) -> None:
    monkeypatch.setattr(Checkpoint, "every", 0.0)
    path, part = tmp_path / "state.pt", evaluator.part("pets")

    def stop(label: str, done: int, total: int, **facts: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tv.finetune(evaluator.backbone, part, settings=SETTINGS, checkpoint=path, watch=stop)
    state = torch.load(path)
    other = state["signature"].replace(part.objective.fingerprint(), "of a head that was rounded elsewhere")
    torch.save({**state, "signature": other, "device": device}, path)
    if goes_on:
        assert tv.finetune(evaluator.backbone, part, settings=SETTINGS, checkpoint=path).norm() > 0
    else:
        with pytest.raises(InputError, match="the checkpoint is of another training"):
            tv.finetune(evaluator.backbone, part, settings=SETTINGS, checkpoint=path)
    torch.save({**state, "signature": other.replace('"sign": 1.0', '"sign": -1.0'), "device": device}, path)
    with pytest.raises(InputError, match="the checkpoint is of another training"):
        tv.finetune(evaluator.backbone, part, settings=SETTINGS, checkpoint=path)
