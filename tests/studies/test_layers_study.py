"""Layers in an experiment: what training changed, what is kept, and how that is shown."""

import json
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from taskvec.errors import InputError
from taskvec.names import grouped
from taskvec.runs.experiment import load_experiment
from taskvec.runs.report import write_report
from taskvec.runs.runner import Runner
from taskvec.studies.store import Store

EXPERIMENT = """
experiment: few layers
model: {model}
suite: {suite}
tasks: [pets, taste]
seeds: {seeds}
regimes:
  full: {{}}
  gated: {{strength: 1, score_lr: 0.03}}
  tangent-attention: {{}}
training: {{steps: 10, batch_size: 16, lr: 3e-3}}
limits: {{train: 48, validation: 24, test: 24}}
layers: {block}
"""


def experiment(folder: Path, model: Path, suite: Path, block: str, seeds: str = "[0]") -> Path:
    path = folder / "few.yaml"
    path.write_text(EXPERIMENT.format(model=model, suite=suite, block=block, seeds=seeds))
    return path


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tiny_suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds, with its report."""
    place = tmp_path_factory.mktemp("layers")
    block = "{by: first-order, tolerance: 0.1, regimes: [full, gated, tangent-attention]}"
    path = experiment(place, tiny_model, tiny_suite, block, seeds="[0, 1]")
    store = Store(place / "run")
    write_report(Runner(*load_experiment(path), store).run(), store.folder)
    return store.folder


def test_a_run_says_which_layers_were_changed_and_kept(folder: Path) -> None:
    facts: Any = json.loads((folder / "results.json").read_text())
    for seed in ("0", "1"):
        for regime, found in facts["seeds"][seed].items():
            for task, record in found["layers"].items():
                assert set(record["kept"]) <= set(record["changed"]) <= set(record["layers"])
                [file] = folder.glob(f"vectors/seed{seed}/{regime}/{task}-*.safetensors")
                assert set(record["changed"]) == set(grouped(tv.open_weights(file)))
                assert record["curve"][0][:2] == [0, 0] and record["curve"][-1] == record["whole"]
                assert record["cut"][2] >= 0.9 * record["whole"][2] and record["labels"] == 24
    kinds = {regime: of["layers"]["pets"] for regime, of in facts["seeds"]["0"].items()}
    assert len(kinds["full"]["changed"]) == len(kinds["full"]["layers"])
    assert len(kinds["gated"]["changed"]) < len(kinds["gated"]["layers"])
    assert all("attention" in layer for layer in kinds["tangent-attention"]["changed"])


def test_the_report_has_tables_and_figures_of_it(folder: Path) -> None:
    report = (folder / "report.md").read_text()
    assert all(f"Layers that tasks need, {regime}" in report for regime in ("full", "gated"))
    assert (folder / "figures" / "layers.png").exists() and (folder / "figures" / "layers-curve.png").exists()


def test_a_second_run_computes_nothing(
    folder: Path, tiny_model: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    before = (folder / "records.jsonl").read_text()
    block = "{by: first-order, tolerance: 0.1}"
    path = experiment(tmp_path, tiny_model, tiny_suite, block, seeds="[0, 1]")
    Runner(*load_experiment(path), Store(folder)).run()
    assert (folder / "records.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("{by: first}", "layers.by: input should be 'loss' or 'first-order'"),
        ("{tolerance: 2}", "layers.tolerance: input should be less than or equal to 1"),
        ("{tolerence: 0.1}", "unknown key 'tolerence' in 'layers'; did you mean 'tolerance'"),
        ("{regimes: [gate]}", "layers: 'gate' is not among this experiment's regimes"),
    ],
)
def test_a_block_that_does_not_fit_is_refused(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, block: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        load_experiment(experiment(tmp_path, tiny_model, tiny_suite, block))


def test_vectors_that_change_nothing_leave_valid_json(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    path = experiment(tmp_path, tiny_model, tiny_suite, "{by: first-order, regimes: [gated]}")
    closed = path.read_text().replace("gated: {strength: 1, score_lr: 0.03}", "gated: {threshold: 0.2}")
    path.write_text(closed.replace("  full: {}\n", "").replace("  tangent-attention: {}\n", ""))
    store = Store(tmp_path / "run")
    write_report(Runner(*load_experiment(path), store).run(), store.folder)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    facts = json.loads((store.folder / "results.json").read_text(), parse_constant=refuse)
    assert facts["seeds"]["0"]["gated"]["cosine"] == [[None, None], [None, None]]
    assert facts["seeds"]["0"]["gated"]["layers"]["pets"]["kept"] == []
