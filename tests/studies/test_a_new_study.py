"""A protocol is one file and one line of the registry; everything else follows."""

import json
from pathlib import Path

import pytest

from taskvec.errors import InputError
from taskvec.runs.experiment import load_experiment
from taskvec.runs.report import write_report
from taskvec.runs.runner import Runner
from taskvec.studies import STUDIES
from taskvec.studies.store import Store


@pytest.fixture
def experiment(tiny_model: Path, tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(STUDIES._entries, "counting", "counting:Counting")
    path = tmp_path / "new.yaml"
    path.write_text(
        f"experiment: new\nmodel: {tiny_model}\nsuite: {tiny_suite}\ntasks: [pets, taste]\n"
        "regimes: {full: {}}\ntraining: {steps: 1, batch_size: 4}\n"
        "limits: {validation: 5}\ncounting: {split: validation}\n"
    )
    return path


def test_a_new_study_is_run_recorded_and_shown(experiment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    results = Runner(*load_experiment(experiment), Store(folder)).run()
    titles = [table.title for table in write_report(results, folder)]
    assert titles[-1] == "Examples of full"
    facts = json.loads((folder / "results.json").read_text())
    assert facts["experiment"]["counting"] == {"split": "validation"}
    assert facts["seeds"]["0"]["full"]["counting"] == {"examples": {"pets": 5, "taste": 5}}
    assert "| pets | 5 |" in (folder / "report.md").read_text()
    before = (folder / "records.jsonl").read_text()
    assert '"cell": "counting"' in before
    Runner(*load_experiment(experiment), Store(folder)).run()
    assert (folder / "records.jsonl").read_text() == before


def test_its_settings_are_checked_like_any_other(experiment: Path) -> None:
    text = experiment.read_text()
    experiment.write_text(text.replace("split:", "splt:"))
    with pytest.raises(InputError, match="unknown key 'splt' in 'counting'; did you mean 'split'"):
        load_experiment(experiment)
    experiment.write_text(text.replace("counting:", "countin:"))
    with pytest.raises(InputError, match="unknown key 'countin'; did you mean 'counting'"):
        load_experiment(experiment)
