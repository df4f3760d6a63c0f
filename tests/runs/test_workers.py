"""Results made by several processes are those of one, whatever becomes of the processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from rich.console import Console

import taskvec as tv
from effort import EFFORT
from snippets import snippets
from taskvec.cli._live import Compact
from taskvec.errors import InputError, TaskvecError
from taskvec.runs.events import Begun, Done, Event, Finished, Left, Part, Step, Taken, Working, untold
from taskvec.runs.executors.executor import HERE, Executor
from taskvec.runs.executors.messages import Claim, Message, Put, Ready
from taskvec.runs.executors.processes import processes
from taskvec.runs.executors.spread import Spread
from taskvec.runs.experiment import load_experiment
from taskvec.runs.runner import Runner
from taskvec.studies.store import Store
from taskvec.studies.study import Results
from taskvec.studies.trial import Cell, Trial
from threaded_workers import Threads

EXPERIMENT = """
experiment: spread
model: {model}
suite: {suite}
seeds: [0, 1]
tasks: [pets, taste]
limits: {{train: 16, validation: 8, test: 8}}
training: {{lr: 2e-3, steps: 2, batch_size: 8, validations: 1}}
regimes: {{post-hoc: {{}}, full: {{}}}}
search: {{step: 0.5, coarse: 2, limit: 1}}
addition: {{subsets: pairs}}
joint: {{regimes: [full]}}
atm: {{rounds: [1, 2], regimes: [full]}}
negation: {{targets: [pets]}}
"""


def run(path: Path, folder: Path, executor: Executor = HERE, events: list[Event] | None = None) -> Results:
    store = Store(folder)
    with store.locked():
        return Runner(*load_experiment(path), store).run(
            untold if events is None else events.append, executor
        )


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def results(folder: Path) -> dict[str, Any]:
    """By key; each is there once."""
    found = records(folder)
    assert set(Counter(record["key"] for record in found).values()) <= {1}
    return {record["key"]: (record["cell"], untimed(record["result"])) for record in found}


def untimed(value: Any) -> Any:
    """A result without the seconds that some methods tell."""
    if isinstance(value, dict):
        return {key: untimed(inner) for key, inner in value.items() if key != "seconds"}
    return [untimed(inner) for inner in value] if isinstance(value, list) else value


def vectors(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("vectors/**/*.safetensors")
    }


@pytest.fixture(scope="module")
def experiment(tiny_model: Path, tiny_suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spread") / "spread.yaml"
    path.write_text(EXPERIMENT.format(model=tiny_model, suite=tiny_suite))
    return path


@pytest.fixture(scope="module")
def alone(experiment: Path) -> tuple[Path, list[Event], Results]:
    """The experiment in one process."""
    folder, events = experiment.with_name("alone"), list[Event]()
    return folder, events, run(experiment, folder, events=events)


@pytest.fixture(scope="module")
def spread(experiment: Path) -> tuple[Path, list[Event], Results]:
    """The experiment in two processes."""
    folder, events = experiment.with_name("two"), list[Event]()
    return folder, events, run(experiment, folder, processes(2), events)


def test_two_processes_make_the_records_and_vectors_of_one(
    alone: tuple[Path, list[Event], Results], spread: tuple[Path, list[Event], Results]
) -> None:
    assert results(spread[0]) == results(alone[0])
    assert vectors(spread[0]) == vectors(alone[0])
    assert spread[2].keys == alone[2].keys
    assert not (spread[0] / "partial").exists()


def test_the_python_of_the_page_runs(
    experiment: Path,
    spread: tuple[Path, list[Event], Results],
    evaluator: tv.Evaluator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for shown in snippets():
        if shown.page == "docs/scale.md" and shown.language == "python":
            exec(shown.text, names)
    before = records(spread[0])
    names["run"](experiment, spread[0])
    assert records(spread[0]) == before
    monkeypatch.setattr(tv, "finetune", partial(tv.finetune, settings=tv.TrainSettings(steps=1, lr=1e-3)))
    names["train"](evaluator.backbone, evaluator.part("pets"))
    assert tv.TaskVector.load("vector.safetensors").info.regime == "full"


def told(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    """What a run tells of its results, but for seconds."""
    return [
        (type(event), event.part, getattr(event, "label", ""), untimed(getattr(event, "result", None)))
        for event in events
        if isinstance(event, Working | Done | Finished)
    ]


def test_what_a_run_tells_of_its_results_is_the_same_and_in_the_same_order(
    alone: tuple[Path, list[Event], Results], spread: tuple[Path, list[Event], Results]
) -> None:
    assert isinstance(spread[1][0], Begun)
    assert told(spread[1]) == told(alone[1])
    assert {event.worker for event in spread[1] if isinstance(event, Taken)} == {"worker 1", "worker 2"}


def test_a_run_on_record_starts_no_process(
    experiment: Path, spread: tuple[Path, list[Event], Results]
) -> None:
    before, events = (spread[0] / "records.jsonl").read_bytes(), list[Event]()
    assert run(experiment, spread[0], processes(2), events).cells == spread[2].cells
    assert (spread[0] / "records.jsonl").read_bytes() == before
    assert not [event for event in events if isinstance(event, Taken)]


def test_more_processes_than_results_are_not_started(
    experiment: Path, alone: tuple[Path, list[Event], Results]
) -> None:
    folder, events = experiment.with_name("few"), list[Event]()
    folder.mkdir()
    kept = [
        line for line in (alone[0] / "records.jsonl").read_text().splitlines() if '"zero_shot"' not in line
    ]
    (folder / "records.jsonl").write_text("\n".join(kept) + "\n")
    (folder / "vectors").symlink_to(alone[0] / "vectors")
    Runner(*load_experiment(experiment), Store(folder)).run(events.append, processes(9))
    workers = {event.worker for event in events if isinstance(event, Taken)}
    assert 1 <= len(workers) <= 3
    assert results(folder) == results(alone[0])


def in_threads(path: Path, folder: Path, threads: Threads, count: int = 3) -> Results:
    return run(path, folder, Spread(threads, count))


def test_workers_die_at_any_moment_and_no_result_is_lost(
    experiment: Path,
    alone: tuple[Path, list[Event], Results],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for number in range(2 * EFFORT):
        moments = set(Random(number).sample(range(20, 400), 4))
        threads = Threads(lambda place, message, moments=moments: place in moments)  # type: ignore[misc]
        caplog.clear()
        found = in_threads(experiment, tmp_path / str(number), threads)
        assert results(tmp_path / str(number)).keys() == results(alone[0]).keys()
        assert vectors(tmp_path / str(number)).keys() == vectors(alone[0]).keys()
        assert found.keys == alone[2].keys
        notes = [record.getMessage() for record in caplog.records]
        lost = [note for note in notes if "was ended by SIGKILL; computed again, 1 of 3 times" in note]
        assert lost and "as the worker that was at it ended" in notes[-1]


def test_no_name_is_held_by_two_workers_and_no_cell_is_computed_twice(
    experiment: Path, alone: tuple[Path, list[Event], Results], tmp_path: Path
) -> None:
    put = Counter[str]()

    def listen(number: int, message: Message) -> bool:
        if isinstance(message, Put):
            put[message.record["key"]] += 1
        return False

    in_threads(experiment, tmp_path / "run", Threads(listen), 4)
    assert set(put.values()) == {1} and put.keys() == results(alone[0]).keys()


def test_a_job_whose_workers_always_die_ends_the_run_in_one_sentence(
    experiment: Path, tmp_path: Path
) -> None:
    def dies(number: int, message: Message) -> bool:
        return isinstance(message, Put) and message.record["cell"] == "addition"

    threads = Threads(dies)
    with pytest.raises(TaskvecError) as raised:
        in_threads(experiment, tmp_path / "run", threads, 2)
    message = str(raised.value)
    assert "addition: " in message and "seed 0: its worker was ended by SIGKILL, as 3 others did" in message
    assert "\n" not in message
    assert {cell for cell, _ in results(tmp_path / "run").values()} >= {"zero_shot", "vector"}


def test_workers_that_die_before_they_begin_end_the_run(experiment: Path, tmp_path: Path) -> None:
    threads = Threads(lambda number, message: isinstance(message, Ready))
    with pytest.raises(TaskvecError, match="was ended by SIGKILL before it began with anything"):
        in_threads(experiment, tmp_path / "run", threads, 2)
    assert threads.started < 8


def test_who_waits_for_a_name_whose_holder_dies_goes_on(
    experiment: Path, alone: tuple[Path, list[Event], Results], tmp_path: Path
) -> None:
    held = Counter[str]()

    def dies(number: int, message: Message) -> bool:
        if isinstance(message, Claim):
            held[message.name] += 1
            return held[message.name] == 2 and len(held) % 5 == 0
        return False

    in_threads(experiment, tmp_path / "run", Threads(dies), 4)
    assert results(tmp_path / "run").keys() == results(alone[0]).keys()


SAID = "a sentence that names what is wrong"


def fail(error: TaskvecError, trial: Trial) -> Any:
    raise error


@pytest.mark.parametrize("count", [1, 3])
def test_a_cell_that_fails_ends_the_run_as_in_one_process_and_what_is_done_stays(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    stored = Trial.stored

    def failing(trial: Trial, cell: Cell[Any]) -> Any:
        if cell.kind.cell == "joint":
            return stored(trial, replace(cell, compute=partial(fail, InputError(SAID))))
        return stored(trial, cell)

    monkeypatch.setattr(Trial, "stored", failing)
    with pytest.raises(InputError, match=SAID):
        in_threads(experiment, tmp_path / "run", Threads(), count)
    assert {"zero_shot", "vector", "single"} <= {cell for cell, _ in results(tmp_path / "run").values()}


def test_a_cell_that_others_do_not_need_fails_as_in_one_process(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = Trial.stored

    def failing(trial: Trial, cell: Cell[Any]) -> Any:
        if cell.instead is not None and trial.seed == 1:
            return stored(trial, replace(cell, compute=partial(fail, TaskvecError(f"{cell.label}: {SAID}"))))
        return stored(trial, cell)

    monkeypatch.setattr(Trial, "stored", failing)
    path = tmp_path / "methods.yaml"
    text = experiment.read_text()
    path.write_text(
        text[: text.index("joint")] + "methods: {rules: [ties], coefficient: default, regimes: [full]}"
    )
    one, several = (
        run(path, tmp_path / name, executor)
        for name, executor in (("one", HERE), ("several", Spread(Threads(), 3)))
    )
    assert several.failed == one.failed and one.failed
    assert several.keys == one.keys


def test_a_display_says_what_each_worker_is_at() -> None:
    full, zero = Part("training", "full", 0, ("pets", "taste")), Part("zero_shot", cells=("pets",))
    shown = Compact(Console(file=StringIO(), width=100))
    for event in (
        Begun("spread", [zero, full]),
        Taken("worker 1", full, "pets", 1),
        Taken("worker 2", full, "taste", 0),
        Step("worker 1", "training pets", 3, 9, {"loss": 0.5}),
    ):
        shown(event)
    assert shown.at_work() == "2 running, 1 done, 0 waiting"
    first, second = shown.workers()
    assert first.startswith("worker 1: ") and ", full: pets" in first
    assert first.endswith("training pets: 3/9 loss 0.5")
    assert ", full: taste" in second
    shown(Left("worker 1"))
    shown(Taken("worker 2", None, "", 0))
    assert shown.workers() == []


def command(experiment: Path, folder: Path, *more: object) -> list[str]:
    given = map(str, ("run", experiment, "-o", folder, "--workers", 2, *more))
    return [sys.executable, "-m", "taskvec", *given]


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""As many as the tests compute with in this process: results depend on it."""


