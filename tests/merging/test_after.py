"""What is learned after a merge: surgery of its features, and a scale by depth."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import taskvec as tv
from taskvec.coefficients.lines import learn_lines
from taskvec.errors import InputError
from taskvec.merging import method_of
from taskvec.merging.method import Bench
from taskvec.merging.surgery import Mended
from taskvec.names import block_depths
from taskvec.training.checkpoint import Checkpoint

RECIPE = tv.TrainSettings(lr=2e-3, steps=10, batch_size=16, validations=0)
TASKS = ["pets", "taste"]
SHORT = {"steps": 60, "lr": 1e-2}


@pytest.fixture(scope="module")
def bench(evaluator: tv.Evaluator) -> Bench:
    vectors = {task: tv.finetune(evaluator.backbone, evaluator.part(task), settings=RECIPE) for task in TASKS}
    return Bench(evaluator, vectors)


@pytest.mark.parametrize("of", ["sum", "ties", "dare+ties", "tsv"])
def test_without_a_step_surgery_is_the_method_itself(bench: Bench, of: str) -> None:
    plain = method_of(of).make(bench)
    mended = method_of({"after": "surgery", "of": of, "steps": 0}).make(bench)
    for task in TASKS:
        for found, expected in zip(
            mended.tally(task, "test", 0.3).values(), plain.tally(task, "test", 0.3).values(), strict=True
        ):
            assert torch.equal(found, expected)


def test_a_single_task_at_full_strength_needs_no_surgery(bench: Bench) -> None:
    """The merge is the task's own model: the loss is 0 and stays so."""
    alone = Bench(bench.evaluator, {"pets": bench.vectors["pets"]})
    model = method_of({"after": "surgery", "of": "sum", **SHORT}).make(alone)
    plain = method_of("sum").make(alone)
    tallies = model.tally("pets", "test", 1.0), plain.tally("pets", "test", 1.0)
    assert torch.equal(tallies[0]["logits"], tallies[1]["logits"])
    assert model.facts() == {"surgery": {"pets": [0.0, 0.0]}}


def test_surgery_brings_features_nearer_to_those_of_the_tasks_own(bench: Bench) -> None:
    model = method_of({"after": "surgery", "of": "sum", **SHORT}).make(bench)
    values = {task: model.value(task, "test", 0.3) for task in TASKS}
    assert all(0 <= value <= 1 for value in values.values())
    gaps = model.facts()["surgery"]
    assert isinstance(gaps, dict) and all(after < before for before, after in gaps.values())
    assert model.coefficients == 2 * 16 * bench.evaluator.backbone.dim * len(TASKS)


def test_surgery_is_applied_to_the_features_that_a_head_reads(bench: Bench) -> None:
    model = method_of({"after": "surgery", "of": "sum", **SHORT}).make(bench)
    assert isinstance(model, Mended)
    tally = model.tally("pets", "test", 0.3)
    features, labels = bench.evaluator.features(model.point("pets", 0.3), "pets", "test")
    surgery = model.fitted("pets", 0.3).surgery
    by_hand = features - (features @ surgery.down.T).clamp(min=0) @ surgery.up.T
    assert_close(tally["logits"], bench.evaluator.head("pets")(by_hand))
    assert torch.equal(tally["labels"], labels)


@pytest.mark.parametrize("name", ["tsv+surgery", "dare+ties+surgery", "adamerging+surgery"])
def test_a_name_says_it_too(name: str) -> None:
    method = method_of(name)
    assert method.name == name
    of = name.removesuffix("+surgery")
    assert method.settings() == method_of({"after": "surgery", "of": of}).settings()
    assert method.coefficient == method_of(of).coefficient


def test_what_it_consumes_is_said(bench: Bench) -> None:
    assert method_of("tsv+surgery").consumes("validation") == ("unlabelled validation inputs", "task id")
    assert method_of("tsv+surgery").consumes("test") == ("unlabelled test inputs", "task id")
    supervised = method_of({"after": "surgery", "of": "supervised"})
    assert supervised.consumes("validation") == (
        "unlabelled validation inputs",
        "validation labels",
        "task id",
    )


def test_surgery_after_learned_coefficients_counts_both(bench: Bench) -> None:
    entry = {"after": "surgery", "of": {"rule": "adamerging", "steps": 2}, "rank": 3, "steps": 5}
    model = method_of(entry).make(bench)
    assert model.coefficients == len(TASKS) + 2 * 3 * bench.evaluator.backbone.dim * len(TASKS)
    assert 0 <= model.value("pets", "test", 1.0) <= 1
    assert {"coefficients", "surgery"} <= model.facts().keys()


def test_surgery_in_tangent_space(bench: Bench) -> None:
    tangent = Bench(bench.evaluator, bench.vectors, "tangent")
    model = method_of({"after": "surgery", "of": "sum", **SHORT}).make(tangent)
    assert 0 <= model.value("taste", "test", 0.5) <= 1


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"tsv\+surgery: unknown key 'ranks'; did you mean 'rank'"):
        method_of({"rule": "tsv+surgery", "ranks": 3})
    with pytest.raises(InputError, match=r"'surgery' comes after a method, expected METHOD\+surgery"):
        method_of("surgery")
    with pytest.raises(InputError, match="expected a name, or 'rule'"):
        method_of({"after": "nothing", "of": "sum"})


