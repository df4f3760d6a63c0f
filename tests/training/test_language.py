"""Training of language models: what counts as an example, ATM, resuming, one text and several."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import taskvec as tv
from language_models import TEXT, save_language_model
from taskvec.errors import InputError, TaskvecError
from taskvec.models.loading import load_backbone
from taskvec.tasks.kinds.language import Windows
from taskvec.tasks.task import Task
from taskvec.training.parts import make_part


@pytest.fixture(scope="module", params=["gpt2", "tied"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model, and a task whose training text makes twelve windows."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "a.txt").write_text(TEXT)
    data = {"source": "text", "path": str(folder / "a.txt")}
    values = {"name": "cats", "kind": "language", "data": data, "context": 16}
    backbone = load_backbone(save_language_model(folder / "model", request.param), outputs="tokens")
    return backbone, Task.parse("task", values)


def settings(**more: Any) -> tv.TrainSettings:
    return tv.TrainSettings(lr=3e-3, batch_size=4, validations=0, **more)


def test_examples_are_windows(world: Any) -> None:
    backbone, task = world
    part = make_part(backbone, task)
    tokens = backbone.tokenise(task.split("train").inputs[0]).tokens
    assert len(part.split) == -(-len(tokens) // 16) > 4
    vector = tv.finetune(backbone, part, settings=settings(epochs=1))
    assert vector.info.training is not None
    assert vector.info.training["examples"] == {"cats": len(part.split)}
    assert len(make_part(backbone, task, {"train": 3}).split) == 3


def test_training_lowers_the_loss_and_moves_every_parameter(world: Any) -> None:
    backbone, task = world
    evaluator = tv.Evaluator(backbone, [task])
    vector = tv.finetune(backbone, evaluator.part("cats"), settings=settings(steps=12))
    before = evaluator.score(evaluator.pretrained, "cats", "test").value
    after = evaluator.score(evaluator.points({"v": vector}).at({"v": 1.0}), "cats", "test").value
    assert after < 0.8 * before
    assert set(vector) == set(backbone.encoder_parameters())
    assert all(bool(vector[name].any()) for name in vector)


def test_a_step_is_the_same_in_small_pieces(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, task = world
    part = make_part(backbone, task)
    whole = tv.finetune(backbone, part, settings=settings(steps=2, optimizer="sgd"))
    prepare = Windows.__init__

    def short_of_memory(self: Windows, *given: Any) -> None:
        prepare(self, *given)
        self.together = 1

    monkeypatch.setattr(Windows, "__init__", short_of_memory)
    pieces = tv.finetune(backbone, part, settings=settings(steps=2, optimizer="sgd"))
    for name in whole:
        assert_close(pieces[name], whole[name], rtol=1e-4, atol=1e-7)


def test_one_round_of_atm_is_fine_tuning(world: Any) -> None:
    backbone, task = world
    part = make_part(backbone, task)
    once = tv.finetune(backbone, part, settings=settings(epochs=1))
    for name, value in tv.atm(backbone, [part], rounds=1, settings=settings(epochs=1)).items():
        assert_close(value, once[name], rtol=1e-4, atol=1e-7)
    assert tv.atm(backbone, [part], rounds=2, settings=settings(epochs=1)).norm() > 0


def test_two_trainings_give_the_same_bits(world: Any) -> None:
    backbone, task = world
    first, again = (
        tv.finetune(backbone, make_part(backbone, task), regime="attention", settings=settings(steps=3))
        for _ in range(2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_an_encoder_is_refused(world: Any, tiny_model: Path) -> None:
    with pytest.raises(InputError, match="cats: needs the logits of tokens"):
        make_part(load_backbone(tiny_model), world[1])


@pytest.mark.parametrize("clip", [1.0, None])
def test_an_ascent_that_diverges_keeps_its_last_finite_weights(world: Any, clip: float | None) -> None:
    backbone, task = world
    part = make_part(backbone, task)
    wild = tv.TrainSettings(lr=1e30, steps=4, batch_size=4, validations=0, clip=clip)
    vector = tv.finetune(backbone, part, settings=wild, ascend=True)
    assert all(bool(vector[name].isfinite().all()) for name in vector)
    with pytest.raises(TaskvecError, match="at step 2 of 4; lower the learning rate"):
        tv.finetune(backbone, part, settings=wild)


def test_bloom_trains_in_tangent_space(tmp_path: Path) -> None:
    """Its activation has an autograd function of its own, without a second derivative."""
    (tmp_path / "a.txt").write_text(TEXT)
    data = {"source": "text", "path": str(tmp_path / "a.txt")}
    task = Task.parse("task", {"name": "cats", "kind": "language", "data": data, "context": 16})
    backbone = load_backbone(save_language_model(tmp_path / "model", "bloom"), outputs="tokens")
    evaluator = tv.Evaluator(backbone, [task])
    vector = tv.finetune(backbone, evaluator.part("cats"), regime="tangent", settings=settings(steps=4))
    points = evaluator.points({"v": vector}, space="tangent")
    before, after = (evaluator.score(points.at({"v": c}), "cats", "test").value for c in (0.0, 1.0))
    assert after < before


def test_a_learning_rate_is_found_by_perplexity(world: Any) -> None:
    backbone, task = world
    evaluator = tv.Evaluator(backbone, [task])
    auto = tv.TrainSettings(lr="auto", batch_size=4, steps=10, validations=0)
    search = (tv.finetune(backbone, evaluator.part("cats"), settings=auto).info.training or {})["lr_search"]
    assert search["examples"] == {
        "cats": len(evaluator.objective("cats").examples(backbone, evaluator.split("cats", "validation")))
    }
    short = settings(steps=10).model_copy(update={"lr": search["lr"]})
    vector = tv.finetune(backbone, evaluator.part("cats"), settings=short)
    after = evaluator.score(evaluator.points({"v": vector}).at({"v": 1.0}), "cats", "validation").value
    assert search["losses"][f"{search['lr']:g}"] == pytest.approx(math.log(after), rel=1e-5)
    assert search["untrained_loss"] == pytest.approx(
        math.log(evaluator.score(evaluator.pretrained, "cats", "validation").value), rel=1e-5
    )
