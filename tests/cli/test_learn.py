"""``learn``, from vectors in files to a merge in a file, and what lies beside it."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import taskvec as tv
from taskvec.cli import main


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    return int(str(exit.value.code))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, evaluator: tv.Evaluator) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vectors")
    settings = tv.TrainSettings(lr=1e-3, steps=6, batch_size=16)
    return {
        task: tv.finetune(evaluator.backbone, [evaluator.part(task)], settings=settings).save(
            folder / f"{task}.safetensors"
        )
        for task in ("pets", "taste")
    }


def given(paths: dict[str, Path], model: Path, suite: Path) -> list[object]:
    vectors = [part for name, path in paths.items() for part in ("-v", f"{name}={path}")]
    return ["learn", model, *vectors, "-s", suite, "-q"]


@pytest.mark.parametrize(
    "options",
    [
        ["--preset", "adamerging"],
        ["--preset", "adamerging-layer", "--batches", "1"],
        ["--preset", "supervised", "--keep", "best", "-t", "pets", "--limit", "20"],
        ["--scope", "layer", "--box", "projected", "--bounds", "-0.5", "1"],
        ["--preset", "atlas", "--scope", "layer"],
    ],
    ids=" ".join,
)
def test_a_merge_and_what_lies_beside_it(
    paths: dict[str, Path],
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    out = tmp_path / "merged.safetensors"
    options = ["--steps", "2", "--batch", "8", "--lr", "0.1", *options]
    assert command(*given(paths, tiny_model, tiny_suite), *options, "-o", out, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    beside = json.loads((tmp_path / "merged.coefficients.json").read_text())
    assert beside["coefficients"] == printed["coefficients"] and set(beside["coefficients"]) == set(paths)
    vector = tv.TaskVector.load(out)
    assert vector.info.training == beside
    assert command("merge", tmp_path / "merged.recipe.yaml", "-o", tmp_path / "model", "-q") == 0
    made, wanted = tv.open_weights(tmp_path / "model"), tv.apply(str(tiny_model), vector)
    for name in made:
        torch.testing.assert_close(made[name], wanted[name], rtol=1e-6, atol=1e-7)
    assert not list(tmp_path.glob(".*"))


def test_what_no_recipe_describes_is_said(
    paths: dict[str, Path],
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--scope", "partition", "--partitions", "3", "--steps", "1", "-o", tmp_path / "m.safetensors"]
    assert command(*given(paths, tiny_model, tiny_suite), *options) == 0
    said = capsys.readouterr()
    assert "apply it with scale 1" in said.err and "unlabelled validation inputs" in said.out
    assert not (tmp_path / "m.recipe.yaml").exists() and (tmp_path / "m.coefficients.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "test"], "allow_test_inputs"),
        (["--split", "test", "--allow-test-inputs", "--signal", "labels"], "labels of 'test'"),
        (["--preset", "adamergin"], "did you mean 'adamerging'"),
        (["--preset", "atlas", "--partitions", "4"], "belongs to scope partition"),
        (["-t", "nothing"], "nothing"),
        (["--steps", "-1"], "steps"),
    ],
    ids=lambda case: str(case)[:30],
)
def test_what_does_not_go_is_one_line(
    paths: dict[str, Path],
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert command(*given(paths, tiny_model, tiny_suite), *options, "-o", tmp_path / "m.safetensors") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(
    paths: dict[str, Path],
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "m.recipe.yaml").write_text("mine")
    options = ["--steps", "0", "-o", tmp_path / "m.safetensors"]
    assert command(*given(paths, tiny_model, tiny_suite), *options) == 2
    assert "m.recipe.yaml: exists already; --force replaces it" in capsys.readouterr().err
    assert (tmp_path / "m.recipe.yaml").read_text() == "mine"
    assert command(*given(paths, tiny_model, tiny_suite), *options, "--force") == 0
    assert yaml.safe_load((tmp_path / "m.recipe.yaml").read_text())["rule"] == "sum"


def test_no_recipe_of_an_earlier_merge_stays(
    paths: dict[str, Path], tiny_model: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    learn = [*given(paths, tiny_model, tiny_suite), "--steps", "1", "-o", tmp_path / "m.safetensors"]
    assert command(*learn) == 0 and (tmp_path / "m.recipe.yaml").exists()
    assert command(*learn, "--scope", "partition", "--force") == 0
    assert not (tmp_path / "m.recipe.yaml").exists()
