"""Watching a training: every figure arrives once, and no log can harm what it looks at."""

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import taskvec as tv
from taskvec.errors import MissingExtra, OutputExists, UnknownName
from taskvec.training import checkpoint
from taskvec.training.logs import JsonLines, check_log, recording
from taskvec.training.trackers import tracker

RECIPE = tv.TrainSettings(lr=3e-3, steps=6, batch_size=16, weight_decay=0.01, validations=2)
Steps = list[tuple[int, dict[str, float]]]


def tuned(evaluator: tv.Evaluator, **options: Any) -> tv.TaskVector:
    settings = options.pop("settings", RECIPE)
    return tv.finetune(evaluator.backbone, evaluator.part("pets"), settings=settings, **options)


def collected(steps: Steps) -> Any:
    return lambda step, values: steps.append((step, dict(values)))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_function_gets_every_step_once_with_its_figures(evaluator: tv.Evaluator) -> None:
    steps: Steps = []
    tuned(evaluator, log=collected(steps), validate=lambda vector: {"validation": vector.norm()})
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6]
    for _, values in steps:
        assert values["examples_per_second"] > 0 and values["tokens_per_second"] > 0
        assert values["loss"] > 0 and values["gradient_norm"] > 0
    assert [step for step, values in steps if "validation" in values] == [3, 6]
    assert max(values["lr"] for _, values in steps) == RECIPE.lr


@pytest.mark.parametrize("regime", ["full", "tangent"])
def test_the_norm_of_the_gradient_is_that_before_clipping(evaluator: tv.Evaluator, regime: str) -> None:
    """A full-batch step of plain SGD moves by lr times the clipped gradient."""
    recipe = {"optimizer": "sgd", "steps": 1, "batch_size": 96, "warmup": 0, "lr": 1e-2, "weight_decay": 0}
    norms = {}
    for clip in (0.0, 1e-3, 1e3):
        steps: Steps = []
        settings = RECIPE.model_copy(update={**recipe, "clip": clip or None})
        vector = tuned(evaluator, settings=settings, log=collected(steps), regime=regime)
        norms[clip] = steps[0][1]["gradient_norm"]
        moved = vector.norm() / 1e-2
        assert moved == pytest.approx(min(norms[clip], clip or norms[clip]), rel=1e-3)
    assert norms[0.0] == pytest.approx(norms[1e-3], rel=1e-5) == pytest.approx(norms[1e3], rel=1e-5)


def test_looking_changes_no_bit(evaluator: tv.Evaluator) -> None:
    for clip in (None, 1.0):
        settings = RECIPE.model_copy(update={"clip": clip})
        blind, seen = (
            tuned(evaluator, settings=settings),
            tuned(evaluator, settings=settings, log=collected([])),
        )
        assert all(torch.equal(blind[name], seen[name]) for name in blind)


def test_a_log_that_raises_is_said_once_and_does_not_end_the_training(
    evaluator: tv.Evaluator, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def log(step: int, values: Mapping[str, float]) -> None:
        calls.append(step)
        if step == 2:
            raise OSError("no room")

    with caplog.at_level(logging.WARNING, "taskvec"):
        tuned(evaluator, log=log)
    assert calls == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "logging failed at step 2 (OSError: no room); training goes on without it"
    ]


def test_the_rounds_of_atm_are_one_series(evaluator: tv.Evaluator) -> None:
    steps: Steps = []
    parts = [evaluator.part(task) for task in ("pets", "taste")]
    tv.atm(evaluator.backbone, parts, rounds=2, settings=RECIPE, log=collected(steps))
    assert [step for step, _ in steps] == list(range(1, 13))


class Killed(BaseException):
    """Stands for a signal: nothing in between catches it."""


