"""tau-Jp: how far the outputs on other tasks' inputs move."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import taskvec as tv
from language_models import save_language_model
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.heads import Head
from taskvec.models.selection import selected
from taskvec.progress import unwatched
from taskvec.tasks.kinds.language import Modelling
from taskvec.tasks.split import Split
from taskvec.training.parts import Part
from taskvec.training.penalties import PENALTIES
from taskvec.training.penalties.penalty import Given, Penalty
from taskvec.training.penalties.settings import TauJp
from taskvec.training.regimes import Regime, regime_called
from taskvec.training.space import Moved, move

SPACES = ["full", "tangent", "attention", "tangent-attention", "lora", "tangent-lora"]


class Rows(Backbone):
    """A network of rows of numbers, in float64."""

    modality = "image"

    def __init__(self, network: nn.Module, dim: int) -> None:
        super().__init__(network.double(), ref=network, dim=dim, logit_scale=1.0)

    def forward(self, **batch: Tensor) -> Tensor:
        return self.network(batch["pixels"])  # type: ignore[no-any-return]

    def stack(self, prepared: Sequence[Any]) -> dict[str, Tensor]:
        return {"pixels": torch.stack(list(prepared))}

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        raise NotImplementedError

    def example(self) -> dict[str, Tensor]:
        return {"pixels": torch.ones(2, 3, dtype=torch.float64)}


def rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def other(name: str, inputs: Tensor) -> Part:
    head = Head(torch.eye(2, 4), None, normalize=False, classes=["a", "b"], kind="zero-shot")
    return Part(name, Split(list(inputs), torch.zeros(len(inputs), dtype=torch.int64)), head)


def displaced(backbone: Backbone, regime: str | Regime, size: float = 0.1) -> Moved:
    """A model in a space, somewhere else than at its start."""
    kind = regime_called(regime)
    start = {
        n: v.to(next(backbone.network.parameters()).dtype)
        for n, v in selected(backbone, kind.selection).items()
    }
    moved = move(backbone, start, kind.evaluated_in, kind.lora, 0)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for leaf in moved.leaves.values():
            leaf += size * torch.randn(leaf.shape, generator=draw, dtype=leaf.dtype)
    return moved


def bound(moved: Moved, references: Sequence[Part], seed: int = 0, **settings: Any) -> Penalty:
    asked = TauJp.parse("", settings)
    given = Given(moved.backbone, moved, references, tv.TrainSettings(seed=seed), None, unwatched)
    return PENALTIES["tau_jp"](asked, given)


@pytest.mark.parametrize("regime", ["tangent", "full"])
@pytest.mark.parametrize("power", [1, 2])
def test_of_one_linear_layer_it_is_the_norm_of_its_displacement_times_the_input(
    regime: str, power: Any
) -> None:
    x = rows(5, 1)
    moved = displaced(Rows(nn.Linear(3, 4), 4), regime)
    tau = moved.tau()
    shift = x @ tau["weight"].detach().mT + tau["bias"].detach()
    value = bound(moved, [other("others", x)], power=power)(0)
    assert_close(value.detach(), shift.norm(dim=1).pow(power).mean(), atol=1e-6, rtol=1e-9)


def network() -> Rows:
    torch.manual_seed(0)
    return Rows(nn.Sequential(nn.Linear(3, 6), nn.GELU(), nn.Linear(6, 4)), 4)


def test_in_tangent_space_it_is_of_the_jacobian() -> None:
    x, backbone = rows(5, 1), network()
    moved = displaced(backbone, "tangent")
    value = bound(moved, [other("others", x)])(0)
    theta = dict(backbone.network.named_parameters())
    steps = {name: step.detach() for name, step in moved.leaves.items()}
    slope = torch.func.jvp(
        lambda params: torch.func.functional_call(backbone.network, params, (x,)), (theta,), (steps,)
    )[1]
    assert_close(value.detach(), slope.detach().square().sum(1).mean())


@pytest.mark.parametrize("regime", ["tangent", "full"])
@pytest.mark.parametrize("settings", [{"power": 1}, {"power": 2}, {"sets": "all"}])
def test_its_gradient_is_that_of_finite_differences(regime: str, settings: dict[str, Any]) -> None:
    moved = displaced(network(), regime)
    penalty = bound(moved, [other("a", rows(5, 1)), other("b", rows(20, 2))], batch_size=4, **settings)
    leaves = list(moved.leaves.values())
    found = torch.autograd.grad(penalty(3), leaves)
    for leaf, slope in zip(leaves, found, strict=True):
        way = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(3), dtype=leaf.dtype)
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                leaf += step * way
                ends.append(penalty(3).item())
                leaf -= step * way
        assert_close((slope * way).sum().item(), (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("regime", SPACES)
@pytest.mark.parametrize("power", [1, 2])
def test_where_nothing_moved_it_is_zero_and_pulls_nowhere(
    evaluator: tv.Evaluator, regime: str, power: Any
) -> None:
    moved = displaced(evaluator.backbone, regime, size=0)
    value = bound(moved, [evaluator.part("taste")], power=power)(0)
    torch.autograd.backward(value)
    assert value.item() == 0
    assert all(not leaf.grad.any() for leaf in moved.leaves.values() if leaf.grad is not None)


@pytest.mark.parametrize("power", [1, 2])
def test_in_tangent_space_it_grows_with_its_power(power: Any) -> None:
    moved = displaced(network(), "tangent")
    penalty = bound(moved, [other("a", rows(9, 1))], power=power)
    before = penalty(0).item()
    with torch.no_grad():
        for leaf in moved.leaves.values():
            leaf *= 3
    assert_close(penalty(0).item(), 3**power * before, rtol=1e-5, atol=0)


def test_a_cycle_reads_one_task_a_step_and_all_read_each() -> None:
    moved = displaced(network(), "tangent")
    tasks = [other("a", rows(4, 1)), other("b", rows(4, 2)), other("c", rows(4, 3))]
    alone = [bound(moved, [task])(0).item() for task in tasks]
    cycle, every = bound(moved, tasks), bound(moved, tasks, sets="all")
    assert_close([cycle(step).item() for step in range(6)], alone * 2)
    assert_close(every(0).item(), sum(alone) / 3)


def test_what_is_drawn_depends_on_seed_and_step_alone() -> None:
    moved = displaced(network(), "tangent")
    tasks = [other("a", rows(200, 1))]

    def values(steps: range, seed: int = 0) -> list[float]:
        penalty = bound(moved, tasks, seed, batch_size=8)
        return [penalty(step).item() for step in steps]

    assert values(range(4))[2:] == values(range(2, 4))
    assert len(set(values(range(4)) + values(range(4), seed=1))) == 8


def test_own_inputs_are_left_out(evaluator: tv.Evaluator) -> None:
    def tuned(*references: str) -> tv.TaskVector:
        settings = tv.TrainSettings(lr=1e-3, steps=3, batch_size=8, penalty=(TauJp(),))
        parts = [evaluator.part(name) for name in references]
        return tv.finetune(evaluator.backbone, evaluator.part("pets"), settings=settings, references=parts)

    one, same = tuned("taste"), tuned("pets", "taste")
    assert all(torch.equal(one[name], same[name]) for name in one)
    with pytest.raises(InputError, match="tau_jp: no references"):
        tuned("pets")


@pytest.mark.parametrize("regime", SPACES)
def test_it_keeps_outputs_on_other_tasks_where_they_were(evaluator: tv.Evaluator, regime: str) -> None:
    def moved(strength: float) -> float:
        settings = tv.TrainSettings(
            lr=3e-3, steps=12, batch_size=16, penalty=(TauJp(strength=strength, sets="all"),)
        )
        others = [evaluator.part("taste"), evaluator.part("number")]
        part, backbone = evaluator.part("pets"), evaluator.backbone
        vector = tv.finetune(backbone, part, regime=regime, settings=settings, references=others)
        points = evaluator.points({"pets": vector}, space=vector.info.space or "ordinary")
        there, _ = evaluator.features(points.at({"pets": 1.0}), "taste", "test")
        before, _ = evaluator.features(points.at({"pets": 0.0}), "taste", "test")
        return float((there - before).norm())

    assert moved(10) < 0.5 * moved(0)


@pytest.mark.parametrize(
    "more",
    [{"precision": "bf16"}, {"accumulation": 3}, {"checkpoint_activations": True}, {"clip": 0.1}],
    ids=str,
)
@pytest.mark.parametrize("regime", ["full", "tangent"])
def test_it_goes_with_what_trainings_may_ask(
    evaluator: tv.Evaluator, regime: str, more: dict[str, Any]
) -> None:
    settings = {"lr": 1e-3, "steps": 3, "batch_size": 12, "penalty": "tau_jp", "validations": 0}

    def tuned(recipe: dict[str, Any]) -> Tensor:
        vector = tv.finetune(
            evaluator.backbone,
            evaluator.part("pets"),
            regime=regime,
            settings=tv.TrainSettings.parse("", recipe),
            references=[evaluator.part("taste")],
        )
        return torch.cat([vector[name].flatten() for name in sorted(vector)])

    plain, other_way = tuned(settings), tuned(settings | more)
    assert torch.cosine_similarity(plain, other_way, dim=0) > 0.8


def test_of_a_language_model_the_outputs_are_logits_of_tokens(tmp_path: Path) -> None:
    backbone = tv.load_backbone(str(save_language_model(tmp_path)), "tokens")
    text = Split(["the cat sat on the mat", "the dog ate"], torch.zeros(2, dtype=torch.int64))
    asked = Modelling("plays", 8, 8)
    moved = displaced(backbone, "tangent", size=0.01)
    part = Part("plays", asked.examples(backbone, text), asked)
    value = bound(moved, [part])(0)
    prepared = asked.prepare(backbone, part.split)
    shifts = [moved.shift(prepared.inputs(torch.tensor([place]))) for place in range(len(part.split))]
    rows_of_each = torch.cat(shifts).detach()
    assert_close(value.detach(), rows_of_each.square().sum(1).mean(), rtol=1e-4, atol=1e-8)
