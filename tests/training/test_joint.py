"""Joint training by a combiner: what a step is made of, and that it can be resumed, and cut into groups."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import taskvec as tv
from taskvec.combiners import COMBINERS, Combiner, combiner_called
from taskvec.errors import InputError, UnknownName
from taskvec.training import checkpoint
from taskvec.training.joint import Joint, combiner_for, facts_of
from taskvec.training.meta import Meta
from taskvec.training.slopes import gram_of, groups_of, weighted
from taskvec.training.stream import joint_stream, stream

RECIPE = tv.TrainSettings(lr=3e-3, steps=6, batch_size=16, weight_decay=0.01, validations=0)
PLAIN = tv.TrainSettings(lr=0.1, steps=1, batch_size=96, optimizer="sgd", clip=0, warmup=0, validations=0)
TASKS = ["pets", "taste", "number"]
Logged = list[dict[str, float]]


def tuned(
    evaluator: tv.Evaluator, *tasks: str, settings: tv.TrainSettings = RECIPE, **options: Any
) -> tv.TaskVector:
    parts = [evaluator.part(task) for task in tasks or TASKS]
    return tv.finetune(evaluator.backbone, parts, settings=settings, **options)


def logged(evaluator: tv.Evaluator, *tasks: str, **options: Any) -> tuple[tv.TaskVector, Logged]:
    steps: Logged = []
    vector = tuned(evaluator, *tasks, log=lambda step, values: steps.append(dict(values)), **options)
    return vector, steps


def same(a: tv.TaskVector, b: tv.TaskVector) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("regime", ["full", "attention", "tangent", "lora", "tangent-lora"])
def test_one_task_by_the_mean_is_training_without_a_combiner(evaluator: tv.Evaluator, regime: str) -> None:
    plain = tuned(evaluator, "pets", regime=regime)
    assert same(tuned(evaluator, "pets", regime=regime, combiner="mean"), plain)


@pytest.mark.parametrize("change", [{"accumulation": 3}, {"penalty": "decay"}, {"epochs": 2, "steps": None}])
def test_so_it_is_with_whatever_the_loop_offers(evaluator: tv.Evaluator, change: dict[str, Any]) -> None:
    settings = tv.TrainSettings(**{**RECIPE.model_dump(), **change})
    plain = tuned(evaluator, "pets", settings=settings)
    assert same(tuned(evaluator, "pets", settings=settings, combiner="mean"), plain)


@pytest.mark.parametrize("regime", ["full", "attention", "tangent", "lora"])
def test_the_mean_of_whole_sets_is_one_step_down_the_mean_loss(evaluator: tv.Evaluator, regime: str) -> None:
    alone = [tuned(evaluator, task, settings=PLAIN, regime=regime) for task in TASKS]
    together = tuned(evaluator, settings=PLAIN, regime=regime, combiner="mean")
    for name in together:
        if regime != "lora":  # whose product is not linear in the factors
            mean = sum(vector[name].double() for vector in alone) / 3
            assert_close(together[name].double(), mean, rtol=1e-5, atol=1e-7)


def test_the_sum_is_three_times_the_mean(evaluator: tv.Evaluator) -> None:
    mean, total = (tuned(evaluator, settings=PLAIN, combiner=name) for name in ("mean", "sum"))
    assert_close(dict(total), dict(3 * mean), rtol=1e-4, atol=1e-6)


def test_climbing_is_the_same_step_backwards(evaluator: tv.Evaluator) -> None:
    down, up = (tuned(evaluator, settings=PLAIN, combiner="mean", ascend=ascend) for ascend in (False, True))
    assert_close(dict(up), dict(-1 * down), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("order", [["number", "pets", "taste"], ["taste", "number", "pets"]])
def test_the_order_of_tasks_is_irrelevant(evaluator: tv.Evaluator, order: list[str]) -> None:
    sgd = RECIPE.model_copy(update={"optimizer": "sgd", "lr": 0.1})
    one, other = (tuned(evaluator, *tasks, settings=sgd, combiner="mean") for tasks in (TASKS, order))
    assert_close(dict(other), dict(one), rtol=1e-3, atol=1e-6)


EVERY = [*COMBINERS, {"combiner": "meta", "target": "pets"}]


@pytest.mark.parametrize("combiner", EVERY, ids=str)
@pytest.mark.parametrize("regime", ["attention", "tangent-lora"])
def test_every_combiner_trains(evaluator: tv.Evaluator, combiner: Any, regime: str) -> None:
    vector, steps = logged(evaluator, combiner=combiner, regime=regime)
    assert all(torch.isfinite(torch.tensor(list(facts.values()))).all() for facts in steps)
    assert vector.norm() > 0


@pytest.mark.parametrize("combiner", ["sum", "pcgrad", "graddrop"])
def test_half_precision_scales_no_weights(evaluator: tv.Evaluator, combiner: str) -> None:
    settings = PLAIN.model_copy(update={"precision": "fp16"})
    whole, half = (logged(evaluator, settings=of, combiner=combiner) for of in (PLAIN, settings))
    for name in ("weight/pets", "cosine/pets/taste", "gradient_norm"):
        assert half[1][0][name] == pytest.approx(whole[1][0][name], rel=0.1, abs=0.02)


def test_gradients_by_entries_are_drawn_by_seed_step_and_name(evaluator: tv.Evaluator) -> None:
    one, again = (tuned(evaluator, combiner="graddrop") for _ in range(2))
    assert same(one, again)
    small = RECIPE.model_copy(update={"combiner_memory": 1e-5})
    assert_close(dict(tuned(evaluator, settings=small, combiner="graddrop")), dict(one), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("combiner", ["mean", "pcgrad", {"combiner": "meta", "target": "pets"}])
@pytest.mark.parametrize("regime", ["full", "tangent-attention", "lora"])
def test_gradients_that_do_not_fit_are_computed_anew(
    evaluator: tv.Evaluator, combiner: Any, regime: str
) -> None:
    sgd = RECIPE.model_copy(update={"optimizer": "sgd", "lr": 0.1})
    small = sgd.model_copy(update={"combiner_memory": 1e-5})
    (kept, facts), (anew, again) = (
        logged(evaluator, settings=of, combiner=combiner, regime=regime) for of in (sgd, small)
    )
    assert_close(dict(anew), dict(kept), rtol=1e-3, atol=1e-6)
    for one, other in zip(facts, again, strict=True):
        assert one.keys() == other.keys()
        timeless = [name for name in one if "second" not in name]
        assert_close([other[n] for n in timeless], [one[n] for n in timeless], rtol=1e-3, atol=1e-5)


class Killed(BaseException):
    """Stands for a signal: nothing in between catches it."""


@pytest.mark.parametrize("combiner", ["pcgrad", "graddrop", {"combiner": "meta", "target": "pets"}])
def test_a_killed_training_resumes_to_the_same_bits(
    evaluator: tv.Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, combiner: Any
) -> None:
    whole = tuned(evaluator, combiner=combiner)
    monkeypatch.setattr(checkpoint.Checkpoint, "every", 0.0)
    seen: list[int] = []

    def killer(label: str, done: int, total: int, **facts: float) -> None:
        if done == 4:
            raise Killed

    def watch(label: str, done: int, total: int, **facts: float) -> None:
        seen.append(done)

    path = tmp_path / "training.pt"
    with pytest.raises(Killed):
        tuned(evaluator, combiner=combiner, checkpoint=path, watch=killer)
    with pytest.raises(InputError, match="of another training"):
        tuned(evaluator, combiner="mean", checkpoint=path)
    assert same(tuned(evaluator, combiner=combiner, checkpoint=path, watch=watch), whole)
    assert seen == [5, 6]


def test_epochs_read_what_they_read_without_a_combiner(evaluator: tv.Evaluator) -> None:
    settings = tv.TrainSettings(lr=1e-3, epochs=2, batch_size=16, validations=0)
    _, plain = logged(evaluator, settings=settings)
    _, joint = logged(evaluator, settings=settings, combiner="mean")
    assert (len(plain), len(joint)) == (36, 12)  # of batches: 2 * 6 of each of three tasks


def test_small_sets_are_read_again_and_every_task_as_in_a_training_of_its_own() -> None:
    sizes = [torch.ones(count, dtype=torch.int64) for count in (40, 7, 25)]
    settings = tv.TrainSettings(steps=9, batch_size=4)
    steps = list(joint_stream(sizes, settings, ahead=1))
    assert [[chunk.part for chunk in step] for step in steps] == [[0, 1, 2, 1]] * 9
    for part, of_part in enumerate(sizes):
        alone = [chunk.places.tolist() for chunk in stream([of_part], settings)]
        assert [step[part].places.tolist() for step in steps] == alone
    assert [step[1].places.tolist() for step in steps] != [step[3].places.tolist() for step in steps]


def test_every_step_is_logged(evaluator: tv.Evaluator) -> None:
    vector, steps = logged(evaluator, combiner="pcgrad")
    assert len(steps) == 6
    for facts in steps:
        pairs = {name: value for name, value in facts.items() if name.startswith("cosine/")}
        assert set(pairs) == {"cosine/pets/taste", "cosine/pets/number", "cosine/taste/number"}
        assert facts["conflict_rate"] == pytest.approx(sum(value < 0 for value in pairs.values()) / 3)
        assert facts["cosine_min"] == min(pairs.values())
        assert facts["cosine_mean"] == pytest.approx(sum(pairs.values()) / 3)
        assert facts["loss"] == pytest.approx(sum(facts[f"loss/{task}"] for task in TASKS) / 3, rel=1e-5)
        assert all(facts[f"weight/{task}"] >= 1 for task in TASKS)  # what PCGrad adds is no less than the sum
    assert vector.info.training is not None
    assert vector.info.training["combiner"] == "pcgrad"


def weighing(gram: Tensor, first: float = 1.0) -> Tensor:
    return torch.tensor([first] + [0.0] * (len(gram) - 1))


def equal(gram: Tensor, *, lr: float = 0.0, parts: float = 1.0) -> Tensor:
    return torch.full((len(gram),), parts)


def test_parameters_of_a_combiner_stand_apart_in_provenance(evaluator: tv.Evaluator) -> None:
    training = tuned(evaluator, combiner={"combiner": equal, "lr": 2.0, "parts": 0.5}).info.training
    assert training is not None
    assert (training["combiner"], training["lr"]) == ("equal", RECIPE.lr)
    assert training["combiner_params"] == {"lr": 2.0, "parts": 0.5}


def test_a_function_of_the_gram_matrix_is_a_combiner(evaluator: tv.Evaluator) -> None:
    alone = tuned(evaluator, "pets")
    assert_close(dict(tuned(evaluator, combiner=weighing)), dict(alone), rtol=1e-4, atol=1e-6)
    double = tuned(evaluator, settings=PLAIN, combiner={"combiner": weighing, "first": 2.0})
    assert_close(dict(double), dict(2 * tuned(evaluator, "pets", settings=PLAIN)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("pcgrat", "no combiner called 'pcgrat'; did you mean 'pcgrad'?"),
        ("metta", "no combiner called 'metta'; did you mean 'meta'?"),
        ({"c": 0.4}, "expected a mapping with the key 'combiner'"),
        ({"combiner": None}, "combiner: None found, expected a name or a function"),
        ({"combiner": weighing, "fist": 1}, "got an unexpected keyword argument 'fist'"),
        ({"combiner": "mean", "c": 0.4}, "unknown parameter 'c'"),
        ({"combiner": "meta"}, "combiner 'meta': target is None, expected one of pets, taste, number"),
        ({"combiner": "meta", "target": "pet"}, "target: 'pet' is not trained; did you mean 'pets'?"),
        (
            {"combiner": "meta", "target": "pets", "rate": 0},
            "combiner 'meta': rate is 0, expected a positive",
        ),
        ({"combiner": "meta", "target": "pets", "step": 1}, "combiner 'meta': unknown parameter 'step'"),
        (3, "expected"),
    ],
)
def test_what_is_no_combiner_is_said_before_training(
    evaluator: tv.Evaluator, asked: Any, message: str
) -> None:
    with pytest.raises(InputError) as refused:
        tuned(evaluator, combiner=asked)
    assert message in str(refused.value)


def rows_of(*rows: Sequence[Sequence[float] | None]) -> list[list[Tensor | None]]:
    return [
        [None if leaf is None else torch.tensor(leaf, dtype=torch.float64) for leaf in row] for row in rows
    ]


def test_a_conflict_by_hand() -> None:
    rows = rows_of([[1.0, 0.0], None], [[-1.0, 1.0], [2.0]])
    gram = gram_of(rows)
    assert gram.tolist() == [[1.0, -1.0], [-1.0, 6.0]]
    # g1 + g2/6 and g2 + g1: each is orthogonal to the other's gradient.
    weights = combiner_called("pcgrad").chosen(gram)
    assert_close(weights, torch.tensor([2.0, 7 / 6], dtype=torch.float64))
    found = weighted(rows, weights.tolist())
    assert_close(found[0], torch.tensor([5 / 6, 7 / 6], dtype=torch.float64))
    assert_close(found[1], torch.tensor([7 / 3], dtype=torch.float64))
    facts = facts_of(gram, weights, ["a", "b"])
    assert facts["conflict_rate"] == 1 and facts["cosine/a/b"] == pytest.approx(-1 / 6**0.5)


@pytest.mark.parametrize("shapes", [[(3,)], [(), (2, 5), (0,)], [(300, 400), (7,)]])
def test_products_of_gradients_are_exact(shapes: list[tuple[int, ...]]) -> None:
    draw = torch.Generator().manual_seed(0)
    rows: list[list[Tensor | None]] = [
        [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes] for _ in range(4)
    ]
    flat = torch.stack([torch.cat([leaf.flatten() for leaf in row if leaf is not None]) for row in rows])
    assert_close(gram_of(rows), flat @ flat.T, rtol=1e-12, atol=1e-12)
    found = weighted(rows, [0.5, -1.0, 0.0, 2.0])
    exact = torch.tensor([0.5, -1.0, 0.0, 2.0], dtype=torch.float64) @ flat
    assert_close(torch.cat([leaf.flatten() for leaf in found if leaf is not None]), exact)


def test_groups_hold_every_leaf_once() -> None:
    leaves = [torch.zeros(count) for count in (10, 1, 1, 30, 2)]
    for room in (0.0, 100.0, 200.0, 1e9):
        groups = list(groups_of(leaves, 3, room))
        assert [place for group in groups for place in group] == list(range(5))
        assert all(len(group) == 1 or 12 * sum(leaves[i].numel() for i in group) <= room for group in groups)


class Quadratic:
    """Losses ``(w - c_t)^T S_t (w - c_t) / 2`` of some tasks, and one more of the first."""

    def __init__(self, tasks: int) -> None:
        draw = torch.Generator().manual_seed(3)
        sides = torch.randn(tasks + 1, 4, 4, generator=draw, dtype=torch.float64)
        self.curvatures = sides @ sides.mT
        self.centers = torch.randn(tasks + 1, 4, generator=draw, dtype=torch.float64)
        self.at = torch.randn(4, generator=draw, dtype=torch.float64)

    def loss(self, task: int, at: Tensor) -> Tensor:
        off = at - self.centers[task]
        return off @ self.curvatures[task] @ off / 2

    def add(self, leaves: Mapping[str, Tensor]) -> Callable[..., list[Tensor]]:
        def adds(task: int, factor: float = 1.0, only: Any = None) -> list[Tensor]:
            loss = self.loss(task, leaves["w"])
            torch.autograd.backward(factor * loss, inputs=only)
            return [loss.detach()]

        return adds


@pytest.mark.parametrize("rate", [None, 0.05])
def test_the_meta_gradient_is_that_of_finite_differences(rate: float | None) -> None:
    problem, tasks, lr = Quadratic(3), ["a", "b", "c"], 0.02
    eta = rate or lr
    leaves = {"w": problem.at.clone().requires_grad_()}
    seen: list[Tensor] = []

    class Spy(Meta):
        def chosen(self, gram: Tensor, seed: int = 0) -> Tensor:
            seen.append(gram)
            return super().chosen(gram, seed)

    joint = Joint(Spy(0, rate), tasks, 0, 1e9)
    joint.add(leaves, problem.add(leaves), 0, lr=lr)
    assert torch.equal(leaves["w"].detach(), problem.at)  # the step ahead is taken back
    slopes = torch.func.jacrev(lambda w: torch.stack([problem.loss(t, w) for t in range(3)]))(problem.at)

    def ahead(weights: Tensor) -> Tensor:
        return problem.loss(3, problem.at - eta * weights @ slopes)

    equal = torch.full((3,), 1 / 3, dtype=torch.float64)
    for task in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[task] = 1e-5
        difference = (ahead(equal + step) - ahead(equal - step)) / 2e-5
        assert_close(-eta * seen[0][-1, task], difference, rtol=1e-8, atol=1e-10)
    helpful = seen[0][-1, 1:3].clamp(min=0)
    expected = torch.cat([torch.ones(1), helpful / helpful.sum() if helpful.any() else helpful])
    assert leaves["w"].grad is not None
    assert_close(leaves["w"].grad, expected.double() @ slopes)


@pytest.mark.parametrize(
    ("ahead", "weights"),
    [
        ([1.0, 3.0, 1.0], [1.0, 0.75, 0.25]),
        ([1.0, -3.0, 2.0], [1.0, 0.0, 1.0]),
        ([1.0, -3.0, 0.0], [1.0, 0.0, 0.0]),
    ],
)
def test_auxiliary_tasks_that_harm_get_nothing(ahead: list[float], weights: list[float]) -> None:
    gram = torch.eye(4, dtype=torch.float64)
    gram[-1, :-1] = gram[:-1, -1] = torch.tensor(ahead, dtype=torch.float64)
    assert Meta(0).chosen(gram).tolist() == weights


def test_tasks_in_parameters_go_by_name() -> None:
    assert combiner_for({"combiner": "meta", "target": "taste"}, TASKS) == Meta(1)
    found = combiner_for({"combiner": "cosine", "target": "taste"}, TASKS)
    assert isinstance(found, Combiner) and found.params == {"target": 1}
    by_name = {"number": 3.0, "pets": 1.0, "taste": 2.0}
    found = combiner_for({"combiner": "wpcgrad", "priorities": by_name}, TASKS)
    assert isinstance(found, Combiner) and found.params == {"priorities": [1.0, 2.0, 3.0]}
    with pytest.raises(InputError, match="priorities: of pets; expected pets, taste, number"):
        combiner_for({"combiner": "wpcgrad", "priorities": {"pets": 1.0}}, TASKS)
    with pytest.raises(InputError, match="priorities"):
        combiner_for({"combiner": "wpcgrad", "priorities": [1.0, 2.0]}, TASKS)
    with pytest.raises(UnknownName):
        combiner_for({"combiner": "no"}, TASKS)