def begun(experiment: Path, folder: Path) -> "subprocess.Popen[str]":
    """A run of two processes that has begun to write records."""
    process = subprocess.Popen(
        command(experiment, folder, "--quiet"),
        env=ONE_THREAD,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (folder / "records.jsonl").exists() and len(records(folder)) >= 1)
    return process


def wait_for(condition: Any, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def children(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return list(map(int, path.read_text().split())) if path.exists() else []


def gone(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_run_survives_a_killed_worker_and_a_killed_driver(
    experiment: Path, alone: tuple[Path, list[Event], Results], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    driver = begun(experiment, folder)
    workers = children(driver.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    wait_for(lambda: workers[0] not in (now := children(driver.pid)) and len(now) == 2)
    workers = children(driver.pid)
    driver.kill()
    assert driver.stderr is not None
    wait_for(lambda: all(map(gone, workers)), 60)
    assert "was ended by SIGKILL; computed again" in driver.communicate()[1]
    again = command(experiment, folder, "--quiet")
    done = subprocess.run(again, env=ONE_THREAD, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert results(folder) == results(alone[0])
    assert vectors(folder) == vectors(alone[0])


def test_an_interrupted_run_ends_in_one_line_with_all_its_processes(experiment: Path, tmp_path: Path) -> None:
    driver = begun(experiment, tmp_path / "run")
    workers = children(driver.pid)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=120)
    assert driver.returncode == 130 and said.count("\n") == 1
    assert all(map(gone, workers))