def test_a_resumed_training_appends_and_has_no_step_twice(
    evaluator: tv.Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, state = tmp_path / "logs" / "pets.jsonl", tmp_path / "state.pt"
    monkeypatch.setattr(checkpoint.Checkpoint, "every", 0.0)

    def kill(label: str, done: int, total: int, **facts: float) -> None:
        if done == 4:
            monkeypatch.setattr(checkpoint.Checkpoint, "every", 1e9)
        if done == 6:
            raise Killed

    with pytest.raises(Killed), recording(path, folder=tmp_path) as log:
        tuned(evaluator, checkpoint=state, watch=kill, log=log)
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4, 5]
    with path.open("ab") as file:
        file.write(b'{"step": 6, "lo')  # the line that a kill cut short
    with recording(path, folder=tmp_path) as log:
        tuned(evaluator, checkpoint=state, log=log)
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4, 5, 6]
    with recording(path, folder=tmp_path) as log:
        tuned(evaluator, log=log)
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("before", ["", "notes\n", "[1]\n", '{"step": "x"}\n', '{"loss": 1}\n', "[" * 5000])
def test_what_is_no_line_of_a_log_goes(before: str, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(before + '{"step": 1, "loss": 1.0}\n')
    log = JsonLines(path)
    log(2, {"loss": float("nan"), "lr": 0.5})
    log.close()
    *kept, last = lines(path)
    assert [line["step"] for line in kept] == ([1] if before.endswith("\n") or not before else [])
    assert last == {"step": 2, "loss": None, "lr": 0.5}


def test_a_file_that_cannot_be_a_log_is_refused(tmp_path: Path) -> None:
    output, old = tmp_path / "out.safetensors", tmp_path / "old.jsonl"
    old.touch()
    (tmp_path / "link").symlink_to(old)
    for path, complaint in {
        output: "is the output",
        tmp_path: "is a folder",
        tmp_path / "link": "is a link",
        old: "exists already",
    }.items():
        with pytest.raises(OutputExists, match=complaint):
            check_log(path, output, keep=False)
    check_log(old, output, keep=True)


class Tracked(ModuleType):
    """The interface of wandb and trackio, as far as it is used."""

    def __init__(self, name: str, fail: str = "") -> None:
        super().__init__(name)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fail = fail

    def _call(self, method: str, **given: Any) -> None:
        self.calls.append((method, given))
        print(f"{method} prints")  # noqa: T201
        if method == self.fail:
            raise RuntimeError("the network is down")

    def init(self, **given: Any) -> None:
        self._call("init", **given)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.calls.append(("log", {"step": step, **values}))
        if self.fail == "log":
            raise RuntimeError("the network is down")

    def finish(self) -> None:
        self._call("finish")


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
@pytest.mark.parametrize("fail", ["", "init", "log", "finish"])
def test_a_tracker_is_opened_fed_and_closed_whatever_fails(
    kind: str,
    fail: str,
    evaluator: tv.Evaluator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = Tracked(kind, fail)
    monkeypatch.setitem(sys.modules, kind, module)
    path = tmp_path / "log.jsonl"
    with (
        caplog.at_level(logging.WARNING, "taskvec"),
        recording(path, [kind], folder=tmp_path, name="pets", config={"lr": 1}) as log,
    ):
        tuned(evaluator, log=log)
    assert module.calls[0] == ("init", {"project": "taskvec", "name": "pets", "config": {"lr": 1}})
    steps = [given["step"] for method, given in module.calls if method == "log"]
    assert steps == {"": [1, 2, 3, 4, 5, 6], "finish": [1, 2, 3, 4, 5, 6], "log": [1], "init": []}[fail]
    assert (module.calls[-1][0] == "finish") == (fail != "init")
    assert capsys.readouterr().out == ""
    assert len(lines(path)) == 6
    assert len(caplog.records) == bool(fail)


def test_a_tracker_that_is_not_there_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match="wandb is not installed, needed to log to it; pip install wandb"):
        tracker("wandb")
    with pytest.raises(UnknownName, match="no tracker called 'wandbb'; did you mean 'wandb'"):
        tracker("wandbb")


class Writer:
    """The interface of TensorBoard's writer, as far as it is used."""

    made: "list[Writer]"

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.points, self.closed = folder, purge_step, list[Any](), False
        self.made.append(self)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.points.append((tag, value, step))

    def close(self) -> None:
        self.closed = True


def test_tensorboard_gets_event_files_beside_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = ModuleType("torch.utils.tensorboard")
    Writer.made, module.SummaryWriter = [], Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with recording(None, ["tensorboard"], folder=tmp_path, name="seed0/pets") as log:
        assert log is not None
        log(7, {"loss": 0.5})
        log(8, {"loss": 0.25, "lr": 1.0})
    [writer] = Writer.made
    assert (writer.folder, writer.purge_step) == (str(tmp_path / "tensorboard/seed0/pets"), 7)
    assert writer.points == [("loss", 0.5, 7), ("loss", 0.25, 8), ("lr", 1.0, 8)] and writer.closed


def test_without_a_file_and_trackers_there_is_no_log(tmp_path: Path) -> None:
    with recording(None, folder=tmp_path) as log:
        assert log is None
