"""Experiment and suite files with any value in any place: read, or refused in one line."""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

import taskvec
from effort import EFFORT
from taskvec.config import read_yaml
from taskvec.errors import InputError
from taskvec.runs.experiment import load_experiment
from taskvec.tasks.source import SPLITS
from taskvec.tasks.suite import load_suite

HOME = Path(taskvec.__file__).parent
VALUES: list[Any] = [
    *(None, True, 0, -1, 1, 2**63, 2**64 - 1, -(2**63), 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", " ", "a", "²", "..", "../x", "/", "~nosuchuser", "${NO_SUCH}", "${HOME}", "{task}", "x" * 300),
    *("\n", "a\x1bb", "-1", "1e999", "from-data", "builtin", "jsonl", "npz", "images", "hf", "é" * 90),
    *([], [[]], [None], ["a", "a"], [1, 2], {}, {"a": 1}, {"a": {"a": {}}}, {"": ""}, {"train": "a"}),
]


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with each of its keys."""
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], dict | list) and content[key]:
            yield from places(content[key])


def changed(sound: Any, draw: Random) -> str:
    content = json.loads(json.dumps(sound))
    for _ in range(draw.choice([1, 1, 3])):
        holder, key = draw.choice(list(places(content)) or [({"": 0}, "")])
        match draw.randrange(5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[draw.choice(["", "a", "name", "folder", "1", "x" * 300])] = holder.pop(key)
            case _:
                holder[key] = draw.choice(VALUES)
    return json.dumps(content).replace("Infinity", ".inf").replace("NaN", ".nan")


def check(error: InputError, path: Path) -> None:
    assert str(error).startswith((str(path), str(path.parent))) and "\n" not in str(error)


@pytest.mark.parametrize("name", ["builtin8", "text8", "vision8"])
def test_any_suite_is_read_or_refused_in_one_line(name: str, tmp_path: Path) -> None:
    sound = read_yaml(HOME / "tasks" / "suites" / f"{name}.yaml")
    path, draw = tmp_path / "s.yaml", Random(name)
    for _ in range(25 * EFFORT):
        path.write_text(changed(sound, draw))
        try:
            load_suite(path)
        except InputError as error:
            check(error, path)


def test_any_experiment_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    sound, path, draw = read_yaml(HOME / "runs" / "demo.yaml"), tmp_path / "e.yaml", Random(0)
    for _ in range(50 * EFFORT):
        path.write_text(changed(sound, draw))
        try:
            load_experiment(path)
        except InputError as error:
            assert "\n" not in str(error)


SOURCES = [
    {"source": "csv", "path": "d.csv"},
    {"source": "jsonl", "files": {"train": "d.jsonl", "test": "d.jsonl"}, "text2": "text"},
    {"source": "npz", "path": "d.npz", "splits": {"train": "train"}},
    {"source": "images", "path": ".", "splits": {"train": "train", "test": "test"}},
    {"source": "builtin", "scene": "gabor", "only": [0, 1], "seed": 1},
]


@pytest.mark.parametrize("data", SOURCES, ids=lambda data: str(data["source"]))
def test_any_options_of_data_are_taken_or_refused_in_one_line(data: dict[str, Any], tmp_path: Path) -> None:
    path, draw = tmp_path / "s.yaml", Random(str(data))
    (tmp_path / "d.csv").write_text("split,text,label\n" + "train,a,0\ntest,b,1\n" * 10)
    (tmp_path / "d.jsonl").write_text('{"text": "a", "label": 1}\n' * 10)
    (tmp_path / "d.npz").write_bytes(b"PK")
    sound = {
        "suite": "s",
        "tasks": {"t": {"classes": ["a", "b"], "data": data, "labels": {"0": "a", "1": "b"}}},
    }
    for _ in range(25 * EFFORT):
        path.write_text(changed(sound, draw))
        try:
            for found in load_suite(path).tasks.values():
                found.split(draw.choice(SPLITS))
        except InputError as error:
            assert str(error)
