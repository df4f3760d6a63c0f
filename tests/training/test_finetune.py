"""Fine-tuning: what it moves, what it leaves alone, and that it can be repeated and resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

import taskvec as tv
from taskvec.errors import InputError, TaskvecError
from taskvec.models.functional import encode
from taskvec.training import checkpoint, loop
from taskvec.training.loop import train
from taskvec.training.regimes import Space
from taskvec.training.space import linearized

RECIPE = tv.TrainSettings(lr=3e-3, steps=12, batch_size=16, weight_decay=0.01, validations=0)


def tuned(evaluator: tv.Evaluator, task: str, **options: Any) -> tv.TaskVector:
    settings = options.pop("settings", RECIPE)
    return tv.finetune(evaluator.backbone, evaluator.part(task), settings=settings, **options)


def same(a: tv.TaskVector, b: tv.TaskVector) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_fine_tuning_learns_the_task(evaluator: tv.Evaluator) -> None:
    vector = tuned(evaluator, "pets")
    before = evaluator.score(evaluator.pretrained, "pets", "test").accuracy
    after = evaluator.score(evaluator.points({"v": vector}).at({"v": 1.0}), "pets", "test").accuracy
    assert after >= 0.9 > before


def test_the_backbone_is_not_modified(evaluator: tv.Evaluator) -> None:
    before = {name: value.clone() for name, value in evaluator.backbone.network.state_dict().items()}
    tuned(evaluator, "pets")
    after = evaluator.backbone.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [n for n, p in evaluator.backbone.named_parameters() if p.grad is not None] == []


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(evaluator: tv.Evaluator) -> None:
    assert same(tuned(evaluator, "pets"), tuned(evaluator, "pets"))
    other = RECIPE.model_copy(update={"seed": 1})
    assert not same(tuned(evaluator, "pets"), tuned(evaluator, "pets", settings=other))


def test_attention_moves_the_projections_and_nothing_else(evaluator: tv.Evaluator) -> None:
    vector = tuned(evaluator, "pets", regime="attention")
    moved = [name for name in vector if vector[name].any()]
    assert len(moved) == 2 * 4  # two blocks, four projections
    assert all("attention" in name and name.endswith("weight") for name in moved)


def test_cutting_a_step_into_micro_batches_leaves_it_the_same(evaluator: tv.Evaluator) -> None:
    cut = RECIPE.model_copy(update={"accumulation": 3})
    one, three = tuned(evaluator, "pets"), tuned(evaluator, "pets", settings=cut)
    assert_close(dict(three), dict(one), rtol=1e-3, atol=1e-5)


def test_ascent_forgets(evaluator: tv.Evaluator) -> None:
    part = evaluator.part("pets")
    vector = tv.finetune(evaluator.backbone, part, settings=RECIPE, ascend=True)
    params = evaluator.points({"v": vector}).at({"v": 1.0})
    before = evaluator.score(evaluator.pretrained, "pets", "test").perplexity
    assert evaluator.score(params, "pets", "test").perplexity > before


def test_joint_training_learns_every_task(evaluator: tv.Evaluator) -> None:
    parts = [evaluator.part(task) for task in evaluator.tasks]
    longer = RECIPE.model_copy(update={"steps": 60})
    vector = tv.finetune(evaluator.backbone, parts, settings=longer)
    params = evaluator.points({"v": vector}).at({"v": 1.0})
    assert min(evaluator.values(params, evaluator.tasks, "test").values()) >= 0.8


def test_provenance_says_how_the_vector_was_made(evaluator: tv.Evaluator, tiny_model: Path) -> None:
    info = tuned(evaluator, "pets", regime="attention").info
    assert (info.task, info.regime) == ("pets", "attention")
    assert info.base.fingerprint == tv.open_weights(tiny_model).fingerprint()
    assert info.training is not None
    assert info.training["lr"] == RECIPE.lr
    assert info.training["examples"] == {"pets": 96}


class Killed(BaseException):
    """Stands for a signal: nothing in between catches it."""


@pytest.mark.parametrize(
    ("precision", "regime"),
    [
        *(("float32", "full"), ("bf16", "full"), ("float32", "tangent"), ("bf16", "tangent")),
        *(("float32", "lora"), ("bf16", "tangent-lora")),
    ],
)
def test_a_killed_training_resumes_to_the_same_bits(
    evaluator: tv.Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, regime: str
) -> None:
    recipe = RECIPE.model_copy(update={"precision": precision})
    whole = tuned(evaluator, "pets", regime=regime, settings=recipe)
    monkeypatch.setattr(checkpoint.Checkpoint, "every", 0.0)
    seen: list[int] = []

    def killer(label: str, done: int, total: int, **facts: float) -> None:
        if done == 7:
            raise Killed

    def watch(label: str, done: int, total: int, **facts: float) -> None:
        seen.append(done)

    path = tmp_path / "training.pt"
    with pytest.raises(Killed):
        tuned(evaluator, "pets", regime=regime, settings=recipe, checkpoint=path, watch=killer)
    assert path.exists()
    assert same(tuned(evaluator, "pets", regime=regime, settings=recipe, checkpoint=path, watch=watch), whole)
    assert seen == list(range(8, RECIPE.steps + 1))  # type: ignore[operator]
    assert not path.exists()


def test_a_checkpoint_of_another_training_is_refused(
    evaluator: tv.Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.Checkpoint, "every", 0.0)
    path = tmp_path / "training.pt"

    def killer(label: str, done: int, total: int, **facts: float) -> None:
        raise Killed

    with pytest.raises(Killed):
        tuned(evaluator, "pets", checkpoint=path, watch=killer)
    with pytest.raises(InputError, match=r"training\.pt: the checkpoint is of another training"):
        tuned(evaluator, "taste", checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"training\.pt: damaged training checkpoint"):
        tuned(evaluator, "pets", checkpoint=path)


def test_a_loss_that_is_not_finite_stops_training(evaluator: tv.Evaluator) -> None:
    wild = RECIPE.model_copy(update={"lr": 1e30, "clip": None, "optimizer": "sgd"})
    with pytest.raises(TaskvecError, match="lower the learning rate"):
        tuned(evaluator, "pets", settings=wild)


def test_labels_outside_the_head_and_empty_splits_are_refused(evaluator: tv.Evaluator) -> None:
    part = evaluator.part("pets")
    wrong = tv.Split(part.split.inputs, part.split.labels + 1)
    with pytest.raises(InputError, match="pets: label 2 is outside the head's 2 classes"):
        tv.finetune(evaluator.backbone, tv.Part("pets", wrong, part.head))
    with pytest.raises(InputError, match="pets: the training split is empty"):
        tv.finetune(evaluator.backbone, tv.Part("pets", part.split.first(0), part.head))


SGD = tv.TrainSettings(
    lr=0.1, steps=1, batch_size=10**6, optimizer="sgd", schedule="constant", warmup=0, clip=None
)


@pytest.mark.parametrize("space", ["ordinary", "tangent"])
def test_a_full_batch_step_of_sgd_is_a_gradient_step(evaluator: tv.Evaluator, space: Space) -> None:
    backbone, part = evaluator.backbone, evaluator.part("pets")
    step = train(backbone, evaluator.pretrained, [part], SGD, space=space)
    slopes = gradient(backbone, evaluator.pretrained, part)
    assert_close(step, {name: -0.1 * slope for name, slope in slopes.items()}, rtol=1e-4, atol=1e-6)


def test_tangent_training_is_gradient_descent_on_the_linearized_loss(evaluator: tv.Evaluator) -> None:
    """The oracle walks the loss of ``f0 + J tau`` by torch.func, in float32 as the loop does."""
    backbone, part = evaluator.backbone, evaluator.part("pets")
    theta0, batch = evaluator.pretrained, backbone.collate(part.split.inputs)

    def loss(tau: loop.Params) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            f0, slope = torch.func.jvp(lambda p: encode(backbone, p, batch), (theta0,), (tau,))  # type: ignore[misc]
        logits: Tensor = part.head(f0 + slope)  # type: ignore[operator]
        return torch.nn.functional.cross_entropy(logits, part.split.labels)

    tau = {name: torch.zeros_like(value) for name, value in theta0.items()}
    for _ in range(3):
        slopes = torch.func.grad(loss)(tau)
        tau = {name: value - 0.1 * slopes[name] for name, value in tau.items()}
    steps = SGD.model_copy(update={"steps": 3})
    assert_close(train(backbone, theta0, [part], steps, space="tangent"), tau, rtol=1e-3, atol=2e-6)


def test_clipping_at_zero_leaves_gradients_alone() -> None:
    assert tv.TrainSettings(clip=0).clip is None and tv.TrainSettings().clip == 1.0
    with pytest.raises(InputError, match="clip: input should be greater than or equal to 0"):
        tv.TrainSettings.parse("settings", {"clip": -1})


@pytest.mark.parametrize("space", ["ordinary", "tangent"])
@pytest.mark.parametrize("towards", ["zero", "pretrained"])
def test_weight_decay_shrinks_the_weights_or_the_vector(
    evaluator: tv.Evaluator, space: Space, towards: str
) -> None:
    """Two steps by hand: AdamW's decoupled decay of theta0 + tau, or of tau."""
    part, theta0 = evaluator.part("pets"), evaluator.pretrained
    bare = SGD.model_copy(update={"optimizer": "adamw", "weight_decay": 0.0, "lr": 1e-3})
    decayed = bare.model_copy(update={"weight_decay": 0.5, "decay_towards": towards})
    plain = train(evaluator.backbone, theta0, [part], bare, space=space)
    found = train(evaluator.backbone, theta0, [part], decayed, space=space)
    for name, step in plain.items():
        pull = 1e-3 * 0.5 * theta0[name] if towards == "zero" else 0.0
        assert_close(found[name], step - pull, rtol=1e-3, atol=1e-7)


