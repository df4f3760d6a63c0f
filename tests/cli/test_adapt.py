"""``adapt``, from vectors in files to one that serves a new task."""

import json
from pathlib import Path

import pytest
import torch

import taskvec as tv
from taskvec.cli import main


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return int(str(exit.value.code))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, evaluator: tv.Evaluator) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    for seed, task in enumerate(("pets", "taste")):
        settings = tv.TrainSettings(lr=1e-3, steps=4, batch_size=16, seed=seed)
        vector = tv.finetune(evaluator.backbone, evaluator.part(task), settings=settings)
        vector.save(folder / f"{task}.safetensors")
    return folder


@pytest.fixture
def given(tiny_model: Path, tiny_suite: Path, tmp_path: Path) -> list[object]:
    out = tmp_path / "out.safetensors"
    return ["adapt", tiny_model, "-s", tiny_suite, "-t", "number", "--steps", "2", "-o", out, "-q"]


def test_a_merge_and_what_lies_beside_it(
    given: list[object], pool: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*given, "--pool", pool, "--shots", 2, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["shots"] == 2 and printed["consumed"] == ["4 train labels (2 a class)"]
    assert set(printed["test"]) == {"before", "after"} and set(printed["coefficients"]) == {"pets", "taste"}
    vector = tv.TaskVector.load(tmp_path / "out.safetensors")
    assert vector.info.task == "number" and vector.info.training is not None
    assert vector.info.training["examples"] == printed["examples"]
    assert command("merge", tmp_path / "out.recipe.yaml", "-o", tmp_path / "model", "-q") == 0
    made, wanted = tv.open_weights(tmp_path / "model"), tv.apply(str(tiny_model), vector)
    for name in made:
        torch.testing.assert_close(made[name], wanted[name], rtol=1e-6, atol=1e-7)
    assert command(*given, "--pool", pool) == 2  # nothing is replaced


def test_expressions_take_the_place_of_what_they_name(
    given: list[object], pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = [part for name in ("pets", "taste") for part in ("-v", f"{name}={pool / name}.safetensors")]
    assert command(*given, *vectors, "-e", "turn=pets - taste", "--scope", "task", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)["coefficients"]) == {"turn"}
    assert not (tmp_path / "out.recipe.yaml").exists()


def test_a_vector_of_the_task_itself_is_pointed_out(
    given: list[object], pool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["taste" if word == "number" else word for word in given]
    assert command(*words, "--pool", pool, "--shots", 1) == 0
    said = capsys.readouterr()
    assert "taste: was trained on taste itself" in said.err and "adapted" in said.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no vectors; give a folder (--pool FOLDER), or name=PATH of each (-v)"),
        (["--pool", "nowhere"], "nowhere: no folder, expected a library or a folder of task vectors"),
        (["--pool", "{pool}", "-v", "pets=x"], "the name 'pets' is in"),
        (["--pool", "{pool}", "-e", "x=pets - test"], "'test': no vector of the pool; did you mean"),
        (["--pool", "{pool}", "--split", "test"], "split: labels of 'test' are for measuring alone"),
    ],
    ids=["nothing", "no folder", "twice", "unknown", "test labels"],
)
def test_what_does_not_fit_is_one_line(
    given: list[object], pool: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert command(*given, *(option.format(pool=pool) for option in options)) == 2
    assert message in capsys.readouterr().err
