"""The tangent space of causal and encoder-decoder language models."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

import taskvec as tv
from language_models import TEXT, save_language_model
from taskvec.evaluation import points as points_module
from taskvec.models.functional import encode
from taskvec.models.language import LanguageModel, Passage
from taskvec.models.loading import load_backbone
from taskvec.tangent.linearization import Linearization
from taskvec.tasks.task import Task
from taskvec.training.space import linearized

PASSAGES = [Passage([5, 6, 7], [8, 9]), Passage([3], [4]), Passage([20, 30], [40, 50, 60, 70, 80])]
LABELS = torch.tensor([token for passage in PASSAGES for token in passage.target])
KINDS = ["gpt2", "llama", "tied", "qwen2", "opt", "t5", "bart"]


def loaded(folder: Path, kind: str) -> LanguageModel:
    backbone = load_backbone(save_language_model(folder, kind), outputs="tokens")
    assert isinstance(backbone, LanguageModel)
    return backbone


def in_float64(network: nn.Module) -> None:
    """A network in float64 throughout: norms of transformers compute in float32 whatever they are given."""
    network.double()
    for module in network.modules():
        if type(module).__name__.endswith(("RMSNorm", "T5LayerNorm")):
            module.forward = partial(normed, module)


def normed(module: Any, x: Tensor) -> Tensor:
    eps = getattr(module, "variance_epsilon", None) or module.eps
    return module.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_the_loss_is_that_of_torch_func(kind: str, tmp_path: Path) -> None:
    backbone = loaded(tmp_path, kind)
    in_float64(backbone.network)
    batch, theta0 = backbone.stack(PASSAGES), backbone.encoder_parameters()
    draw = torch.Generator().manual_seed(0)
    tau = {
        name: 0.01 * torch.randn(value.shape, generator=draw, dtype=torch.float64)
        for name, value in theta0.items()
    }
    lin = linearized(backbone)
    assert lin.route == "rules"

    def loss(step: dict[str, Tensor], by_rules: bool) -> Tensor:
        if by_rules:
            return cross_entropy(lin(step, batch), LABELS)
        at = {name: value.detach() for name, value in theta0.items()}
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            value, slope = torch.func.jvp(lambda p: encode(backbone, p, batch), (at,), (step,))  # type: ignore[misc]
        return cross_entropy(value + slope, LABELS)

    found, expected = list[Tensor](), list[Tensor]()
    for into, by_rules in ((found, True), (expected, False)):
        leaves = {name: step.clone().requires_grad_() for name, step in tau.items()}
        value = loss(leaves, by_rules)
        into += [value.detach(), *torch.autograd.grad(value, list(leaves.values()))]
    for own, other in zip(found, expected, strict=True):
        assert_close(own, other, rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[tv.Evaluator, dict[str, tv.TaskVector]]:
    """A GPT-2, a task of windows, and two vectors trained in its tangent space."""
    folder = tmp_path_factory.mktemp("gpt2")
    backbone = loaded(folder, "gpt2")
    (folder / "a.txt").write_text(TEXT)
    task = Task.parse(
        "task",
        {"name": "cats", "kind": "language", "data": {"source": "text", "path": str(folder / "a.txt")}}
        | {"context": 16, "stride": 8},
    )
    evaluator = tv.Evaluator(backbone, [task], batch_size=4)
    settings = tv.TrainSettings(lr=3e-3, steps=8, batch_size=4, validations=0)
    vectors = {
        regime: tv.finetune(backbone, evaluator.part("cats"), regime=regime, settings=settings)
        for regime in ("tangent", "tangent-attention")
    }
    return evaluator, vectors


def test_training_lowers_perplexity(trained: Any) -> None:
    evaluator, vectors = trained
    before = evaluator.score(evaluator.pretrained, "cats", "test").value
    for vector in vectors.values():
        points = evaluator.points({"v": vector}, space="tangent")
        assert evaluator.score(points.at({"v": 1.0}), "cats", "test").value < 0.9 * before


def test_all_coefficients_come_from_one_pass(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator, vectors = trained
    points = evaluator.points(vectors, space="tangent")
    passes: list[int] = []
    run = Linearization.jvps
    monkeypatch.setattr(Linearization, "jvps", lambda *a, **k: passes.append(1) or run(*a, **k))  # type: ignore[func-returns-value]
    grid = [{"tangent": a, "tangent-attention": b} for a in (0.5, 1.0) for b in (-0.3, 0.7)]
    kept = [evaluator.score(points.at(at), "cats", "test").value for at in grid]
    batches = len(evaluator._prepared("cats", "test"))
    assert len(passes) == batches

    monkeypatch.setattr(points_module, "KEPT", 0)
    again = evaluator.points(vectors, space="tangent")
    assert [evaluator.score(again.at(at), "cats", "test").value for at in grid] == kept
    assert len(passes) == batches * (1 + len(grid))


def test_a_point_is_the_model_plus_its_slope(trained: Any) -> None:
    evaluator, vectors = trained
    point = evaluator.points(vectors, space="tangent").at({"tangent": 0.5, "tangent-attention": -0.3})
    tau = {
        name: 0.5 * vectors["tangent"][name] - 0.3 * vectors["tangent-attention"][name]
        for name in vectors["tangent"]
    }
    backbone = evaluator.backbone
    task, at = evaluator.task("cats"), evaluator.pretrained
    prepared = evaluator.objective("cats").prepare(backbone, task.split("test"))
    batch = prepared.batch(torch.arange(len(prepared.sizes)))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), torch.no_grad():
        run = partial(encode, backbone, batch=batch.inputs)
        value, slope = torch.func.jvp(run, (at,), ({name: tau[name] for name in at},))  # type: ignore[misc]
    expected = evaluator.objective("cats").score(evaluator.objective("cats").tally(value + slope, batch))
    assert evaluator.score(point, "cats", "test").value == pytest.approx(expected.value, rel=1e-5)
