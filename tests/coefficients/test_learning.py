"""Coefficients learned by gradient: exact gradients, exact repetition, and the laws of every scope."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import taskvec as tv
from taskvec.coefficients.learning import learn_coefficients
from taskvec.coefficients.presets import PRESETS, preset
from taskvec.coefficients.scopes import groups_of
from taskvec.coefficients.streaming import Stream
from taskvec.coefficients.weighted import Weighted
from taskvec.errors import InputError, TaskvecError
from taskvec.models.functional import encode
from taskvec.training.checkpoint import Checkpoint

Vectors = dict[str, tv.TaskVector]
SCOPES = ("task", "layer", "tensor", "partition")


def settings(**values: object) -> tv.CoefficientSettings:
    return tv.CoefficientSettings.model_validate({"steps": 3, "batch": 8, **values})


@pytest.mark.parametrize("scope", SCOPES)
def test_no_step_is_the_plain_sum(evaluator: tv.Evaluator, vectors: Vectors, scope: str) -> None:
    learned = learn_coefficients(evaluator, vectors, list(vectors), settings(scope=scope, steps=0))
    assert learned.trace == () and learned.consumed == ()
    for name in vectors["pets"]:
        plain = sum((0.3 * vector[name] for vector in vectors.values()), torch.zeros(()))
        assert_close(learned.vector[name], plain, rtol=1e-6, atol=1e-9)


def in_double(evaluator: tv.Evaluator) -> tv.Evaluator:
    return tv.Evaluator(deepcopy(evaluator.backbone).double(), list(evaluator.tasks.values()))


def stacked_slopes(evaluator: tv.Evaluator, vectors: Vectors, signal: str) -> dict[str, dict[str, float]]:
    """dL/da of each vector and tensor by autograd through a model that is built from stacked deltas; all
    examples of each task are one batch."""
    base = evaluator.pretrained
    factors = {n: torch.full((len(vectors),), 0.3, dtype=torch.float64, requires_grad=True) for n in base}
    stacks = {name: torch.stack([vector[name].double() for vector in vectors.values()]) for name in base}
    theta: dict[str, Tensor] = {
        name: value + torch.tensordot(factors[name], stacks[name], 1) for name, value in base.items()
    }
    total = torch.zeros((), dtype=torch.float64)
    for task in evaluator.tasks:
        split = evaluator.split(task, "validation")
        logits = evaluator.head(task)(
            encode(evaluator.backbone, theta, evaluator.backbone.collate(split.inputs))
        )
        if signal == "entropy":
            total = total + torch.special.entr(logits.softmax(1)).sum(1).mean()
        else:
            total = total - logits.log_softmax(1)[torch.arange(len(split)), split.labels].mean()
    total.backward()  # type: ignore[no-untyped-call]
    slopes = {name: factor.grad for name, factor in factors.items() if factor.grad is not None}
    return {label: {n: slopes[n][t].item() for n in base} for t, label in enumerate(vectors)}


@pytest.mark.parametrize("signal", ["entropy", "labels"])
def test_the_first_step_goes_down_the_exact_gradient(
    evaluator: tv.Evaluator, vectors: Vectors, signal: str
) -> None:
    double = in_double(evaluator)
    wanted = stacked_slopes(double, vectors, signal)
    one_step = settings(scope="tensor", signal=signal, steps=1, batch=1000, optimizer="sgd", lr=1.0)
    learned = learn_coefficients(double, vectors, list(vectors), one_step)
    for label, slopes in wanted.items():
        found = {name: 0.3 - value for name, value in learned.coefficients[label].items()}
        assert found == pytest.approx(slopes, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_gradient_of_a_group_is_the_sum_over_its_parts(
    evaluator: tv.Evaluator, vectors: Vectors, scope: str
) -> None:
    def moved(scope: str) -> dict[str, float]:
        one_step = settings(scope=scope, steps=1, batch=1000, optimizer="sgd", lr=1.0)
        learned = learn_coefficients(in_double(evaluator), vectors, list(vectors), one_step)
        return {
            label: sum(0.3 - v for v in values.values()) for label, values in learned.coefficients.items()
        }

    assert moved(scope) == pytest.approx(moved("tensor"), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("scope", SCOPES)
def test_the_order_of_vectors_and_tasks_is_irrelevant(
    evaluator: tv.Evaluator, vectors: Vectors, scope: str
) -> None:
    one = learn_coefficients(evaluator, vectors, ["pets"], settings(scope=scope))
    other = learn_coefficients(evaluator, dict(reversed(vectors.items())), ["pets"], settings(scope=scope))
    assert one.coefficients == other.coefficients and one.trace == other.trace


def test_learning_lowers_the_objective_and_repeats(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    chosen = settings(scope="layer", steps=12, batch=48, lr=0.05, signal="labels")
    one = learn_coefficients(evaluator, vectors, list(vectors), chosen)
    assert one.trace[-1] < one.trace[0]
    assert one.consumed == ("validation labels",)
    again = learn_coefficients(evaluator, vectors, list(vectors), chosen)
    assert again.trace == one.trace and again.coefficients == one.coefficients


@pytest.mark.parametrize("values", [{}, {"optimizer": "adamw"}, {"optimizer": "sgd"}], ids=str)
def test_a_killed_call_goes_on_to_the_same_bits(
    evaluator: tv.Evaluator, vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: object
) -> None:
    assert isinstance(values, dict)
    chosen, path = settings(scope="tensor", steps=5, **values), tmp_path / "state.pt"
    whole = learn_coefficients(evaluator, vectors, list(vectors), chosen)
    monkeypatch.setattr(Checkpoint, "every", 0.0)

    def die(label: str, done: int, total: int, **facts: float) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_coefficients(evaluator, vectors, list(vectors), chosen, checkpoint=path, watch=die)
    seen: list[int] = []

    def note(label: str, done: int, total: int, **facts: float) -> None:
        seen.append(done)

    resumed = learn_coefficients(evaluator, vectors, list(vectors), chosen, checkpoint=path, watch=note)
    assert seen == [4, 5] and not path.exists()
    assert resumed.trace == whole.trace and resumed.coefficients == whole.coefficients


@pytest.mark.parametrize(("box", "ends"), [("clamp", 1.0), ("projected", 0.5), ("none", 0.5)])
def test_a_clamped_coefficient_stays_out_and_a_projected_one_comes_back(box: str, ends: float) -> None:
    vector = tv.TaskVector.from_tensors({"w": torch.ones(1)}, base={"w": torch.zeros(1)})
    chosen, base = settings(box=box, start=1.2), {"w": torch.zeros(1)}
    merge = Weighted(base, Stream({"a": vector}, base), groups_of(["w"], chosen, 0), chosen)
    optimizer = torch.optim.SGD(merge.leaves.values(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        merge.write()
        ((merge.model["w"] - 0.5) ** 2).sum().backward()  # type: ignore[no-untyped-call]
        merge.pull()
        optimizer.step()
        merge.settle()
    assert merge.coefficients().item() == pytest.approx(ends, abs=1e-6)


def test_a_pool_of_vectors_serves_one_task(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    pool = {f"{label} {n}": vector for label, vector in vectors.items() for n in range(3)}
    learned = learn_coefficients(evaluator, pool, ["taste"], settings(scope="tensor", signal="labels"))
    assert set(learned.coefficients) == set(pool) and learned.count == 9 * 37


def test_tie_normalise_and_penalty(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    tied = learn_coefficients(evaluator, vectors, list(vectors), settings(scope="tensor", tie=True))
    assert tied.count == 37 and len({str(v) for v in tied.coefficients.values()}) == 1
    normal = learn_coefficients(evaluator, vectors, list(vectors), settings(scope="layer", normalise=True))
    for group in normal.coefficients["pets"]:
        assert sum(of[group] for of in normal.coefficients.values()) == pytest.approx(1)
    heavy = settings(scope="task", penalty=1e6, steps=1, optimizer="sgd", lr=3e-7)
    shrunk = learn_coefficients(evaluator, vectors, list(vectors), heavy)
    assert all(abs(of["all"] - 0.2) < 1e-3 for of in shrunk.coefficients.values())  # 0.3 - 3e-7 * 1e6 / 3


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings(name: str) -> None:
    assert preset(name).model_dump().keys() == tv.CoefficientSettings().model_dump().keys()
    assert preset(name, {"steps": 7}).steps == 7


def test_the_test_split_is_refused_or_marked() -> None:
    with pytest.raises(InputError, match="allow_test_inputs"):
        tv.CoefficientSettings.parse("", {"split": "test"})
    with pytest.raises(InputError, match="labels of 'test'"):
        tv.CoefficientSettings.parse("", {"split": "test", "signal": "labels", "allow_test_inputs": True})
    marked = tv.CoefficientSettings.parse("", {"split": "test", "allow_test_inputs": True})
    assert marked.consumes == ("unlabelled test inputs",)


def test_a_rate_that_is_too_high_is_named(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    with pytest.raises(TaskvecError, match=r"not a number|objective is|lower the learning rate"):
        learn_coefficients(evaluator, vectors, ["pets"], settings(optimizer="sgd", lr=1e38))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_before_the_first_step_no_rate_is_to_blame(
    evaluator: tv.Evaluator, vectors: Vectors, value: float
) -> None:
    deltas = {name: torch.full(of.shape, value) for name, of in evaluator.pretrained.items()}
    broken = tv.TaskVector.from_tensors(deltas, evaluator.backbone.source)
    with pytest.raises(TaskvecError, match=r"at step 1 of 3; take vectors without NaN or infinity, or a"):
        learn_coefficients(evaluator, {**vectors, "broken": broken}, ["pets"], settings())
