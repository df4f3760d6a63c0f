"""Studies and analyses on another device give what they give on the CPU."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from elsewhere import ELSEWHERE, elsewhere
from taskvec.cli import main
from taskvec.runs.experiment import load_experiment
from taskvec.runs.report import facts_of
from taskvec.runs.runner import Runner
from taskvec.studies.store import Store

EXPERIMENT = """
experiment: spaces
model: {model}
suite: {suite}
training: {{lr: 2e-3, steps: 2, batch_size: 16, validations: 1}}
limits: {{train: 32, validation: 16, test: 16}}
regimes: {{full: {{}}, tangent: {{}}, post-hoc: {{}}}}
search: {{step: 0.5, coarse: 1, limit: 1}}
addition: {{subsets: pairs, each: [tangent]}}
joint: true
library: {{k: 2}}
atm: {{rounds: [1], regimes: [full]}}
negation: {{targets: [pets], keep: 0.5, baselines: [random]}}
analogies:
  - {{a: number, b: pets, c: taste, target: pets}}
disentanglement: {{pairs: [[pets, taste]], grid: {{points: 3}}, samples: 6}}
"""


@contextmanager
def all_models_there(model: Path) -> Iterator[None]:
    """Every model that is loaded is this one, and goes to the other device."""
    loaded = tv.load_backbone(model)
    with pytest.MonkeyPatch.context() as patch, elsewhere():
        patch.setattr("taskvec.models.loading._load", lambda ref, outputs: deepcopy(loaded))
        patch.setattr("taskvec.models.loading.find_device", lambda name: ELSEWHERE)
        yield


def test_every_study(tiny_model: Path, tiny_suite: Path, tmp_path: Path) -> None:
    path = tmp_path / "spaces.yaml"
    path.write_text(EXPERIMENT.format(model=tiny_model, suite=tiny_suite))

    def facts(folder: Path) -> dict[str, Any]:
        experiment, suite = load_experiment(path)
        return facts_of(Runner(experiment, suite, Store(folder)).run())

    with all_models_there(tiny_model):
        there = facts(tmp_path / "there")
    records = (tmp_path / "there" / "records.jsonl").read_text().splitlines()
    assert {json.loads(record)["device"] for record in records} == {str(ELSEWHERE)}
    assert there == facts(tmp_path / "here")


@pytest.fixture(scope="module")
def vectors(evaluator: tv.Evaluator, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, settings = tmp_path_factory.mktemp("vectors"), tv.TrainSettings(lr=1e-3, steps=2, batch_size=8)
    paths = []
    for regime in ("full", "tangent"):
        for task in ("pets", "taste"):
            made = tv.finetune(evaluator.backbone, evaluator.part(task), regime=regime, settings=settings)
            made.save(path := folder / f"{regime}-{task}.safetensors")
            paths.append(str(path))
    return paths


@pytest.mark.parametrize(
    "words",
    [
        "ntk MODEL -s SUITE -t pets --control taste --samples 6",
        "ntk MODEL -s SUITE -t pets --control taste --samples 4 --mode trace --vector VECTOR",
        "gradients MODEL -s SUITE -t pets taste --steps 1 2 --samples 4",
        "linearity VECTORS --model MODEL -s SUITE --samples 6 --coefficients 0.5 1",
        "disentanglement VECTORS --model MODEL -s SUITE --samples 6 --grid -1 1 3",
        "stats MODEL -s SUITE -t pets --examples 4",
    ],
)
def test_every_analysis(
    words: str, tiny_model: Path, tiny_suite: Path, vectors: list[str], tmp_path: Path
) -> None:
    given: list[str] = []
    for word in words.split():
        named = {
            "MODEL": [str(tiny_model)],
            "SUITE": [str(tiny_suite)],
            "VECTORS": vectors,
            "VECTOR": vectors[:1],
        }
        given += named.get(word, [word])
    command = given if given[0] == "stats" else ["analyze", *given]

    def measured(folder: Path) -> dict[str, Any]:
        with pytest.raises(SystemExit) as ended:
            main([*command, "-o", str(folder), "--quiet"])
        assert not ended.value.code
        if command[0] == "stats":
            return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
        record: dict[str, Any] = json.loads((folder / "record.json").read_text())
        return record

    with all_models_there(tiny_model):
        there = measured(tmp_path / "there")
    assert there == measured(tmp_path / "here")
