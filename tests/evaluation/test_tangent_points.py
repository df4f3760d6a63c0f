"""Models in tangent space: their features against torch.func, and against those of ordinary space."""

import gc
from weakref import ref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

import taskvec as tv
from taskvec.errors import InputError, KeyMismatch
from taskvec.evaluation.linear import LinearFeatures, linear_features
from taskvec.evaluation.points import TangentPoints, own_space
from taskvec.models.functional import encode
from taskvec.tangent.linearization import Linearization
from taskvec.tasks.objective import Batch

RECIPE = tv.TrainSettings(lr=2e-3, steps=6, batch_size=16, weight_decay=0.01, validations=0)
TASKS = ["pets", "taste", "number"]
coefficients = st.floats(-3, 3, width=32)


@pytest.fixture(scope="module")
def vectors(evaluator: tv.Evaluator) -> dict[str, tv.TaskVector]:
    regimes = {"pets": "full", "taste": "full", "number": "attention"}
    return {
        task: tv.finetune(evaluator.backbone, evaluator.part(task), settings=RECIPE, regime=regime)
        for task, regime in regimes.items()
    }


@pytest.fixture(scope="module")
def points(evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector]) -> TangentPoints:
    return evaluator.points(vectors, space="tangent")


def small() -> tuple[Linearization, dict[str, dict[str, Tensor]], list[Batch]]:
    """A function of two tensors in float64, two directions (one of them partial), and two batches."""
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    theta0 = {"w": noise(3, 4), "b": noise(3)}
    taus = {"one": {"w": noise(3, 4), "b": noise(3)}, "two": {"b": noise(3)}}
    loader = [Batch({"x": noise(n, 4)}, torch.arange(n), torch.arange(n)) for n in (5, 2)]
    return Linearization(_tanh, theta0), taus, loader


def _tanh(params: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
    return torch.nn.functional.linear(inputs["x"], params["w"], params["b"]).tanh()


@settings(max_examples=20)
@given(coefficients, coefficients)
def test_one_pass_holds_the_features_of_every_point(a: float, b: float) -> None:
    lin, taus, loader = small()
    found = linear_features(lin, taus, loader)
    x = torch.cat([batch.inputs["x"] for batch in loader])
    step = {"w": a * taus["one"]["w"], "b": a * taus["one"]["b"] + b * taus["two"]["b"]}
    expected = sum(torch.func.jvp(lambda p: _tanh(p, {"x": x}), (lin.theta0,), (step,)))
    assert_close(found.at({"one": a, "two": b}), expected, rtol=1e-12, atol=1e-12)
    assert found.labels.tolist() == [0, 1, 2, 3, 4, 0, 1]


@given(coefficients, coefficients, coefficients)
def test_features_are_affine_in_the_coefficients(a: float, b: float, c: float) -> None:
    draw = torch.Generator().manual_seed(1)
    base, one, two = (torch.randn(4, 3, generator=draw, dtype=torch.float64) for _ in range(3))
    found = LinearFeatures(base, {"one": one, "two": two}, torch.zeros(4))
    left = found.at({"one": a + c, "two": b}) - base
    right = (found.at({"one": a, "two": b}) - base) + (found.at({"one": c}) - base)
    assert_close(left, right, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.at({"one": 0.0}), base)


def test_a_point_has_the_features_of_the_linearized_encoder(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector], points: TangentPoints
) -> None:
    weights = {"pets": 0.7, "taste": -0.4, "number": 1.3}
    theta0 = evaluator.pretrained
    tau = {
        name: sum(
            (c * vectors[task][name] for task, c in weights.items() if name in vectors[task]),
            torch.zeros_like(value),
        )
        for name, value in theta0.items()
    }
    with sdpa_kernel(SDPBackend.MATH):
        expected = [
            sum(torch.func.jvp(lambda p, b=batch: encode(evaluator.backbone, p, b.inputs), (theta0,), (tau,)))
            for batch in evaluator._prepared("pets", "test")
        ]
    found, labels = evaluator.features(points.at(weights), "pets", "test")
    assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert len(labels) == len(found) == 48


def test_a_shared_coefficient_is_the_same_coefficient_on_each(
    evaluator: tv.Evaluator, points: TangentPoints
) -> None:
    for labels in (TASKS, TASKS[:2]):
        one, each = points.shared(labels, 0.4), points.at(dict.fromkeys(labels, 0.4))
        a, b = (evaluator.features(point, "taste", "test")[0] for point in (one, each))
        assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_near_the_start_both_spaces_agree(evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector]) -> None:
    """The gap of a smooth model is of second order: a tenth of the step has a hundredth of it."""
    ordinary, tangent = evaluator.points(vectors), evaluator.points(vectors, space="tangent")
    gaps = []
    for alpha in (0.1, 0.01):
        at = {"pets": alpha}
        a = evaluator.features(ordinary.at(at), "pets", "test")[0]
        b = evaluator.features(tangent.at(at), "pets", "test")[0]
        gaps.append(float((a - b).norm()))
    assert gaps[0] > 1e-4
    assert gaps[1] < 0.03 * gaps[0]
    zero, nothing = (evaluator.features(p.at({}), "pets", "test")[0] for p in (ordinary, tangent))
    assert_close(zero, nothing, rtol=1e-5, atol=1e-5)


