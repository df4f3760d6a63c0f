"""AdaRank: with everything kept it is addition, and its gradient needs no graph through the merge."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import taskvec as tv
from taskvec.coefficients.adarank import Ranked
from taskvec.coefficients.learning import learn_coefficients
from taskvec.coefficients.passes import Passes, splits_of
from taskvec.coefficients.presets import preset
from taskvec.coefficients.ranks import ranked_matrices
from taskvec.coefficients.scopes import groups_of
from taskvec.coefficients.signals import entropy
from taskvec.coefficients.streaming import Stream
from taskvec.errors import InputError, NonFinite
from taskvec.models.functional import encode
from taskvec.rules.matrix import svd

Vectors = dict[str, tv.TaskVector]


def settings(**values: object) -> tv.CoefficientSettings:
    return preset("adarank", {"steps": 3, "batch": 8, **values})


def plain_sum(vectors: Vectors) -> tv.TaskVector:
    first, *others = (0.3 * vector for vector in vectors.values())
    return sum(others, start=first)


def matrices(vectors: Vectors) -> list[str]:
    pets = vectors["pets"]
    return ranked_matrices({name: tuple(pets.specs[name].shape) for name in pets})


def test_with_everything_kept_it_is_addition(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    learned = learn_coefficients(evaluator, vectors, list(vectors), settings(steps=0))
    plain = plain_sum(vectors)
    for name in plain:
        assert_close(learned.vector[name], plain[name], rtol=1e-5, atol=1e-7)
    shares = [of for kept in learned.kept.values() for of in kept.values()]
    assert len(shares) == len(vectors) * len(matrices(vectors)) and all(kept == all_ for kept, all_ in shares)


def test_with_nothing_kept_only_other_tensors_change(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    learned = learn_coefficients(evaluator, vectors, list(vectors), settings(steps=0, ratio=0.0))
    plain = plain_sum(vectors)
    ranked = matrices(vectors)
    assert ranked and not any(learned.vector[name].any() for name in ranked)
    for name in plain.keys() - set(ranked):
        assert_close(learned.vector[name], plain[name], rtol=1e-5, atol=1e-7)
    assert {kept for of in learned.kept.values() for kept, _ in of.values()} == {0}


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_at_first_the_largest_directions_are_kept(
    evaluator: tv.Evaluator, vectors: Vectors, ratio: float
) -> None:
    learned = learn_coefficients(evaluator, vectors, list(vectors), settings(steps=0, ratio=ratio))
    for name in matrices(vectors)[:3]:
        parts = torch.zeros(())
        for vector in vectors.values():
            u, s, v = torch.linalg.svd(vector[name].double(), full_matrices=False)
            kept = round(ratio * len(s))
            parts = parts + 0.3 * (u[:, :kept] * s[:kept]) @ v[:kept]
        assert_close(learned.vector[name].double(), parts, rtol=1e-4, atol=1e-7)


def test_the_first_step_goes_down_the_straight_through_gradient(
    evaluator: tv.Evaluator, vectors: Vectors
) -> None:
    """Of coefficients, against autograd through the merge built from truncated matrices."""
    learned = learn_coefficients(
        evaluator, vectors, ["pets"], settings(steps=1, ratio=0.5, batch=1000, optimizer="sgd", lr=1.0)
    )
    base = evaluator.pretrained
    names = [name for name in base if any(name in of and of.terms_at(name) for of in vectors.values())]
    factors = {n: torch.full((len(vectors),), 0.3, requires_grad=True) for n in names}
    ranked = set(matrices(vectors))
    theta: dict[str, Tensor] = dict(base)
    for name in names:
        deltas = [vector[name] for vector in vectors.values()]
        if name in ranked:
            deltas = [_truncated(delta) for delta in deltas]
        theta[name] = base[name] + torch.tensordot(factors[name], torch.stack(deltas), 1)
    split = evaluator.split("pets", "validation")
    features = encode(evaluator.backbone, theta, evaluator.backbone.collate(split.inputs))
    torch.special.entr(evaluator.head("pets")(features).softmax(1)).sum(1).mean().backward()
    for t, label in enumerate(vectors):
        found = {name: 0.3 - learned.coefficients[label][name] for name in names}
        slopes = {name: factor.grad for name, factor in factors.items()}
        wanted = {name: float(slope[t]) for name, slope in slopes.items() if slope is not None}
        assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def _truncated(delta: Tensor) -> Tensor:
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    kept = round(0.5 * len(s))
    cut: Tensor = (u[:, :kept] * s[:kept]) @ v[:kept]
    return cut


def test_directions_come_and_go_and_a_seed_repeats_it(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    chosen = settings(steps=40, lr=1e-2, ratio=0.5)
    one, same = (learn_coefficients(evaluator, vectors, list(vectors), chosen) for _ in range(2))
    assert one.trace == same.trace and one.kept == same.kept
    start = learn_coefficients(evaluator, vectors, list(vectors), settings(steps=0, ratio=0.5))
    assert one.kept != start.kept
    assert sum(one.trace[-5:]) < sum(one.trace[:5])
    assert one.count > len(vectors) * len(matrices(vectors))
    assert one.record()["kept"]["pets"] == one.kept["pets"]


def test_the_vector_is_the_model_that_was_learned(
    evaluator: tv.Evaluator, vectors: Vectors, tmp_path: Path
) -> None:
    learned = learn_coefficients(evaluator, vectors, list(vectors), settings(steps=5, ratio=0.5, lr=1e-2))
    again = tv.TaskVector.load(learned.vector.save(tmp_path / "merged.safetensors"))
    for name in matrices(vectors):
        assert torch.equal(again[name], learned.vector[name])
    score = evaluator.score(evaluator.points({"m": again}).at({"m": 1.0}), "pets", "test")
    assert 0 <= score.value <= 1


def test_what_has_no_singular_directions_is_refused(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    name = matrices(vectors)[0]
    spoiled = torch.full_like(vectors["pets"][name], float("nan"))
    bad = tv.TaskVector.from_tensors({name: spoiled}, evaluator.backbone.source)
    with pytest.raises(NonFinite, match=f"vector 'bad': '{name}' holds NaN or infinity"):
        learn_coefficients(evaluator, {"bad": bad}, ["pets"], settings())


def test_a_ratio_belongs_to_ranks() -> None:
    with pytest.raises(InputError, match="ratio: belongs to scope rank, and the scope is task"):
        preset("adamerging", {"ratio": 0.5})


def test_logits_have_the_straight_through_gradient_in_float64(
    evaluator: tv.Evaluator, vectors: Vectors, tmp_path: Path
) -> None:
    """Against autograd through a merge whose masks are hard forward and soft backward."""
    double = tv.Evaluator(deepcopy(evaluator.backbone).double(), list(evaluator.tasks.values()))
    base, chosen = double.pretrained, settings(ratio=0.5, batch=1000)
    stream = Stream(vectors, base)
    merge = Ranked(base, stream, groups_of(stream.changed, chosen, 0), chosen, tmp_path)
    passes = Passes(double, splits_of(double, ["pets"], chosen), chosen, entropy, 0)
    merge.write()
    passes.backward(merge.model, 0)
    merge.pull()

    ranked, logits = matrices(vectors), list[Tensor]()
    theta: dict[str, Tensor] = {}
    for name, value in base.items():
        deltas = [vectors[label][name].double() for label in sorted(vectors)]
        theta[name] = value + sum((0.3 * delta for delta in deltas), torch.zeros_like(value))
    for name in ranked:
        theta[name] = base[name]
        for label in sorted(vectors):
            u, s, v = svd(vectors[label][name].double())
            kept = torch.arange(len(s)) < round(0.5 * min(base[name].shape))
            logits.append(torch.where(kept, 0.1, -0.1).double().requires_grad_())
            likely = (logits[-1] / 10).sigmoid()
            mask = (likely > 0.5).double() + likely - likely.detach()
            theta[name] = theta[name] + 0.3 * (u * (mask * s)) @ v
    split = double.split("pets", "validation")
    features = encode(double.backbone, theta, double.backbone.collate(split.inputs))
    loss = torch.special.entr(double.head("pets")(features).softmax(1)).sum(1).mean()
    expected = torch.cat(torch.autograd.grad(loss, logits))
    found = merge.leaves["ranks"].grad
    assert found is not None and expected.abs().max() > 0
    assert_close(found, expected, rtol=1e-7, atol=1e-12)
