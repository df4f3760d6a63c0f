"""``lr: auto`` in experiments and on the command line: keys, records, tables, files."""

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
tasks: [pets, taste]
limits: {{validation: 40}}
training: {{lr: 2e-3, steps: 4, batch_size: 16}}
regimes: {{full: {{lr: auto}}, attention: {{}}}}
search: {{step: 0.5, coarse: 2, limit: 1.0}}
joint: true
atm: {{rounds: [2], regimes: [full]}}
negation: {{targets: [pets], keep: 0.5, baselines: [ascent]}}
costs: true
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


def cells_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    cells = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    return [cell for cell in cells if cell["cell"] == kind]


def test_a_run_finds_records_and_shows_the_rates(experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert command("run", experiment, "-o", folder) == 0
    found, given = (cell["result"] for cell in cells_of(folder, "geometry"))
    assert "rates" not in given and set(found["rates"]) == {"pets", "taste"}
    for path in folder.glob("vectors/seed0/full/*.safetensors"):
        training = tv.TaskVector.load(path).info.training or {}
        assert training["lr_search"]
        if path.name.startswith("pets-"):
            assert training["lr"] == found["rates"]["pets"]["lr"]
            assert training["lr_search"]["examples"] == {"pets": 40}
    report = (folder / "report.md").read_text()
    assert "Learning rates found" in report and "validation labels" in report
    facts = json.loads((folder / "results.json").read_text())["seeds"]["0"]
    assert facts["full"]["learning_rates"] == found["rates"] and "learning_rates" not in facts["attention"]
    assert not list((folder / "partial").glob("*")) if (folder / "partial").exists() else True

    before = (folder / "records.jsonl").read_bytes()
    assert command("run", experiment, "-o", folder) == 0
    assert (folder / "records.jsonl").read_bytes() == before


def test_the_validation_limit_decides_a_vector_only_where_a_rate_is_found(
    experiment: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    short = experiment.read_text().partition("joint:")[0]
    experiment.write_text(short)
    assert command("run", experiment, "-o", folder) == 0
    before = set(folder.glob("vectors/*/*/*"))
    experiment.write_text(short.replace("validation: 40", "validation: 30"))
    assert command("run", experiment, "-o", folder) == 0
    assert {path.parent.name for path in set(folder.glob("vectors/*/*/*")) - before} == {"full"}
    told = {cell["inputs"]["regime"]: cell["inputs"] for cell in cells_of(folder, "vector")}
    assert told["full"]["settings"]["lr"] == "auto" and told["full"]["validation_limit"] == 30
    assert "validation_limit" not in told["attention"]


def test_a_task_by_itself_may_have_its_rate_found(experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    short = experiment.read_text().partition("joint:")[0].replace("lr: auto", "lr: 1e-3")
    experiment.write_text(short + "per_task: {pets: {lr: auto}}\n")
    assert command("run", experiment, "-o", folder) == 0
    assert [set(cell["result"].get("rates", {})) for cell in cells_of(folder, "geometry")] == 2 * [{"pets"}]


def test_train_says_what_it_found(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, log = tmp_path / "pets.safetensors", tmp_path / "pets.jsonl"
    words = ["train", "-m", tiny_model, "-s", tiny_suite, "-t", "pets", "--steps", 6, "--batch-size", 16]
    words += ["--lr", "auto", "-o", output, "--log", log]
    assert command(*words) == 0
    training = tv.TaskVector.load(output).info.training or {}
    search = training["lr_search"]
    said = capsys.readouterr()
    assert f"note: lr {search['lr']:g}, found on validation data in {search['steps']} steps" in " ".join(
        said.err.split()
    )
    first = json.loads(log.read_text().splitlines()[0])
    assert (first["lr_found"], first["lr_search_steps"]) == (training["lr"], search["steps"])
    assert command(*words, "--force", "--json") == 0
    assert json.loads(capsys.readouterr().out)["lr_search"] == search
    assert {path.name for path in tmp_path.iterdir()} == {"pets.safetensors", "pets.jsonl"}