def test_points_coexist_and_read_the_data_once(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[list[str]] = []

    def counted(
        lin: Linearization, taus: dict[frozenset[str], object], *rest: object, **more: object
    ) -> object:
        passes.append(sorted("+".join(sorted(direction)) for direction in taus))
        return linear_features(lin, taus, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("taskvec.evaluation.points.linear_features", counted)
    points = evaluator.points(vectors, space="tangent")
    first, second = points.at({"pets": 1.0, "taste": 0.5}), points.at({"taste": -1.0})
    before = evaluator.features(first, "pets", "test")[0]
    evaluator.features(second, "pets", "test")
    assert torch.equal(evaluator.features(first, "pets", "test")[0], before)
    for alpha in (0.0, 0.5, 1.0):
        evaluator.score(points.shared(TASKS, alpha), "pets", "test")
    assert passes == [["pets", "taste"], ["number+pets+taste"]]
    evaluator.values(points.at({"number": 1.0, "pets": 1.0}), ["pets", "taste"], "test")
    assert passes[2:] == [["number"], ["number", "pets"]]


def test_no_figure_depends_on_what_was_evaluated_before(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector]
) -> None:
    own = {task: vectors[task] for task in ("pets", "taste")}
    fresh, used = (evaluator.points(own, space="tangent") for _ in range(2))
    for point in (used.at({}), used.at({"taste": 1.0}), used.at({"pets": 1.0})):
        evaluator.features(point, "pets", "test")
    for a, b in (
        (fresh.shared(["pets", "taste"], 0.3), used.shared(["pets", "taste"], 0.3)),
        (fresh.at({"pets": 0.3, "taste": 0.2}), used.at({"pets": 0.3, "taste": 0.2})),
    ):
        one, other = (evaluator.features(point, "pets", "test")[0] for point in (a, b))
        assert torch.equal(one, other)


def test_what_is_kept_goes_with_the_points(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector]
) -> None:
    points = evaluator.points(vectors, space="tangent")
    kept = ref(points.linear_features(evaluator._prepared("pets", "test")).base)
    assert points.linear_features(evaluator._prepared("pets", "test")).base is kept()
    del points
    gc.collect()
    assert kept() is None


def test_a_start_of_ones_own_moves_the_tangent_space(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector]
) -> None:
    start = evaluator.points(vectors).at({"taste": 1.0})
    moved = evaluator.points(vectors, start=start, space="tangent")
    expected = evaluator.features(start, "taste", "test")[0]
    assert_close(evaluator.features(moved.at({}), "taste", "test")[0], expected, rtol=1e-5, atol=1e-5)


def test_a_vector_of_nothing_stays_at_the_base(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector]
) -> None:
    points = evaluator.points({"nothing": 0 * vectors["pets"]}, space="tangent")
    expected = evaluator.features(evaluator.pretrained, "pets", "test")[0]
    for point in (points.at({}), points.at({"nothing": 2.0}), points.shared(["nothing"], 1.0)):
        assert_close(evaluator.features(point, "pets", "test")[0], expected, rtol=1e-5, atol=1e-5)


def test_bf16_is_near_float32(evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector]) -> None:
    rough = tv.Evaluator(evaluator.backbone, list(evaluator.tasks.values()), precision="bf16")
    a, b = (
        each.features(each.points(vectors, space="tangent").at({"pets": 1.0}), "pets", "test")[0]
        for each in (evaluator, rough)
    )
    assert b.dtype == torch.float32
    assert 0 < float((a - b).norm()) < 0.05 * float(a.norm())


def test_vectors_say_in_which_space_they_were_trained(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector]
) -> None:
    assert own_space(vectors) == own_space({}) == "ordinary"
    name = next(iter(evaluator.pretrained))
    deltas = {name: torch.ones_like(evaluator.pretrained[name])}
    tangent = tv.TaskVector.from_tensors(deltas, base=evaluator.backbone.ref, space="tangent")
    assert own_space({"a": tangent}) == "tangent"
    with pytest.raises(InputError, match="'a' was trained in tangent space and 'pets' in ordinary"):
        own_space({"a": tangent, **vectors})


def test_what_does_not_fit_is_refused(points: TangentPoints) -> None:
    with pytest.raises(InputError, match="no vector called 'cars' among pets, taste, number"):
        points.at({"cars": 1.0})
    with pytest.raises(InputError, match="no vector called 'cars'"):
        points.shared(["pets", "cars"], 1.0)
    lin, taus, _ = small()
    with pytest.raises(KeyMismatch, match="vector 'x': 'v' is not among"):
        TangentPoints(lin, {**taus, "x": {"v": torch.zeros(1)}})
