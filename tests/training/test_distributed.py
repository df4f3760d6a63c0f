"""One training in several processes: what it learns is what one process learns, whatever the regime."""

import json
from pathlib import Path

import pytest
import torch

import shared_trainings
import taskvec as tv
from effort import EFFORT
from launching import launch
from shared_trainings import TRAININGS, opened
from taskvec.group import Group
from taskvec.training.stream import Chunk, collate

FEW = ("full", "uneven", "tangent")
SOME = (*FEW, "attention", "lora", "gated", "alone", "penalties", "pcgrad, penalties", "atm, tangent")
MOST = SOME if EFFORT == 1 else tuple(TRAININGS)


@pytest.fixture(scope="module")
def double(tiny_model: Path, tiny_suite: Path) -> tv.Evaluator:
    return opened(tiny_suite, tiny_model)


def check(double: tv.Evaluator, found: Path, names: tuple[str, ...]) -> None:
    """Vectors that were trained elsewhere are those of one process; and figures are the same numbers."""
    for name in names:
        alone, shared = TRAININGS[name](double), torch.load(found / f"{name}.pt")
        assert alone.keys() == shared.keys(), name
        a, b = (torch.cat([of[key].flatten() for key in alone]).double() for of in (alone, shared))
        assert float((a - b).norm()) <= 1e-9 * float(a.norm()), name
    scores = double.scores(double.pretrained, double.tasks, "test")
    plain = json.loads(json.dumps({name: score.record() for name, score in scores.items()}))
    assert json.loads((found / "scores.json").read_text()) == plain


@pytest.mark.parametrize(("processes", "names"), [(2, MOST), (4, FEW)])
def test_processes_together_learn_what_one_learns(
    double: tv.Evaluator,
    tiny_suite: Path,
    tiny_model: Path,
    tmp_path: Path,
    processes: int,
    names: tuple[str, ...],
) -> None:
    ended = launch([shared_trainings.__file__, tmp_path, tiny_suite, tiny_model, *names], processes)
    assert ended.returncode == 0, ended.stderr
    check(double, tmp_path, names)


@pytest.mark.parametrize(("size", "accumulation", "examples"), [(2, 1, 5), (4, 3, 16), (4, 2, 3), (3, 1, 1)])
def test_processes_see_each_example_of_a_batch_once(
    evaluator: tv.Evaluator, size: int, accumulation: int, examples: int
) -> None:
    part, places = evaluator.part("pets"), torch.randperm(96)[:examples]
    prepared = [part.objective.prepare(evaluator.backbone, part.split)]
    steps = [
        collate(prepared, accumulation, torch.device("cpu"), Group(rank, size), Chunk(0, places))
        for rank in range(size)
    ]
    seen = [place for step in steps for micro in step.micros for place in micro.index.tolist()]
    assert sorted(seen) == sorted(places.tolist())
    assert {step.rows for step in steps} == {examples}
    assert max(len(step.micros) for step in steps) <= accumulation
