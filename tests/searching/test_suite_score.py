"""Candidates measured in memory: as they would be if they were written."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from searching.worlds import KINDS, World, make
from taskvec.edits.opening import save_merge
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.points import beside_encoder, values_of
from taskvec.models.loading import load_backbone
from taskvec.searching.resident import Residents
from taskvec.searching.suite_score import SuiteScore, halve
from taskvec.tasks.score import LOWER_IS_BETTER, utility
from taskvec.tasks.split import Split
from taskvec.tasks.suite import load_suite
from taskvec.tasks.task import outputs_for


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(request.param, tmp_path_factory.mktemp(request.param))


def score_of(world: World, **options: object) -> SuiteScore:
    suite = load_suite(world.suite)
    return SuiteScore(suite.name, list(suite.tasks.values()), Residents(), **options)  # type: ignore[arg-type]


def written(world: World, folder: Path, expression: str) -> tuple[Evaluator, Mapping[str, torch.Tensor]]:
    """The model as a user has it who writes it, with the heads of the base."""
    tasks = list(load_suite(world.suite).tasks.values())
    backbone = load_backbone(world.base, outputs_for(tasks))
    edited = load_backbone(save_merge(world.merge(expression), folder), outputs_for(tasks))
    return Evaluator(backbone, tasks), {**edited.head_parameters(), **values_of(edited, backbone)}


def test_a_candidate_in_memory_is_the_one_that_would_be_written(world: World, tmp_path: Path) -> None:
    score = score_of(world)
    for number, expression in enumerate(["a", "0.4*a - 0.2*b", "0.9*b"]):  # one after the other, in one model
        evaluator, point = written(world, tmp_path / str(number), expression)
        halves = {}
        for name, task in evaluator.tasks.items():
            examples = evaluator.objective(name).examples(evaluator.backbone, task.split("validation"))
            halves[name] = halve(examples, name)
        for part in ("search", "holdout"):
            figures = score.evaluate(world.merge(expression), part, tmp_path / "unused")
            held = {name: getattr(half, part) for name, half in halves.items()}
            wanted = evaluator.on_examples("validation", held).values(point, halves, "validation")
            for name, value in wanted.items():
                assert figures[name] == pytest.approx(utility(evaluator.task(name).metric, value), rel=1e-6)
    assert not (tmp_path / "unused").exists()


def test_the_first_figure_is_the_mean_that_protocols_compare(world: World, tmp_path: Path) -> None:
    score = score_of(world)
    figures = score.evaluate(world.merge(), "search", tmp_path)
    first, tasks = next(iter(figures)), load_suite(world.suite).tasks
    assert first == "small" and set(tasks) <= set(figures)
    metrics = {task.metric for task in tasks.values()}
    assert metrics <= set(figures)
    utilities = [utility(task.metric, figures[name]) for name, task in tasks.items()]
    lower = score.lower_is_better("small")
    mean = 1 / figures["small"] if lower else figures["small"]
    assert mean == pytest.approx(sum(utilities) / len(utilities))
    assert lower == (metrics <= LOWER_IS_BETTER)
    for name, task in tasks.items():
        assert score.lower_is_better(name) == (task.metric in LOWER_IS_BETTER)


def test_tensors_are_those_of_the_written_model_whatever_came_before(world: World, tmp_path: Path) -> None:
    score = score_of(world)
    resident = Residents().backbone(score.outputs)
    before = {name: value.clone() for name, value in resident.base(world.merge(), tmp_path).tensors.items()}
    for number, expression in enumerate(["a", "0.4*a - 0.2*b", "0*a", "b"]):
        merge = world.merge(expression, exclude=["re:.*(1|proj).*"] if number == 3 else [])
        edited = load_backbone(save_merge(merge, tmp_path / str(number)), score.outputs)
        wanted = {**beside_encoder(edited), **edited.encoder_parameters()}
        held = resident.candidate(merge, tmp_path).tensors
        assert held.keys() == wanted.keys()
        assert all(torch.equal(held[name], wanted[name]) for name in held)
    after = resident.base(world.merge(), tmp_path).tensors
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_halves_share_the_classes_and_nothing_else(classes: int) -> None:
    labels = torch.randint(classes, (101,), generator=torch.Generator().manual_seed(classes))
    halves = halve(Split(list(range(101)), labels), "task")
    inputs = [set(half.inputs) for half in halves]
    assert inputs[0].isdisjoint(inputs[1]) and len(inputs[0] | inputs[1]) == 101
    counts = [torch.bincount(half.labels, minlength=classes) for half in halves]
    assert int((counts[0] - counts[1]).abs().max()) <= 1
    again = halve(Split(list(range(101)), labels), "task")
    assert again.search.inputs == halves.search.inputs


def test_a_single_example_cannot_be_halved() -> None:
    with pytest.raises(InputError, match=r"^one: 1 validation example, expected two or more"):
        halve(Split(["a"], torch.zeros(1)), "one")


def test_the_key_says_what_is_measured(tmp_path: Path) -> None:
    world = make("encoder", tmp_path)
    key = json.dumps(score_of(world).key)
    assert json.dumps(score_of(world).key) == key
    assert json.dumps(score_of(world, limit=8).key) != key
    rows = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows.replace("film", "dog"))
    assert json.dumps(score_of(world).key) != key
