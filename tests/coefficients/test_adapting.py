"""Few-shot adaptation: what is drawn, what is learned from it, and the laws of pools."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import taskvec as tv
from taskvec.coefficients.pool import composed, load_pool
from taskvec.coefficients.presets import few_shot
from taskvec.coefficients.scopes import groups_of
from taskvec.coefficients.shots import draw_shots
from taskvec.errors import InputError, UnknownName
from taskvec.tasks.split import Split

Vectors = dict[str, tv.TaskVector]
LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 0, 1, 0, 0])


def split(labels: torch.Tensor = LABELS) -> Split:
    return Split([str(place) for place in range(len(labels))], labels)


@pytest.mark.parametrize("shots", [1, 2, 3, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_class_gives_its_shots_or_all_it_has(shots: int, seed: int) -> None:
    places = draw_shots(split(), shots, seed, by_class=True)
    counts = LABELS[places].bincount().tolist()
    assert counts == [min(shots, held) for held in LABELS.bincount().tolist()]
    assert places.tolist() == sorted(set(places.tolist()))


@pytest.mark.parametrize("by_class", [True, False])
def test_fewer_shots_are_some_of_more(by_class: bool) -> None:
    drawn = [set(draw_shots(split(), k, 3, by_class=by_class).tolist()) for k in range(1, 7)]
    assert all(less < more or less == more for less, more in pairwise(drawn))
    assert len(draw_shots(split(), 4, 3, by_class=False)) == 4


def test_other_seeds_draw_others() -> None:
    many = split(torch.arange(200) % 4)
    drawn = {tuple(draw_shots(many, 2, seed, by_class=True).tolist()) for seed in range(8)}
    assert len(drawn) == 8


def quick(**values: object) -> tv.CoefficientSettings:
    return few_shot({"steps": 5, **values})


def zero(vector: tv.TaskVector) -> bool:
    return all(not vector[name].any() for name in vector)


def test_no_shot_or_no_step_is_the_model_as_it_is(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    for found in (
        tv.adapt(evaluator, vectors, "pets", 0),
        tv.adapt(evaluator, vectors, "pets", 2, settings=quick(steps=0)),
    ):
        assert zero(found.vector) and found.consumed == () and found.trace == ()


def test_what_was_read_is_said(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    found = tv.adapt(evaluator, vectors, "pets", 3, settings=quick())
    assert found.consumed == ("6 train labels (3 a class)",)
    record = found.record()
    assert record["shots"] == 3 and len(record["examples"]) == 6
    labels = evaluator.split("pets", "train").labels[torch.tensor(record["examples"])]
    assert labels.bincount().tolist() == [3, 3]


def test_labels_of_a_probe_are_counted(tiny_model: Path, tiny_suite: Path, vectors: Vectors) -> None:
    task = tv.load_suite(tiny_suite).task("pets").model_copy(update={"head": "linear-probe"})
    model = tv.Evaluator(tv.load_backbone(str(tiny_model)), [task])
    found = tv.adapt(model, vectors, "pets", 1, settings=quick(steps=1))
    assert found.consumed == ("2 train labels (1 a class)", "96 train labels (by the task's head)")
    assert tv.adapt(model, vectors, "pets", 0).consumed == ("96 train labels (by the task's head)",)


def test_a_class_that_has_fewer_is_told_of(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    found = tv.adapt(evaluator, vectors, "pets", 1000, settings=quick(steps=1))
    assert found.consumed == (f"{len(evaluator.split('pets', 'train'))} train labels (at most 1000 a class)",)


def test_only_the_shots_are_read(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    found = tv.adapt(evaluator, vectors, "pets", 2, settings=quick(batch=100))
    train = evaluator.split("pets", "train")
    spoiled = Split(list(train.inputs), (train.labels + 1) % 2)
    kept = torch.tensor(found.examples)
    spoiled.labels[kept] = train.labels[kept]
    other = evaluator.on_examples("train", {"pets": train})
    again = tv.learn_coefficients(
        other.on_examples("train", {"pets": spoiled.at(kept)}), vectors, ["pets"], quick(batch=100)
    )
    assert again.coefficients == found.coefficients


@pytest.mark.parametrize("scope", ["task", "layer", "tensor"])
def test_the_order_of_the_pool_is_irrelevant(evaluator: tv.Evaluator, vectors: Vectors, scope: str) -> None:
    one = tv.adapt(evaluator, vectors, "taste", 2, settings=quick(scope=scope))
    other = tv.adapt(evaluator, dict(reversed(vectors.items())), "taste", 2, settings=quick(scope=scope))
    assert one.coefficients == other.coefficients and one.trace == other.trace


def test_a_pool_of_one_vector_is_its_scaled_form(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    found = tv.adapt(evaluator, {"a": vectors["pets"]}, "taste", 2, settings=quick(scope="task"))
    [scale] = found.coefficients["a"].values()
    assert scale != 0
    for name in vectors["pets"]:
        assert_close(found.vector[name], scale * vectors["pets"][name])


def test_an_expression_is_one_vector_of_the_pool(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    turn = vectors["pets"] - vectors["taste"]
    found = tv.adapt(evaluator, {"turn": turn}, "number", 2, settings=quick(scope="task"))
    [scale] = found.coefficients["turn"].values()
    by_name = composed(vectors, {"turn": "pets - taste"})
    assert set(by_name) == {"turn", "number"}
    for name in turn:
        assert_close(found.vector[name], scale * turn[name])
        assert_close(by_name["turn"][name], turn[name])


def test_a_vector_that_serves_gets_the_largest_coefficient(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    settings = tv.TrainSettings(lr=1e-3, steps=25, batch_size=32)
    good = tv.finetune(evaluator.backbone, evaluator.part("pets"), settings=settings)
    pool = {"good": good, "other": vectors["number"]}
    found = tv.adapt(evaluator, pool, "pets", 8, settings=few_shot({"scope": "task", "lr": 0.1}))
    assert found.trace[-1] < found.trace[0]
    assert found.coefficients["good"]["all"] > abs(found.coefficients["other"]["all"])
    point = evaluator.points({"v": found.vector}).at({"v": 1.0})
    before, after = (evaluator.score(of, "pets", "test").value for of in (evaluator.pretrained, point))
    assert after > before


@pytest.mark.parametrize("scope", ["task", "layer"])
def test_kept_outputs_of_tangent_space_give_what_the_network_gives(
    evaluator: tv.Evaluator, vectors: Vectors, scope: str
) -> None:
    given = quick(scope=scope, steps=3, batch=100, optimizer="sgd", lr=0.5)
    found = tv.adapt(evaluator, vectors, "pets", 2, settings=given, space="tangent")
    groups = list(found.coefficients["pets"])
    factors = torch.zeros(len(vectors), len(groups), requires_grad=True)
    labels = sorted(vectors)
    held = evaluator.split("pets", "train").at(torch.tensor(found.examples))
    inputs = evaluator.backbone.collate(held.inputs)
    lin = evaluator.linearized
    place = {name: groups_of([name], given).names[0] for name in lin.theta0}
    trace: list[float] = []
    for _ in range(3):
        tau = {
            name: sum(
                (factors[t, groups.index(group)] * vectors[label][name] for t, label in enumerate(labels)),
                torch.zeros(()),
            )
            for name, group in place.items()
            if group in groups
        }
        loss = torch.nn.functional.cross_entropy(evaluator.head("pets")(lin(tau, inputs)), held.labels)
        trace.append(loss.item())
        [slope] = torch.autograd.grad(loss, factors)
        with torch.no_grad():
            factors -= 0.5 * slope
    assert list(found.trace) == pytest.approx(trace, rel=1e-4)
    for t, label in enumerate(labels):
        assert list(found.coefficients[label].values()) == pytest.approx(
            factors[t].tolist(), rel=1e-3, abs=1e-6
        )


def test_a_pool_may_be_a_library_and_the_model_a_backbone(
    evaluator: tv.Evaluator, vectors: Vectors, tmp_path: Path
) -> None:
    plain = tv.adapt(evaluator, vectors, "pets", 2, settings=quick())
    library = tv.Library(vectors, torch.eye(len(vectors)))
    found = tv.adapt(evaluator.backbone, library, evaluator.task("pets"), 2, settings=quick())
    assert found.coefficients == plain.coefficients
    library.save(tmp_path / "library")
    stored = tv.adapt(evaluator, load_pool(tmp_path / "library"), "pets", 2, settings=quick())
    assert stored.coefficients == plain.coefficients
    (tmp_path / "folder").mkdir()
    for name, vector in vectors.items():
        vector.save(tmp_path / "folder" / f"{name}.safetensors")
    of_folder = tv.adapt(evaluator, load_pool(tmp_path / "folder"), "pets", 2, settings=quick())
    assert of_folder.coefficients == plain.coefficients


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": -1}, r"shots: -1, expected 0 or more"),
        ({"settings": few_shot({"signal": "entropy"})}, r"signal: entropy, expected labels"),
        ({"task": "pet"}, r"no task called 'pet' here; did you mean 'pets'\?"),
        ({"pool": {}}, r"vectors"),
    ],
)
def test_what_does_not_fit_is_refused(
    evaluator: tv.Evaluator, vectors: Vectors, changes: dict[str, object], message: str
) -> None:
    given: dict[str, object] = {"pool": vectors, "task": "pets", "shots": 1, **changes}
    with pytest.raises(InputError, match=message):
        tv.adapt(evaluator, **given)  # type: ignore[arg-type]


def test_a_name_beside_a_backbone_is_refused(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    with pytest.raises(InputError, match="beside a backbone, expected a Task"):
        tv.adapt(evaluator.backbone, vectors, "pets", 1)


def test_expressions_over_what_is_not_there(vectors: Vectors, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="no vector of the pool"):
        composed(vectors, {"x": "pets - tastes"})
    with pytest.raises(InputError, match="choose another"):
        composed(vectors, {"number": "pets - taste"})
    with pytest.raises(InputError, match="no folder"):
        load_pool(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"holds no \.safetensors files"):
        load_pool(tmp_path)