def test_lines_begin_as_the_merge(bench: Bench) -> None:
    merged = tv.combine("ties", list(bench.vectors.values()))
    settings = tv.CoefficientSettings(start=0.7, steps=0)
    found = learn_lines(bench.evaluator, merged, TASKS, settings)
    assert (found.alpha, found.beta) == (0.7, 0.0)
    for name in merged:
        assert_close(found.vector[name], 0.7 * merged[name], rtol=1e-5, atol=1e-8)


def test_learned_lines_are_what_the_rule_does_with_the_same_numbers(bench: Bench) -> None:
    vectors = list(bench.vectors.values())
    settings = tv.CoefficientSettings(start=0.5, signal="labels", steps=8, lr=3e-2, box="projected")
    found = learn_lines(bench.evaluator, tv.combine("sum", vectors), TASKS, settings)
    assert found.beta != 0 and found.learned.count == 2
    if found.beta >= 0:
        by_rule = tv.combine("sum+lines", vectors, alpha=found.alpha, beta=found.beta)
        for name in by_rule:
            assert_close(found.vector[name], by_rule[name], rtol=1e-4, atol=1e-7)


def test_the_slope_has_the_gradient_of_finite_differences(bench: Bench) -> None:
    """A step of plain descent from the start is minus the slope of the objective in both numbers."""
    merged = tv.combine("sum", list(bench.vectors.values()))
    plain = {"signal": "labels", "optimizer": "sgd", "batch": 1000, "steps": 1, "lr": 1.0}
    settings = tv.CoefficientSettings.model_validate({**plain, "start": 0.5})
    found = learn_lines(bench.evaluator, merged, TASKS, settings)

    def objective(first: float, last: float) -> float:
        depths = block_depths(merged.keys())
        scales = {name: first + (last - first) * depths.get(name, 0.0) for name in merged}
        point = bench.evaluator.points({"m": merged.scaled(scales)}).at({"m": 1.0})
        total = 0.0
        for task in TASKS:
            logits, labels = bench.evaluator.logits(point, task, "validation")
            total += torch.nn.functional.cross_entropy(logits.double(), labels).item()
        return total

    step = 1e-2
    first = (objective(0.5 + step, 0.5) - objective(0.5 - step, 0.5)) / (2 * step)
    last = (objective(0.5, 0.5 + step) - objective(0.5, 0.5 - step)) / (2 * step)
    assert found.alpha == pytest.approx(0.5 - first, rel=2e-2, abs=1e-4)
    assert found.alpha + found.beta == pytest.approx(0.5 - last, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("of", ["sum", "tsv"])
def test_lines_as_a_method(bench: Bench, of: str) -> None:
    method = method_of({"after": "learned_lines", "of": of, "steps": 4})
    assert method.name == f"{of}+learned_lines (steps 4)" and method.coefficient is None
    assert method.consumes("validation") == ("unlabelled validation inputs",)
    model = method.make(bench)
    assert model.coefficients == 2 and "lines" in model.facts()
    assert 0 <= model.value("pets", "test", 1.0) <= 1


def test_methods_that_they_do_not_go_with_are_unfit(bench: Bench) -> None:
    for name, reason in {
        "library+surgery": "each input has a model of its own",
        "tall+learned_lines": "scales one vector, and tall makes none",
        "sum+surgery+learned_lines": "makes none",
        "sum+surgery+surgery": "mended already",
        "slerp+surgery": None,
        "sum+learned_lines": None,
    }.items():
        found = method_of(name).unfit(bench)
        assert (found is None) if reason is None else (found is not None and reason in found)


def test_killed_lines_go_on_to_the_same_numbers(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = method_of({"after": "learned_lines", "of": "sum", "steps": 5})
    whole, seen = method.make(bench).facts(), list[int]()
    monkeypatch.setattr(Checkpoint, "every", 0.0)

    def note(label: str, done: int, total: int, **facts: float) -> None:
        seen.append(done)
        if seen == [1, 2, 3]:
            raise KeyboardInterrupt

    kept = replace(bench, scratch=tmp_path, watch=note)
    with pytest.raises(KeyboardInterrupt):
        method.make(kept)
    assert method.make(kept).facts() == whole
    assert seen == [1, 2, 3, 4, 5] and not list(tmp_path.iterdir())


def test_lines_refuse_what_has_no_depth_and_other_settings(bench: Bench) -> None:
    name = next(name for name in bench.vectors["pets"] if "embeddings" in name)
    flat = tv.TaskVector.from_tensors({name: bench.vectors["pets"][name]}, bench.evaluator.backbone.source)
    with pytest.raises(InputError, match="lines: the merge changes no tensor in a numbered block"):
        learn_lines(bench.evaluator, flat, TASKS)
    with pytest.raises(InputError, match="lines: scope tensor, signal entropy; expected scope: task"):
        learn_lines(bench.evaluator, flat, TASKS, tv.CoefficientSettings(scope="tensor"))


def test_the_split_that_lines_name_tells_them_apart() -> None:
    named = [method_of({"after": "learned_lines", "of": "tsv", **of}) for of in ({}, {"split": "train"})]
    plain, other = (method.settings() for method in named)
    assert plain != other and other["split"] == "train"


@pytest.mark.parametrize("name", ["tsv+learned_lines", "ties+lines", "lines"])
def test_a_model_without_blocks_is_not_scaled_by_depth(name: str, bench: Bench) -> None:
    assert method_of(name).unfit(bench) is None
    network = torch.nn.Sequential(torch.nn.Linear(4, 3))
    model = tv.wrap(network, collate=torch.stack, example=torch.zeros(4))
    assert "no tensor of the model is in a numbered block" in str(
        method_of(name).unfit(Bench(tv.Evaluator(model, []), bench.vectors))
    )
