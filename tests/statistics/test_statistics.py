"""Fisher information and Gram matrices against loops over single examples in float64."""

from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import GPT2Config, GPT2Model

import taskvec as tv
from checkpoints import save_clip
from taskvec.errors import BaseMismatch, InputError
from taskvec.evaluation.points import add_vector
from taskvec.models.backbone import Backbone
from taskvec.models.heads import Head
from taskvec.models.text import TextBackbone
from taskvec.statistics.fisher import fisher
from taskvec.statistics.gram import gram
from taskvec.tasks.loaders import head_for

EXAMPLES = 12


@pytest.fixture(scope="module")
def exact(tiny_model: Path) -> Backbone:
    """A text encoder in float64."""
    return tv.load_backbone(tiny_model).double()


@pytest.fixture(scope="module")
def task(tiny_suite: Path) -> tv.Task:
    """Texts of unequal length, so that batches are padded."""
    found = tv.load_suite(tiny_suite).task("pets")
    rows = found.split("train")
    texts = [" ".join(text.split()[place % 3 :]) for place, text in enumerate(rows.inputs)]
    found._loaded["train"] = tv.Split(texts, rows.labels)
    return found


@pytest.fixture(scope="module")
def head(exact: Backbone, task: tv.Task) -> Head:
    return head_for(exact, task).double()


def drawn(task: tv.Task, seed: int = 0) -> list[str]:
    rows = task.split("train")
    places = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:EXAMPLES]
    return rows.take(places)


def naive(model: Backbone, head: Head, inputs: list[str]) -> dict[str, Tensor]:
    """One example and one class after another."""
    parameters = model.encoder_parameters()
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for text in inputs:
        logs = head(model(**model.collate([text]))).log_softmax(-1)[0]
        for log in logs:
            slopes = torch.autograd.grad(log, list(parameters.values()), retain_graph=True)
            for sums, slope in zip(total.values(), slopes, strict=True):
                sums += log.exp().detach() * slope**2 / len(inputs)
    return total


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    size = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        difference = (found[name] - value).abs()
        assert bool((difference <= tolerance * (size + value.abs())).all()), name


def test_information_is_that_of_single_examples(exact: Backbone, head: Head, task: tv.Task) -> None:
    before = {name: value.clone() for name, value in exact.state_dict().items()}
    found = fisher(exact, task, EXAMPLES, head=head)
    assert_same(found, naive(exact, head, drawn(task)))
    assert all(torch.equal(value, before[name]) for name, value in exact.state_dict().items())
    assert all(parameter.grad is None for parameter in exact.parameters())
    assert not exact.training


def test_pieces_give_the_same(exact: Backbone, head: Head, task: tv.Task) -> None:
    whole = fisher(exact, task, EXAMPLES, head=head)
    assert_same(fisher(exact, task, EXAMPLES, head=head, memory=1), whole)


