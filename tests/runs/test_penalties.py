"""Penalties in experiments and on the command line: where other tasks come from, and what keys say."""

import json
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from taskvec.cli import main

EXPERIMENT = """
experiment: tiny
model: {model}
suite: {suite}
tasks: [pets, taste, number]
training: {{lr: 2e-3, steps: 3, batch_size: 16}}
regimes:
  full: {{}}
  short: {{select: full, penalty: decay}}
  apart: {{select: full, space: tangent, penalty: [{{kind: tau_jp, strength: 2}}, decay]}}
search: {{step: 0.5, coarse: 2, limit: 1.0}}
"""


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, words), "--quiet"])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture
def experiment(tiny_model: Path, tiny_suite: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(EXPERIMENT.format(model=tiny_model, suite=tiny_suite))
    return path


def vectors_of(folder: Path, regime: str) -> dict[str, Any]:
    paths = sorted((folder / "vectors" / "seed0" / regime).glob("*.safetensors"))
    return {path.name.partition("-")[0]: tv.TaskVector.load(path).info.training or {} for path in paths}


def test_in_an_experiment_the_other_tasks_are_what_a_penalty_reads(experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert command("run", experiment, "-o", folder) == 0
    for name, training in vectors_of(folder, "apart").items():
        assert set(training["references"]) == {"pets", "taste", "number"} - {name}
        assert [penalty["kind"] for penalty in training["penalty"]] == ["tau_jp", "decay"]
    for training in vectors_of(folder, "short").values():
        assert "references" not in training
    cells = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    told = {cell["inputs"].get("regime"): cell["inputs"] for cell in cells if cell["cell"] == "vector"}
    assert "references" not in told["short"] and len(told["apart"]["references"]) == 2
    assert "penalty" not in told["full"]["settings"] and told["short"]["settings"]["penalty"]


def test_other_tasks_decide_a_result_only_where_a_penalty_reads_them(
    experiment: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert command("run", experiment, "-o", folder) == 0
    before = set(folder.glob("vectors/*/*/*"))
    experiment.write_text(experiment.read_text().replace("[pets, taste, number]", "[pets, taste]"))
    assert command("run", experiment, "-o", folder) == 0
    again = {path.parent.name for path in set(folder.glob("vectors/*/*/*")) - before}
    assert again == {"apart"}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("kind: tau_jp", "kind: tau-jp"), "penalty: no penalty called 'tau-jp'; did you mean 'tau_jp'?"),
        (("strength: 2", "strength: -2"), "penalty: tau_jp: strength: input should be greater than"),
        (("strength: 2", "strenght: 2"), "tau_jp: unknown key 'strenght'; did you mean 'strength'?"),
        (("kind: tau_jp, ", ""), "penalty: no kind given; known: decay"),
        (("search:", "joint: true\nsearch:"), "joint: the penalty of 'apart' uses the inputs of other tasks"),
        (("[pets, taste, number]", "[pets]"), "regimes.apart: its penalty uses the inputs of other tasks"),
    ],
)
def test_a_wrong_penalty_is_one_line(
    change: tuple[str, str],
    complaint: str,
    experiment: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiment.write_text(experiment.read_text().replace(*change))
    assert command("run", experiment, "-o", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1


WITH_FILES = """
experiment: tiny
model: {model}
suite: {suite}
tasks: [pets]
training: {{lr: 2e-3, steps: 2, batch_size: 16}}
regimes:
  full: {{}}
  apart: {{select: full, space: tangent, penalty: {{kind: diagonal, files: [stats/taste.safetensors]}}}}
search: {{step: 0.5, coarse: 2, limit: 1.0}}
"""


def test_what_files_hold_decides_and_not_where_they_lie(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    def measure(seed: int) -> None:
        given = ("-s", tiny_suite, "-t", "taste", "--kind", "ggn", "--examples", 4, "--seed", seed)
        file = home / "stats" / "taste.safetensors"
        assert command("stats", tiny_model, *given, "-o", file, "--force") == 0

    def run() -> set[str]:
        before = set(folder.glob("vectors/*/*/*"))
        assert command("run", home / "tiny.yaml", "-o", folder) == 0
        return {path.parent.name for path in set(folder.glob("vectors/*/*/*")) - before}

    home, folder = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    (home / "tiny.yaml").write_text(WITH_FILES.format(model=tiny_model, suite=tiny_suite))
    measure(0)
    assert run() == {"full", "apart"}  # of one task alone, with a file of another
    home = home.rename(tmp_path / "elsewhere")
    assert run() == set()
    measure(1)
    assert run() == {"apart"}
    training = next(iter(vectors_of(folder, "apart").values()))
    [told] = training["statistics"].values()
    assert told["task"] == "taste" and "references" not in training


def train(model: Path, suite: Path, output: Path, *more: object) -> int:
    given = ("--lr", 1e-3, "--steps", 2, "--batch-size", 8, "-o", output)
    return command("train", "-m", model, "-s", suite, "-t", "pets", *given, *more)


def test_the_command_trains_with_penalties(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, log = tmp_path / "pets.safetensors", tmp_path / "log.jsonl"
    told = (
        "--penalty",
        "tau_jp:strength=0.5,sets=all",
        "--penalty",
        "decay",
        "--references",
        "pets",
        "taste",
    )
    assert train(tiny_model, tiny_suite, made, *told, "--log", log) == 0
    assert "pets is trained itself" in capsys.readouterr().err
    training = tv.TaskVector.load(made).info.training or {}
    assert set(training["references"]) == {"taste"}
    assert training["consumed"] == "unlabelled train inputs of other tasks"
    assert training["penalty"][0] == {
        "kind": "tau_jp",
        "strength": 0.5,
        "power": 2,
        "sets": "all",
        "batch_size": 16,
    }
    assert all("penalty" in json.loads(line) for line in log.read_text().splitlines())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--penalty", "orthreg"], "--penalty: no penalty called 'orthreg'; did you mean 'orthoreg'?"),
        (
            ["--penalty", "orthoreg:from=code"],
            "--penalty: orthoreg: unknown key 'from'; did you mean 'form'?",
        ),
        (["--penalty", "decay:2"], "--penalty: '2' is not of the form name=value"),
        (["--penalty", "tau_jp"], "penalty tau_jp: no references"),
        (["--penalty", "tau_jp", "--references", "pets"], "penalty tau_jp: no references"),
        (["--penalty", "tau_jp", "--references", "tast"], "no task called 'tast'"),
        (["--penalty", "decay", "--references", "taste"], "--references: given, but no --penalty uses"),
        (["--penalty", "tak:files=x", "--references", "taste"], "the penalty has files in their place"),
        (["--references", "taste", "taste"], "--references: taste taste given"),
    ],
)
def test_a_wrong_option_is_one_line(
    options: list[str],
    complaint: str,
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(tiny_model, tiny_suite, tmp_path / "pets.safetensors", *options) == 2
    error = capsys.readouterr().err
    assert complaint in error.splitlines()[-1]
