"""Experiments on a network of one's own: allowed where the user says so, and the same at every call."""

from pathlib import Path

import pytest

from models.own_networks import WORDS
from taskvec.code import allowing_code
from taskvec.errors import InputError
from taskvec.runs.executors.processes import processes
from taskvec.runs.experiment import load_experiment
from taskvec.runs.runner import Runner
from taskvec.studies.store import Store

EXPERIMENT = """
experiment: own
model: net.py:{function}
suite: tiny.yaml
training: {{lr: 3e-3, steps: 6, batch_size: 16}}
regimes: {{full: {{}}, tangent: {{}}}}
search: {{step: 0.5, limit: 1}}
addition: {{subsets: whole}}
"""

NET = """
import torch, taskvec as tv
from models.own_networks import reader
def other():
    torch.seed()
    net = torch.nn.Embedding(3, 4)
    return tv.wrap(net, collate=lambda texts: torch.zeros(len(texts), dtype=torch.int64), example="a")
"""


@pytest.fixture
def place(tmp_path: Path, tiny_suite: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for file in tiny_suite.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    suite = (tmp_path / "tiny.yaml").read_text()
    (tmp_path / "tiny.yaml").write_text(suite.replace("defaults:", "defaults:\n  head: linear-probe"))
    (tmp_path / "net.py").write_text(NET)
    for function in ("reader", "other"):
        (tmp_path / f"{function}.yaml").write_text(EXPERIMENT.format(function=function))
    return tmp_path


def test_a_file_runs_code_only_where_it_is_allowed(place: Path) -> None:
    with pytest.raises(
        InputError, match=r"reader.yaml: model: names code to run, 'net.py:reader'.*--allow-code"
    ):
        load_experiment(place / "reader.yaml")


def test_an_experiment_on_a_network_of_ones_own_goes_through(place: Path) -> None:
    assert {"cat", "dog"} <= set(WORDS)
    with allowing_code():
        experiment, suite = load_experiment(place / "reader.yaml")
        store = Store(place / "out")
        with store.locked():
            results = Runner(experiment, suite, store).run()
        again = Runner(experiment, suite, Store(place / "out")).run()
    assert results.cells == again.cells
    by_workers = Runner(experiment, suite, Store(place / "two")).run(
        executor=processes(2)
    )  # they load it, too
    assert results.keys == by_workers.keys and results.cells == by_workers.cells
    assert len(list(place.glob("out/vectors/seed0/*/*.safetensors"))) == 6


def test_weights_that_differ_at_every_call_are_refused(place: Path) -> None:
    with allowing_code():
        experiment, suite = load_experiment(place / "other.yaml")
        with pytest.raises(InputError, match=r"net.py:other: gives other weights at every call.*manual_seed"):
            Runner(experiment, suite, Store(place / "out"))