def test_a_tangent_vector_says_so_and_starts_where_the_model_is(evaluator: tv.Evaluator) -> None:
    for regime, moved in (("tangent", 37), ("tangent-attention", 8)):
        vector = tuned(evaluator, "pets", regime=regime)
        assert (vector.info.regime, vector.info.space) == (regime, "tangent")
        assert sum(bool(vector[name].any()) for name in vector) == moved
    assert tuned(evaluator, "pets").info.space == "ordinary"


def test_tangent_training_lowers_the_linearized_loss_and_leaves_the_model_alone(
    evaluator: tv.Evaluator,
) -> None:
    backbone, part = evaluator.backbone, evaluator.part("pets")
    before = {name: value.clone() for name, value in evaluator.pretrained.items()}
    steps = RECIPE.model_copy(update={"steps": 60})
    tau = train(backbone, before, [part], steps, space="tangent")
    lin, batch = linearized(backbone), backbone.collate(part.split.inputs)
    hits = [
        (part.head(f).argmax(1) == part.split.labels).float().mean()  # type: ignore[operator]
        for f in (encode(backbone, before, batch), lin(tau, batch))
    ]
    assert hits[1] > hits[0] + 0.2
    assert_close(dict(evaluator.pretrained), before, rtol=0, atol=0)


def gradient(backbone: tv.Backbone, at: loop.Params, part: tv.Part) -> dict[str, Tensor]:
    """The gradient of the mean loss over the whole split, in the order of the split."""
    leaves = {name: value.clone().requires_grad_() for name, value in at.items()}
    features = encode(backbone, leaves, backbone.collate(part.split.inputs))
    logits: Tensor = part.head(features)  # type: ignore[operator]
    loss = torch.nn.functional.cross_entropy(logits, part.split.labels)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def test_a_limit_on_training_rows_does_not_change_the_head(tiny_model: Path, tiny_suite: Path) -> None:
    backbone = tv.load_backbone(str(tiny_model))
    task = tv.load_suite(tiny_suite).task("pets").model_copy(update={"head": "linear-probe"})
    few, all_rows = tv.make_part(backbone, task, {"train": 12}), tv.make_part(backbone, task)
    assert len(few.split) == 12
    assert few.head.fingerprint() == all_rows.head.fingerprint()
