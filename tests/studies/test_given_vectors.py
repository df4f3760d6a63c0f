"""Experiments on vectors that are there already: nothing is trained, and other files are other results."""

import json
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from taskvec.cli import main
from taskvec.runs.executors.executor import HERE
from taskvec.runs.executors.spread import Spread
from taskvec.runs.experiment import load_experiment
from taskvec.runs.runner import Runner
from taskvec.studies.store import Store
from threaded_workers import Threads

EXPERIMENT = """
experiment: given
model: {model}
suite: {suite}
regimes: {regimes}
vectors: {{pets: vectors/pets.safetensors, taste: '{folder}/taste.safetensors'}}
tasks: [pets, taste]
search: {{step: 0.5, coarse: 2, limit: 1.5}}
addition: {{subsets: whole}}
methods: {{rules: [ties], coefficient: default}}
"""


@pytest.fixture
def path(tmp_path: Path, evaluator: tv.Evaluator, tiny_model: Path, tiny_suite: Path) -> Path:
    folder = tmp_path / "vectors"
    folder.mkdir()
    for seed, task in enumerate(("pets", "taste")):
        settings = tv.TrainSettings(lr=2e-3, steps=4, batch_size=16, validations=0, seed=seed)
        tv.finetune(evaluator.backbone, evaluator.part(task), settings=settings).save(
            folder / f"{task}.safetensors"
        )
    given = tmp_path / "given.yaml"
    names = {"model": tiny_model, "suite": tiny_suite, "regimes": "{full: {}}", "folder": folder}
    given.write_text(EXPERIMENT.format(**names))
    return given


def run(path: Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(path), "-o", str(path.with_name("run")), "--quiet"])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def of_regime(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path.with_name("run") / "results.json").read_text())["seeds"]["0"][
        "full"
    ]
    return found


def test_given_vectors_are_compared_and_nothing_is_trained(path: Path, evaluator: tv.Evaluator) -> None:
    assert run(path) == 0
    facts = of_regime(path)
    vectors = {
        task: tv.TaskVector.load(path.parent / f"vectors/{task}.safetensors") for task in ("pets", "taste")
    }
    point = evaluator.points(vectors).at({"pets": 0.3, "taste": 0.3})
    methods = {of["name"]: of for of in facts["methods"]}
    assert methods["sum"]["outcomes"][0]["values"] == evaluator.values(point, vectors, "test")
    assert "given" in methods["joint training"]["left_out"]
    assert not (path.with_name("run") / "vectors").exists()


def test_another_vector_is_another_result(path: Path) -> None:
    assert run(path) == 0
    before = of_regime(path)["norms"]
    vector = tv.TaskVector.load(path.parent / "vectors/pets.safetensors")
    (2.0 * vector).save(path.parent / "vectors/twice.safetensors")
    path.write_text(path.read_text().replace("vectors/pets.s", "vectors/twice.s"))
    assert run(path) == 0
    assert of_regime(path)["norms"]["pets"] == pytest.approx(2 * before["pets"])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("vectors/pets.s", "vectors/nowhere.s", "vectors.pets"),
        ("{pets: v", "{pest: v", "'pest'"),
        ("{full: {}}", "{full: {}, attention: {}}", "of one regime"),
    ],
)
def test_what_is_refused(
    path: Path, old: str, new: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(path.read_text().replace(old, new))
    assert run(path) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_workers_take_the_vectors_that_are_there(path: Path) -> None:
    one, two = (
        Runner(*load_experiment(path), Store(path.with_name(name))).run(executor=executor)
        for name, executor in (("one", HERE), ("two", Spread(Threads(), 2)))
    )
    assert one.keys == two.keys and not list(path.with_name("two").glob("vectors/**/*.safetensors"))
