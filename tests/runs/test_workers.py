"""Results made by several processes are those of one, whatever becomes of the processes."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from taskvec.runs.events import Begun, Done, Event, Finished, Taken, Working, untold
from taskvec.runs.executors.executor import HERE, Executor
from taskvec.runs.executors.processes import processes
from taskvec.runs.experiment import load_experiment
from taskvec.runs.runner import Runner
from taskvec.studies.store import Store
from taskvec.studies.study import Results

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
