"""Sums of task vectors against multi-task gradient descent: exact at one step, of known order beyond."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import taskvec as tv
from taskvec.errors import InputError, TaskvecError
from taskvec.studies.gradients import GradientsAnalysis, model_losses, orders
from taskvec.studies.numerics.gradients import Loss, gradient_equivalence, slope

RATES = (2e-3, 1e-3, 5e-4, 2.5e-4)
Params = Mapping[str, Tensor]


def tanh_regression(tasks: int = 3, d: int = 5) -> tuple[dict[str, Tensor], list[Loss]]:
    """mean (v . tanh(W x) - y)^2 on data of each task, float64."""
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    def loss(x: Tensor, y: Tensor) -> Loss:
        return lambda at: ((torch.tanh(x @ at["w"]) @ at["v"] - y) ** 2).mean()

    theta0 = {"w": drawn(d, d) / d**0.5, "v": drawn(d)}
    return theta0, [loss(drawn(12, d), drawn(12)) for _ in range(tasks)]


def test_one_full_batch_step_is_a_multi_task_gradient_step_exactly() -> None:
    theta0, losses = tanh_regression()
    for one in gradient_equivalence(losses, theta0, [1], RATES, alpha=0.4):
        assert one.first < 1e-15
        assert one.second == one.first
        assert one.vector > 1e-4


def test_beyond_one_step_the_rest_is_of_second_order_and_of_third_after_the_hessian_term() -> None:
    theta0, losses = tanh_regression()
    found = orders(gradient_equivalence(losses, theta0, [1, 3, 5], RATES, alpha=0.4))
    assert found[1].exact
    assert found[1].slopes == {"first": None, "second": None}
    for k in (3, 5):
        assert not found[k].exact
        assert found[k].slopes["first"] == pytest.approx(2, abs=0.03)
        assert found[k].slopes["second"] == pytest.approx(3, abs=0.06)


def test_the_hessian_term_is_the_one_of_the_explicit_hessians() -> None:
    """At k = 2 the multi-task path and both vectors are written out by hand."""
    theta0, losses = tanh_regression(tasks=2)
    rate, alpha, names = 1e-3, 0.7, list(theta0)
    start = torch.cat([theta0[name].flatten() for name in names])

    def flat(loss: Loss, at: Tensor) -> Tensor:
        pieces = torch.split(at, [theta0[name].numel() for name in names])
        return loss({name: piece.view_as(theta0[name]) for name, piece in zip(names, pieces, strict=True)})

    def gradient(loss: Loss, at: Tensor) -> Tensor:
        found: Tensor = torch.func.grad(lambda theta: flat(loss, theta))(at)
        return found

    g = [gradient(loss, start) for loss in losses]
    vectors = [-rate * (g[t] + gradient(losses[t], start - rate * g[t])) for t in range(2)]
    along = start - alpha * rate * (g[0] + g[1])
    left = sum(vectors, start=torch.zeros_like(start))
    left = left + rate * sum(g[t] + gradient(losses[t], along) for t in range(2))
    curved = [
        torch.autograd.functional.hessian(lambda theta, loss=loss: flat(loss, theta), start)  # type: ignore[no-untyped-call]
        for loss in losses
    ]
    r = [alpha * g[1 - t] + (alpha - 1) * g[t] for t in range(2)]
    corrected = left + rate**2 * (curved[0] @ r[0] + curved[1] @ r[1])
    [found] = gradient_equivalence(losses, theta0, [2], [rate], alpha)
    assert found.first == pytest.approx(float(left.norm()), rel=1e-9)
    assert found.second == pytest.approx(float(corrected.norm()), rel=1e-6)


@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_losses_linear_in_the_parameters_are_exact_at_any_number_of_steps(alpha: float) -> None:
    theta0, _ = tanh_regression()
    draw = torch.Generator().manual_seed(1)
    weights = [torch.randn(5, 5, generator=draw, dtype=torch.float64) for _ in range(3)]
    losses: list[Loss] = [lambda at, w=w: (at["w"] * w).sum() for w in weights]  # type: ignore[misc]
    for one in gradient_equivalence(losses, theta0, [1, 2, 7], RATES, alpha):
        assert one.first < 1e-14
        assert one.second < 1e-14


def test_the_start_is_not_moved() -> None:
    theta0, losses = tanh_regression()
    before = {name: value.clone() for name, value in theta0.items()}
    gradient_equivalence(losses, theta0, [3], [1e-2])
    for name, value in theta0.items():
        assert torch.equal(value, before[name])
        assert not value.requires_grad


def test_a_slope_is_the_exponent_of_a_power_law() -> None:
    assert slope([1.0, 2.0, 4.0], [3.0, 24.0, 192.0]) == pytest.approx(3)
    assert slope([1.0], [1.0]) is None
    assert slope([1.0, 2.0], [0.0, 1.0]) is None


@pytest.mark.parametrize(("steps", "rates"), [([], [1e-2]), ([0], [1e-2]), ([1], []), ([1], [0.0])], ids=str)
def test_a_request_without_steps_or_rates_is_refused(steps: list[int], rates: list[float]) -> None:
    theta0, losses = tanh_regression()
    with pytest.raises(InputError, match="positive rates"):
        gradient_equivalence(losses, theta0, steps, rates)


def test_a_rate_that_diverges_is_named() -> None:
    theta0, losses = tanh_regression()
    with pytest.raises(TaskvecError, match="lower the learning rates"):
        gradient_equivalence(losses, theta0, [40], [1e6])


@pytest.fixture(scope="module")
def small(evaluator: tv.Evaluator) -> tv.Evaluator:
    return tv.Evaluator(evaluator.backbone, list(evaluator.tasks.values()), limits={"train": 6})


def test_the_loss_of_a_model_is_its_cross_entropy_in_float64(small: tv.Evaluator) -> None:
    theta0, [loss] = model_losses(small, ["pets"])
    found = loss(theta0)
    assert found.dtype == torch.float64
    logits, labels = small.logits(small.pretrained, "pets", "train")
    assert_close(found.float(), torch.nn.functional.cross_entropy(logits, labels), rtol=1e-4, atol=1e-5)
    assert next(small.backbone.parameters()).dtype == torch.float32


def test_a_model_of_images_that_nobody_has_asked_for_its_parameters_yet_goes_to_float64() -> None:
    fresh = tv.Evaluator(
        tv.load_backbone("builtin"), [tv.load_suite("builtin8").task("gabor")], limits={"train": 4}
    )
    theta0, [loss] = model_losses(fresh, ["gabor"])
    assert loss(theta0).dtype == torch.float64


def test_a_real_model_shows_both_orders(small: tv.Evaluator) -> None:
    asked = GradientsAnalysis(
        model="tiny",
        suite="tiny",
        task=("pets", "taste", "number"),
        steps=(1, 3),
        rates=(4e-5, 2e-5, 1e-5),
    )
    record = asked.compare(small)
    assert record.alpha == pytest.approx(1 / 3)
    assert record.steps["1"].exact
    slopes = record.steps["3"].slopes
    assert slopes["first"] == pytest.approx(2, abs=0.1)
    assert slopes["second"] == pytest.approx(3, abs=0.3)
    assert record.examples == {"pets": 6, "taste": 6, "number": 6}


def test_one_task_has_nothing_to_add(small: tv.Evaluator) -> None:
    with pytest.raises(InputError, match="two or more tasks"):
        GradientsAnalysis(model="tiny", suite="tiny", task=("pets",)).compare(small)
