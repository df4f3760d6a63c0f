"""Coefficients in tangent space: outputs once; convex where the head does not normalise."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import taskvec as tv
from taskvec.coefficients.affine import Affine
from taskvec.coefficients.learning import learn_coefficients
from taskvec.coefficients.rows import Rows
from taskvec.coefficients.tangent import is_affine
from taskvec.errors import InputError
from taskvec.models.functional import encode
from taskvec.models.heads import Head
from taskvec.tasks.kinds.classification import Classifying

Vectors = dict[str, tv.TaskVector]
SCOPES = ("task", "layer", "tensor", "partition")


def settings(**values: object) -> tv.CoefficientSettings:
    return tv.CoefficientSettings.model_validate({"steps": 3, "batch": 8, **values})


def jvp_features(evaluator: tv.Evaluator, vector: tv.TaskVector, task: str) -> Tensor:
    """Features of the validation split by torch.func, at coefficient 1."""
    theta0 = evaluator.pretrained
    inputs = evaluator.backbone.collate(evaluator.split(task, "validation").inputs)
    tau = {name: vector[name].to(value) for name, value in theta0.items()}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        pair = torch.func.jvp(lambda p: encode(evaluator.backbone, p, inputs), (theta0,), (tau,))
    features: Tensor = pair[0] + pair[1]
    return features


@pytest.fixture(scope="module")
def plain(evaluator: tv.Evaluator) -> tv.Evaluator:
    """The same tasks behind heads that do not normalise, so that losses are convex."""
    other = tv.Evaluator(evaluator.backbone, list(evaluator.tasks.values()))
    draw = torch.Generator().manual_seed(0)
    for task in other.tasks:
        weight = torch.randn(2, evaluator.backbone.dim, generator=draw)
        head = Head(weight, torch.zeros(2), normalize=False, classes=["a", "b"], kind="linear-probe")
        other._objectives[task] = Classifying(head)
    return other


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("signal", ["entropy", "labels"])
def test_the_objective_is_that_of_the_linearized_model(
    evaluator: tv.Evaluator, vectors: Vectors, scope: str, signal: str
) -> None:
    """Before the first step, of all examples at once; groups of any scope add up to the vector."""
    chosen = settings(scope=scope, signal=signal, steps=1, batch=1000, start=0.5)
    found = learn_coefficients(evaluator, vectors, list(vectors), chosen, space="tangent").trace[0]
    merged = sum((0.5 * vector for vector in vectors.values()), start=0 * vectors["pets"])
    total = 0.0
    for task in vectors:
        logits = evaluator.head(task)(jvp_features(evaluator, merged, task))
        labels = evaluator.split(task, "validation").labels
        entropy = torch.special.entr(logits.softmax(1)).sum(1).mean()
        loss = torch.nn.functional.cross_entropy(logits, labels)
        total += (entropy if signal == "entropy" else loss).item()
    assert found == pytest.approx(total, rel=1e-4)


def whole_loss(plain: tv.Evaluator, vectors: Vectors) -> Callable[[Tensor], Tensor]:
    """The loss of all tasks as a function of a coefficient a vector, in float64, by torch.func."""
    zero = 0 * vectors["pets"]
    parts = {}
    for task in vectors:
        f0 = jvp_features(plain, zero, task).double()
        slopes = torch.stack([jvp_features(plain, v, task).double() - f0 for _, v in sorted(vectors.items())])
        parts[task] = f0, slopes, plain.head(task), plain.split(task, "validation").labels

    def loss(at: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for f0, slopes, head, labels in parts.values():
            logits = (f0 + torch.tensordot(at, slopes, 1)) @ head.weight.double().T
            total = total - logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()
        return total

    return loss


def test_labels_behind_an_affine_head_reach_the_global_minimum(plain: tv.Evaluator, vectors: Vectors) -> None:
    """Against Newton's method on outputs of torch.func: the objective is convex, so both end at one place."""
    chosen = settings(signal="labels", steps=500, start=0.0)
    learned = learn_coefficients(plain, vectors, list(vectors), chosen, space="tangent")
    loss = whole_loss(plain, vectors)
    at = torch.zeros(len(vectors), dtype=torch.float64)
    for _ in range(60):
        hessian = torch.func.hessian(loss)(at) + 1e-12 * torch.eye(len(at), dtype=torch.float64)
        step = torch.linalg.solve(hessian, torch.func.grad(loss)(at))
        size = 1.0
        while loss(at - size * step) > loss(at) and size > 1e-8:
            size /= 2
        at = at - size * step
    found = torch.tensor([learned.coefficients[label]["all"] for label in sorted(vectors)]).double()
    assert loss(found) <= loss(at) + 1e-6
    assert learned.trace[-1] <= min(learned.trace) + 1e-9
    assert learned.trace[-1] == pytest.approx(float(loss(at)), abs=1e-4)


