"""Rounds after the fact: on validation labels, a share of which says when to stop."""

import pytest
import torch

import taskvec as tv
from taskvec.errors import InputError
from taskvec.evaluation.refining import _parted

RECIPE = tv.TrainSettings(lr=3e-3, steps=4, batch_size=16, validations=0)
TASKS = ["pets", "taste", "number"]


@pytest.fixture(scope="module")
def start(evaluator: tv.Evaluator) -> tv.TaskVector:
    """A merge of single-task vectors that were hardly trained."""
    parts = [evaluator.part(task) for task in TASKS]
    few = RECIPE.model_copy(update={"steps": 2})
    return 0.4 * tv.combine("sum", [tv.finetune(evaluator.backbone, p, settings=few) for p in parts])


def test_no_rounds_give_back_the_start_and_use_no_label(
    evaluator: tv.Evaluator, start: tv.TaskVector
) -> None:
    found = tv.refine(evaluator, start, TASKS, rounds=0)
    assert found.vector is start and (found.rounds, found.labels, found.bytes) == (0, 0, 0)


@pytest.mark.parametrize("jointly", [False, True])
def test_rounds_are_taken_where_they_help_on_the_examples_kept_apart(
    evaluator: tv.Evaluator, start: tv.TaskVector, jointly: bool
) -> None:
    found = tv.refine(evaluator, start, TASKS, rounds=2, settings=RECIPE, scales=(1.0, 1.5), jointly=jointly)
    assert found.labels == 3 * 48 and found.kept == 3 * 10
    assert [(scale, turn) for scale, turn, _ in found.trace] == [
        (1.0, 0),
        (1.0, 1),
        (1.0, 2),
        *([] if jointly else [(1.5, 1), (1.5, 2)]),
    ]
    assert found.value == max(value for *_, value in found.trace)
    assert found.rounds == next(turn for _, turn, value in found.trace if value == found.value)
    point = evaluator.points({"v": found.vector}).at({"v": 1.0})
    before = evaluator.points({"v": start}).at({"v": 1.0})
    of = {name: evaluator.values(at, TASKS, "test") for name, at in (("after", point), ("before", before))}
    assert sum(of["after"].values()) >= sum(of["before"].values()) - 0.1
    if found.rounds and not jointly:
        size = 4 * sum(value.numel() for value in evaluator.pretrained.values())
        assert found.bytes == found.rounds * 3 * 2 * size


def test_a_rate_that_ruins_the_model_leaves_the_start(evaluator: tv.Evaluator, start: tv.TaskVector) -> None:
    best = 1.0 * tv.combine(
        "mean", [tv.finetune(evaluator.backbone, [evaluator.part(t) for t in TASKS], settings=RECIPE)]
    )
    wild = tv.TrainSettings(lr=1.0, steps=2, batch_size=16, clip=0)
    found = tv.refine(evaluator, best, TASKS, rounds=2, settings=wild)
    assert found.rounds == 0 or found.value > found.trace[0][2]


@pytest.mark.parametrize(("regime", "space"), [("attention", "ordinary"), ("tangent-attention", "tangent")])
def test_any_regime_that_trains_what_the_start_moves(
    evaluator: tv.Evaluator, start: tv.TaskVector, regime: str, space: str
) -> None:
    part = evaluator.part("pets")
    begun = tv.finetune(evaluator.backbone, part, settings=RECIPE, regime=regime)
    for jointly in (False, True):
        found = tv.refine(evaluator, begun, TASKS, rounds=1, settings=RECIPE, regime=regime, jointly=jointly)
        assert found.rounds == 0 or found.vector.info.space == space
    with pytest.raises(InputError, match=r"start: moves '.*', which regime 'attention' does not train"):
        tv.refine(evaluator, start, TASKS, rounds=1, settings=RECIPE, regime="attention")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.01])
def test_every_class_is_parted_alike(evaluator: tv.Evaluator, share: float) -> None:
    tuned, kept = _parted(evaluator, "pets", share, seed=3)
    whole = evaluator.split("pets", "validation")
    assert sorted([*tuned.inputs, *kept.inputs]) == sorted(whole.inputs)
    counts = torch.bincount(kept.labels, minlength=2)
    assert len(kept) == max(1, round(share * 48)) and int(counts.max() - counts.min()) <= 1
    again, _ = _parted(evaluator, "pets", share, seed=3)
    other, _ = _parted(evaluator, "pets", share, seed=4)
    assert again.inputs == tuned.inputs != other.inputs


def test_mistakes_are_said(evaluator: tv.Evaluator, start: tv.TaskVector) -> None:
    with pytest.raises(InputError, match="rounds: -1 is not a number of rounds"):
        tv.refine(evaluator, start, TASKS, rounds=-1)
    with pytest.raises(InputError, match="apart: 1, expected a share between 0 and 1"):
        tv.refine(evaluator, start, TASKS, rounds=1, apart=1.0)
    with pytest.raises(InputError, match="scales: none given, expected one or more"):
        tv.refine(evaluator, start, TASKS, rounds=1, scales=())
    with pytest.raises(InputError, match="tasks: none given"):
        tv.refine(evaluator, start, [], rounds=1)
    small = evaluator.limited(validation=1)
    with pytest.raises(InputError, match=r"pets: 1 validation examples.*raise limits\.validation"):
        tv.refine(small, start, TASKS, rounds=1)
