"""A library in an experiment: its figures are those of the models that its inputs were sent to."""

import json
from pathlib import Path
from typing import Any

import pytest

from taskvec.errors import InputError
from taskvec.runs.experiment import load_experiment
from taskvec.runs.report import facts_of, write_report
from taskvec.runs.runner import Runner
from taskvec.studies.store import Store


def experiment(folder: Path, model: Path, suite: Path, block: str, seeds: str = "[0, 1]") -> Path:
    path = folder / "routed.yaml"
    path.write_text(
        f"experiment: routed\nmodel: {model}\nsuite: {suite}\ntasks: [pets, taste]\nseeds: {seeds}\n"
        "regimes: {full: {}, tangent: {}}\ntraining: {steps: 2, batch_size: 8}\n"
        f"limits: {{train: 16, validation: 12, test: 20}}\nlibrary: {block}\n"
    )
    return path


def test_a_library_is_run_recorded_and_shown(tiny_model: Path, tiny_suite: Path, tmp_path: Path) -> None:
    path, folder = experiment(tmp_path, tiny_model, tiny_suite, "true"), tmp_path / "run"
    results = Runner(*load_experiment(path), Store(folder)).run()
    titles = [table.title for table in write_report(results, folder)]
    assert {"A library of vectors, full", "Where inputs went, tangent"} <= set(titles)
    facts: Any = json.loads((folder / "results.json").read_text())
    for seed in ("0", "1"):
        for regime in ("full", "tangent"):
            found = facts["seeds"][seed][regime]["library"]
            assert set(found["values"]) == set(found["routing"]) == {"pets", "taste"}
            for shares in found["routing"].values():
                assert sum(shares.values()) == pytest.approx(1)
    report = (folder / "report.md").read_text()
    assert "| pets | " in report and "figures/library.png" in report
    before = (folder / "records.jsonl").read_text()
    Runner(*load_experiment(path), Store(folder)).run()
    assert (folder / "records.jsonl").read_text() == before


def test_regimes_may_be_chosen(tiny_model: Path, tiny_suite: Path, tmp_path: Path) -> None:
    block = "{regimes: [tangent], k: 2, keys: learned}"
    path = experiment(tmp_path, tiny_model, tiny_suite, block, seeds="[3]")
    facts: Any = facts_of(Runner(*load_experiment(path), Store(tmp_path / "run")).run())["seeds"]["3"]
    assert "library" in facts["tangent"] and "library" not in facts["full"]


@pytest.mark.parametrize(
    ("block", "words"),
    [("{k: 3}", "library: k is 3, expected 2 at most"), ("{kk: 1}", "unknown key 'kk' in 'library'"),
     ("{regimes: [fulll]}", "library"), ("{temperature: -1}", "temperature")],
)  # fmt: skip
def test_a_block_that_does_not_fit_is_refused(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, block: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        load_experiment(experiment(tmp_path, tiny_model, tiny_suite, block))