def test_the_minimum_stays_in_the_box(plain: tv.Evaluator, vectors: Vectors) -> None:
    free = learn_coefficients(
        plain, vectors, list(vectors), settings(signal="labels", steps=200), space="tangent"
    )
    boxed = learn_coefficients(
        plain,
        vectors,
        list(vectors),
        settings(signal="labels", steps=200, box="projected", bounds=(0.0, 0.4)),
        space="tangent",
    )
    assert all(0 <= of["all"] <= 0.4 for of in boxed.coefficients.values())
    assert any(not 0 <= of["all"] <= 0.4 for of in free.coefficients.values())
    assert free.trace[-1] <= boxed.trace[-1] + 1e-9


def test_a_tied_coefficient_is_one_number(plain: tv.Evaluator, vectors: Vectors) -> None:
    learned = learn_coefficients(
        plain, vectors, list(vectors), settings(signal="labels", steps=50, tie=True), space="tangent"
    )
    assert len({of["all"] for of in learned.coefficients.values()}) == 1 and learned.count == 1


def test_no_step_needs_the_network(
    evaluator: tv.Evaluator, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many passes for sixty steps as for one."""
    passes = []
    through = type(evaluator.backbone).forward

    def counted(self: tv.Backbone, **batch: Tensor) -> Tensor:
        passes.append(1)
        return through(self, **batch)

    monkeypatch.setattr(type(evaluator.backbone), "forward", counted)
    counts = []
    for steps in (1, 60):
        passes.clear()
        learned = learn_coefficients(evaluator, vectors, ["pets"], settings(steps=steps), space="tangent")
        counts.append(len(passes))
        assert len(learned.trace) == steps
    assert counts[0] == counts[1]


def test_learning_lowers_the_entropy_and_repeats(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    chosen = settings(steps=40, lr=5e-2)
    one, same = (
        learn_coefficients(evaluator, vectors, list(vectors), chosen, space="tangent") for _ in range(2)
    )
    assert one.trace == same.trace and one.coefficients == same.coefficients
    assert sum(one.trace[-5:]) < sum(one.trace[:5])


def test_no_step_is_the_plain_sum(plain: tv.Evaluator, vectors: Vectors) -> None:
    for signal in ("entropy", "labels"):
        learned = learn_coefficients(
            plain, vectors, list(vectors), settings(signal=signal, steps=0), space="tangent"
        )
        assert learned.trace == ()
        assert {of["all"] for of in learned.coefficients.values()} == {0.3}


def test_vectors_of_a_tangent_regime_are_added_there(evaluator: tv.Evaluator) -> None:
    recipe = tv.TrainSettings(lr=1e-3, steps=4, batch_size=16)
    vector = tv.finetune(evaluator.backbone, [evaluator.part("pets")], settings=recipe, regime="tangent")
    chosen = settings(signal="labels", steps=2)
    assert learn_coefficients(evaluator, {"pets": vector}, ["pets"], chosen).trace == (
        learn_coefficients(evaluator, {"pets": vector}, ["pets"], chosen, space="tangent").trace
    )
    with pytest.raises(InputError, match="was trained in tangent space"):
        learn_coefficients(evaluator, {"pets": vector, "other": vector + vector}, ["pets"], chosen)


def test_agreement_asks_the_experts_of_tangent_space(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    chosen = settings(signal="agreement", steps=1, batch=1000, start=1.0)
    learned = learn_coefficients(evaluator, {"pets": vectors["pets"]}, ["pets"], chosen, space="tangent")
    logits = evaluator.head("pets")(jvp_features(evaluator, vectors["pets"], "pets"))
    expected = torch.nn.functional.cross_entropy(logits, logits.argmax(1)).item()
    assert learned.trace[0] == pytest.approx(expected, rel=1e-4)


def test_ranks_are_refused(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    with pytest.raises(InputError, match="scope: rank goes with ordinary space"):
        learn_coefficients(evaluator, vectors, ["pets"], settings(scope="rank"), space="tangent")


def test_outputs_that_do_not_fit_into_memory_are_refused(
    evaluator: tv.Evaluator, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskvec.coefficients.affine.KEPT", 100)
    with pytest.raises(InputError, match="pets: in tangent space 48 rows of outputs with 3 slopes each"):
        learn_coefficients(evaluator, vectors, ["pets"], settings(), space="tangent")


def test_rows_of_a_batch_are_those_of_its_examples() -> None:
    index = torch.tensor([1, 1, 0, 2])
    rows = Rows.of(index)
    given = torch.arange(4.0)[:, None]
    affine = Affine(given[rows.order], given[rows.order][None], torch.tensor([0]), torch.tensor([0]), rows)
    at = affine.at(torch.tensor([[10.0]]), torch.tensor([2, 1, 1]))
    assert_close(at.squeeze(1), 11 * torch.tensor([3.0, 0.0, 1.0]))


def test_heads_that_normalise_or_bend_are_not_affine(plain: tv.Evaluator, evaluator: tv.Evaluator) -> None:
    assert is_affine(plain.objective("pets")) and not is_affine(evaluator.objective("pets"))
    linear, bent = torch.nn.Linear(3, 3), torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh())
    for before, affine in ((linear, True), (bent, False)):
        head = Head(torch.ones(2, 3), None, normalize=False, classes=["a", "b"], kind="own", before=before)
        assert is_affine(Classifying(head)) is affine
