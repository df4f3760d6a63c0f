"""Settings of single tasks in an experiment."""

import json
from pathlib import Path

import pytest

import taskvec as tv
from taskvec.cli import main

EXPERIMENT = """
experiment: tiny
model: {model}
suite: {suite}
tasks: [pets, taste]
training: {{lr: 2e-3, steps: 4, batch_size: 16}}
regimes: {{full: {{}}}}
search: {{step: 0.5, coarse: 2, limit: 1.0}}
joint: true
"""


def run(path: Path, *options: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(path), *map(str, options), "--quiet"])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture
def experiment(tiny_model: Path, tiny_suite: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(EXPERIMENT.format(model=tiny_model, suite=tiny_suite))
    return path


def test_only_the_task_s_own_vector_is_trained_otherwise(experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(experiment, "-o", folder) == 0
    before = set(folder.glob("vectors/*/*/*"))
    experiment.write_text(experiment.read_text() + "per_task: {pets: {steps: 6, warmup: 0.5}}\n")
    assert run(experiment, "-o", folder) == 0
    [made] = set(folder.glob("vectors/*/*/*")) - before
    training = tv.TaskVector.load(made).info.training or {}
    assert made.name.startswith("pets-") and (training["steps"], training["warmup"]) == (6, 0.5)
    cells = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    told = [cell["inputs"]["per_task"] for cell in cells if "per_task" in cell["inputs"]]
    assert told and all(given == {"pets": {"steps": 6, "warmup": 0.5}} for given in told)


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("{pest: {steps: 6}}", "no task called 'pest'"),
        ("{pets: {step: 6}}", "per_task.pets: unknown key 'step'"),
        ("{pets: {steps: 0}}", "per_task.pets: steps"),
        ("{pets: {seed: 1}}", "pets: a seed is given under 'seeds', not here"),
        ("{pets: {select: mlp}}", "per_task.pets: unknown key 'select'"),
    ],
)
def test_a_wrong_setting_is_one_line(
    block: str, complaint: str, experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment.write_text(experiment.read_text() + f"per_task: {block}\n")
    assert run(experiment, "-o", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1
