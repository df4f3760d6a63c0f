"""Cells are jobs that another process could do: they say all that decides them, and can be sent there."""

import pickle
from pathlib import Path

import pytest
import yaml

from taskvec.progress import unwatched
from taskvec.runs.experiment import active, involved_tasks, load_experiment
from taskvec.studies import STUDIES
from taskvec.studies.record import Record
from taskvec.studies.store import Store
from taskvec.studies.trial import Cell, Lab, Plan, Trial

EXPERIMENT = """
experiment: everything
model: builtin
suite: builtin8
tasks: [display, gabor, greek]
regimes: {full: {}, tangent: {}, post-hoc: {}}
joint: {combiner: [null, mean, {combiner: meta, target: gabor}]}
addition: {subsets: all}
methods: {rules: [ties, fisher, adamerging], subsets: pairs}
atm: {rounds: [1, 2], regimes: [full]}
budget: {rounds: [1, 2], regimes: [full, tangent]}
negation: {targets: [gabor]}
analogies: [{a: display, b: gabor, c: greek, target: gabor}]
disentanglement: {pairs: [[display, gabor]]}
costs: true
regularised: true
library: {k: 2}
few_shot: {shots: [1, 2], targets: [gabor], pool: others}
layers: {by: first-order}
lm_eval: {tasks: [own], limit: 10}
inspect: 3
explore: true
"""


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell[Record]]:
    """Of every study, without a model being loaded or anything being trained."""
    path = tmp_path / "everything.yaml"
    path.write_text(EXPERIMENT)
    experiment, suite = load_experiment(path)
    digests = {task: suite.task(task).fingerprint for task in involved_tasks(experiment, suite)}
    lab = Lab(Plan(experiment, suite, "model", digests, list(digests)), Store(tmp_path / "run"), unwatched)
    trials = [Trial(lab, regime, 0) for regime in experiment.regimes]
    return [
        cell
        for study in active(experiment)
        for trial in (trials[:1] if study.of_model else trials)
        for cell in study.cells(trial)
    ]


def test_every_study_of_experiment_files_is_asked_for(tmp_path: Path) -> None:
    asked = yaml.safe_load(EXPERIMENT)
    for name, study in STUDIES.items():
        assert study.settings is None or name in asked, (
            f"EXPERIMENT lacks {name!r}: give it a block of every kind"
        )


def test_every_kind_of_cell_is_there(cells: list[Cell[Record]]) -> None:
    kinds = {"zero_shot", "single", "geometry", "addition", "joint", "atm", "negation", "analogy"}
    also = {
        "budget",
        "explore",
        "method",
        "disentanglement",
        "costs",
        "lm_eval",
        "library",
        "few_shot",
        "regularised",
        "layers",
        "inspected",
    }
    assert {cell.kind.cell for cell in cells} == {*kinds, *also}


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if study.settings is not None])
def test_every_study_of_experiment_files_is_in_the_docs(name: str) -> None:
    docs = Path(__file__).parents[2] / "docs"
    pages = [(docs / page).read_text() for page in ("protocols.md", "experiments.md")]
    assert any(f"`{name}: " in page for page in pages), (
        f"docs/protocols.md has no section on the study {name!r}; write one that shows `{name}: ...`"
    )


def test_jobs_travel(cells: list[Cell[Record]]) -> None:
    for cell in cells:
        again = pickle.loads(pickle.dumps(cell))
        assert (again.kind, again.inputs, again.label) == (cell.kind, cell.inputs, cell.label)


def test_no_two_cells_have_the_same_key(cells: list[Cell[Record]]) -> None:
    keys = [(cell.kind.cell, repr(cell.inputs)) for cell in cells]
    assert len(set(keys)) == len(keys)