def test_information_of_images(tmp_path: Path) -> None:
    model = tv.load_backbone(save_clip(tmp_path)).double()
    images = torch.randint(
        0, 256, (5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    task = tv.Task.model_validate(
        {
            "name": "marks",
            "modality": "image",
            "classes": ["a", "b", "c"],
            "data": {"source": "jsonl", "path": "none"},
        }
    )
    task._loaded["train"] = tv.Split(list(images), torch.zeros(5, dtype=torch.int64))
    head = head_for(model, task).double()
    found = fisher(model, task, head=head)
    parameters = model.encoder_parameters()
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    batch = model.collate(list(images))
    for n in range(5):
        logs = head(model(**{key: value[n : n + 1].double() for key, value in batch.items()})).log_softmax(-1)
        for log in logs[0]:
            slopes = torch.autograd.grad(log, list(parameters.values()), retain_graph=True)
            for sums, slope in zip(total.values(), slopes, strict=True):
                sums += log.exp().detach() * slope**2 / 5
    assert_same(found, total, 1e-4)  # pixels are float32
    grams = gram(model, task)
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in grams} >= {"q_proj", "fc1", "fc2"}


def test_sampled_labels_estimate_the_sum_over_classes(exact: Backbone, head: Head, task: tv.Task) -> None:
    whole = fisher(exact, task, EXAMPLES, head=head)
    draws = [fisher(exact, task, 96, head=head, labels="sampled", seed=seed) for seed in range(4)]
    again = fisher(exact, task, 96, head=head, labels="sampled", seed=0)
    assert_same(again, draws[0])
    assert any(not torch.equal(value, draws[1][name]) for name, value in draws[0].items())
    every = fisher(exact, task, 96, head=head)
    name = max(whole, key=lambda one: float(whole[one].sum()))
    mean = torch.stack([draw[name].sum() for draw in draws]).mean()
    assert_close(mean, every[name].sum(), rtol=0.3, atol=0)


def test_examples_are_drawn_by_the_seed_and_labels_are_not_read(
    exact: Backbone, head: Head, task: tv.Task
) -> None:
    name = "encoder.layer.1.output.dense.weight"
    first = fisher(exact, task, 5, head=head)[name]
    assert not torch.equal(fisher(exact, task, 5, head=head, seed=1)[name], first)
    rows = task.split("train")
    shuffled = task.model_copy()
    shuffled._loaded["train"] = tv.Split(rows.inputs, 1 - rows.labels)
    assert torch.equal(fisher(exact, shuffled, 5, head=head)[name], first)


def inputs_of_layers(model: Backbone, texts: list[str]) -> dict[str, Tensor]:
    """Second moments of inputs, one text after another, so that nothing is padded."""
    rows: dict[str, list[Tensor]] = {}
    stored = {id(parameter): name for name, parameter in model.encoder_parameters().items()}
    handles = [
        layer.register_forward_hook(
            lambda module, args, _: rows.setdefault(stored[id(module.weight)], []).append(
                args[0].flatten(0, -2)
            )
        )
        for layer in model.modules()
        if isinstance(layer, nn.Linear) and id(layer.weight) in stored
    ]
    with torch.no_grad():
        for text in texts:
            model(**model.collate([text]))
    for handle in handles:
        handle.remove()
    joined = {name: torch.cat(parts) for name, parts in rows.items()}
    return {name: x.T @ x / len(x) for name, x in joined.items()}


def test_moments_are_those_of_all_tokens_without_padding(exact: Backbone, task: tv.Task) -> None:
    found = gram(exact, task, EXAMPLES)
    assert_same(found, inputs_of_layers(exact, drawn(task)))
    assert len(found) == 12
    assert all(value.shape == (exact.encoder_parameters()[n].shape[1],) * 2 for n, value in found.items())


def test_a_limit_leaves_later_examples_out(exact: Backbone, head: Head, task: tv.Task) -> None:
    first = list(task.split("train").take(torch.arange(3)))
    assert_same(gram(exact, task, limit=3), inputs_of_layers(exact, first))
    assert_same(fisher(exact, task, head=head, limit=3), naive(exact, head, first))


def test_layers_that_are_given_the_same_share_a_tensor(exact: Backbone, task: tv.Task) -> None:
    found = gram(exact, task, EXAMPLES)
    same = [found[f"encoder.layer.0.attention.self.{part}.weight"] for part in ("query", "key", "value")]
    assert same[0] is same[1] is same[2]
    assert len({value.data_ptr() for value in found.values()}) == 8
    assert not exact.network.encoder.layer[0].attention.self.query._forward_pre_hooks  # type: ignore[union-attr, index]


def test_an_encoder_without_linear_layers_is_refused(exact: Backbone, task: tv.Task) -> None:
    """GPT-2 stores its layers the other way round, in a class of their own."""
    assert isinstance(exact, TextBackbone)
    config = GPT2Config(vocab_size=18, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    model = TextBackbone(GPT2Model(config), exact.tokenizer, ref="gpt").eval()
    with pytest.raises(InputError, match=r"gpt: calls no torch.nn.Linear"):
        gram(model, task, 2)
    assert len(fisher(model, task, 2)) == len(model.encoder_parameters())


def test_a_vector_moves_a_copy(tiny_model: Path, task: tv.Task) -> None:
    model = tv.load_backbone(tiny_model)
    deltas = {name: 0.1 * torch.ones_like(value) for name, value in model.encoder_parameters().items()}
    vector = tv.TaskVector.from_tensors(deltas, base=model.ref)
    moved = add_vector(model, vector)
    for name, parameter in moved.encoder_parameters().items():
        assert_close(parameter, model.encoder_parameters()[name] + 0.1)
    other = {
        name: value.detach() + 1
        for name, value in tv.open_weights(model.ref).items()
        if value.is_floating_point()
    }
    with pytest.raises(BaseMismatch):
        add_vector(model, tv.TaskVector.from_tensors(deltas, base=other))


@pytest.mark.parametrize("rule", ["fisher", "regmean"])
def test_statistics_go_into_a_rule_as_they_are(
    tiny_model: Path, task: tv.Task, rule: Literal["fisher", "regmean"]
) -> None:
    model = tv.load_backbone(tiny_model)
    generator = torch.Generator().manual_seed(0)
    vectors, stats = [], []
    for _ in range(2):
        deltas = {
            name: 0.05 * torch.randn(value.shape, generator=generator)
            for name, value in model.encoder_parameters().items()
        }
        vectors.append(tv.TaskVector.from_tensors(deltas, base=model.ref))
        moved = add_vector(model, vectors[-1])
        found = fisher(moved, task, 4) if rule == "fisher" else gram(moved, task, 4)
        stats.append(tv.open_weights(found))
    merged, mean = tv.combine(rule, vectors, stats=stats), tv.combine("mean", vectors)
    assert merged.keys() == mean.keys()
    name = "encoder.layer.0.output.dense.weight"
    assert not torch.allclose(merged[name], mean[name], atol=1e-4)
    assert deepcopy(merged[name]).isfinite().all()


def test_a_moved_network_of_ones_own_is_measured(tmp_path: Path) -> None:
    """A copy of it runs the original's layers, at weights of its own."""
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays |= {f"x_{split}": draw.integers(0, 255, (8, 4, 4), np.uint8), f"y_{split}": np.arange(8) % 2}
    np.savez(tmp_path / "shades.npz", **arrays)
    (tmp_path / "s.yaml").write_text(
        "suite: s\ntasks:\n  shades: {modality: image, classes: [a, b], head: linear-probe, "
        "data: {source: npz, path: shades.npz}}\n"
    )
    task = tv.load_suite(tmp_path / "s.yaml").task("shades")
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.GELU(), nn.Linear(6, 3))

    def collate(images: list[Any]) -> Tensor:
        return torch.stack([torch.as_tensor(image)[..., 0] for image in images]) / 255

    model = tv.wrap(network, collate=collate, example=np.zeros((4, 4, 3), np.uint8))
    deltas = {name: torch.ones_like(value) for name, value in model.encoder_parameters().items()}
    found = gram(add_vector(model, tv.TaskVector.from_tensors(deltas, base=model.source)), task)
    x = collate(list(task.split("train").inputs)).flatten(1).double()
    first = network[1]
    assert isinstance(first, nn.Linear)
    hidden = nn.functional.gelu(x @ (first.weight.double() + 1).T + first.bias.double() + 1).detach()
    expected = {"1.weight": x.T @ x / 8, "3.weight": hidden.T @ hidden / 8}
    assert_same({name: value.double() for name, value in found.items()}, expected, 1e-5)
    assert not first._forward_pre_hooks
