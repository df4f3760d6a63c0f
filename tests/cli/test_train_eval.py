"""``taskvec train`` and ``taskvec eval`` through the command, on a tiny model."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import taskvec as tv
from taskvec.cli import main
from taskvec.errors import InputError


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments), "--quiet"])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture(scope="module")
def options(tiny_model: Path, tiny_suite: Path) -> list[object]:
    recipe = ["--lr", 3e-3, "--steps", 12, "--batch-size", 16, "--weight-decay", 0.01]
    return ["-m", tiny_model, "-s", tiny_suite, *recipe]


@pytest.fixture(scope="module")
def pets(options: list[object], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Vectors of one task, trained by the command in each space. Not to be written to."""
    folder = tmp_path_factory.mktemp("pets")
    paths = {regime: folder / f"{regime}.safetensors" for regime in ("full", "tangent")}
    for regime, path in paths.items():
        assert command("train", *options, "-t", "pets", "--regime", regime, "-o", path) == 0
    return paths


def test_every_setting_of_a_training_is_an_option(tiny_model: Path, tiny_suite: Path, tmp_path: Path) -> None:
    recipe = ["--optimizer", "sgd", "--lr", 0.1, "--steps", 1, "--warmup", 0, "--batch-size", 96]
    path = tmp_path / "pets.safetensors"
    assert command("train", "-m", tiny_model, "-s", tiny_suite, *recipe, "-t", "pets", "-o", path) == 0
    info = tv.TaskVector.load(path).info
    assert info.training is not None and info.training["optimizer"] == "sgd"
    backbone = tv.load_backbone(str(tiny_model))
    settings = tv.TrainSettings(optimizer="sgd", lr=0.1, steps=1, warmup=0, batch_size=96)
    expected = tv.finetune(
        backbone, tv.make_part(backbone, tv.load_suite(tiny_suite).task("pets")), settings=settings
    )
    found = tv.TaskVector.load(path)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_train_stores_a_vector_that_eval_and_apply_agree_on(
    options: list[object],
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    vector = tmp_path / "pets.safetensors"
    assert command("train", *options, "-t", "pets", "-o", vector, "--json") == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["test"]["pets"]["accuracy"] >= 0.9
    info = tv.TaskVector.load(vector).info
    assert info.metrics == json.loads(json.dumps(trained["test"]))
    assert info.regime == "full"

    assert command("eval", tiny_model, "-s", tiny_suite, "-t", "pets", "-v", f"a={vector}", "--json") == 0
    lazily = json.loads(capsys.readouterr().out)["scores"]["pets"]
    assert lazily == trained["test"]["pets"]

    assert command("apply", tiny_model, "-v", f"a={vector}", "-e", "a", "-o", tmp_path / "edited") == 0
    capsys.readouterr()
    heads = ["--heads-from", tiny_model]
    assert command("eval", tmp_path / "edited", "-s", tiny_suite, "-t", "pets", *heads, "--json") == 0
    written = json.loads(capsys.readouterr().out)["scores"]["pets"]
    assert written["accuracy"] == lazily["accuracy"]
    assert written["perplexity"] == pytest.approx(lazily["perplexity"], rel=1e-4)


def test_eval_names_the_vector_that_does_not_fit(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tv.open_weights(tiny_model)
    name = "encoder.layer.0.attention.self.query.weight"
    for file, value in {"good": 1.0, "bad": float("nan")}.items():
        delta = torch.full_like(base[name], value)
        vector = tv.TaskVector.from_tensors({name: torch.ones_like(delta)}, base)
        vector.save(tmp_path / f"{file}.safetensors")
        with safe_open(tmp_path / f"{file}.safetensors", "pt") as opened:
            metadata = opened.metadata()
        save_file({name: delta}, tmp_path / f"{file}.safetensors", metadata=metadata)
    given = [part for file in ("good", "bad") for part in ("-v", f"{file}={tmp_path / file}.safetensors")]
    for edit in (["-e", "0.5*good + 0.5*bad"], ["-e", "0.5*good - bad", "--space", "tangent"]):
        assert command("eval", tiny_model, "-s", tiny_suite, "-t", "pets", *given, *edit) == 2
        assert capsys.readouterr().err == (
            f"taskvec: vector 'bad': {name!r} holds NaN or infinity; extract or train it again\n"
        )


def test_eval_takes_the_space_of_the_vectors_or_the_one_it_is_told(
    pets: dict[str, Path], tiny_model: Path, tiny_suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluated(*more: object) -> dict[str, Any]:
        capsys.readouterr()
        assert command("eval", tiny_model, "-s", tiny_suite, "-t", "pets", *more, "--json") == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    for regime, own, other in (("full", "ordinary", "tangent"), ("tangent", "tangent", "ordinary")):
        given = ["-v", f"a={pets[regime]}"]
        found = evaluated(*given)
        assert found["space"] == own
        assert found == evaluated(*given, "--space", own)
        assert evaluated(*given, "--space", other)["scores"] != found["scores"]
        stored = tv.TaskVector.load(pets[regime]).info.metrics
        assert stored is not None
        assert found["scores"]["pets"]["accuracy"] == stored["pets"]["accuracy"]
    assert command("eval", tiny_model, "-s", tiny_suite, "-v", f"a={pets['tangent']}") == 0
    assert "edited in tangent space" in " ".join(capsys.readouterr().out.split())
    both = ["-v", f"a={pets['full']}", "-v", f"b={pets['tangent']}", "-e", "a+b"]
    assert command("eval", tiny_model, "-s", tiny_suite, *both) == 2
    assert "'b' was trained in tangent space and 'a' in ordinary" in capsys.readouterr().err
    assert evaluated(*both, "--space", "tangent")["space"] == "tangent"


def test_negative_expressions_reach_the_model(
    pets: dict[str, Path], tiny_model: Path, tiny_suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values: dict[str, Any] = {}
    for expression in ("-1.5*a", "0*a", "a"):
        given = ["-v", f"a={pets['full']}", "-e", expression, "--json"]
        assert command("eval", tiny_model, "-s", tiny_suite, "-t", "pets", *given) == 0
        values[expression] = json.loads(capsys.readouterr().out)["scores"]["pets"]["perplexity"]
    assert values["-1.5*a"] > values["0*a"] > values["a"]


def test_a_random_vector_has_the_norms_of_another(
    options: list[object], pets: dict[str, Path], tmp_path: Path
) -> None:
    real, noise = pets["full"], tmp_path / "noise.safetensors"
    assert command("train", *options, "-t", "pets", "--regime", "random", "--like", real, "-o", noise) == 0
    expected, found = tv.TaskVector.load(real).norms(), tv.TaskVector.load(noise).norms()
    for name, norm in expected.items():
        assert found[name] == pytest.approx(norm, rel=1e-6)
    assert abs(tv.TaskVector.load(real).cosine(tv.TaskVector.load(noise))) < 0.1
    info = tv.TaskVector.load(noise).info
    assert (info.task, info.regime) == ("pets", "random")


def test_a_training_killed_half_way_resumes_to_the_same_bits(
    options: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"
    given = [*options, "-t", "pets", "--log", tmp_path / "log.jsonl"]
    assert command("train", *given, "-o", whole) == 0
    (tmp_path / "log.jsonl").rename(tmp_path / "whole.jsonl")
    script = (
        "import os, pathlib, signal, torch\n"
        "torch.set_num_threads(1)\n"
        "from taskvec.training.checkpoint import Checkpoint\n"
        "class Killed(Checkpoint):\n"
        "    every = 0.0\n"
        "    def save_if_due(self, step):\n"
        "        if step == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        super().save_if_due(step)\n"
        "from taskvec.training import loop; loop.Checkpoint = Killed\n"
        "from taskvec.cli import main; main()"
    )
    command_line = ["train", *map(str, given), "-o", str(killed), "--quiet"]
    ended = subprocess.run([sys.executable, "-c", script, *command_line], check=False)
    state = tmp_path / ".killed.safetensors.training.pt"
    assert ended.returncode == -signal.SIGKILL
    assert not killed.exists()
    assert torch.load(state, weights_only=True)["step"] == 5
    assert command("train", *given, "-o", killed, "--resume") == 0
    a, b = tv.TaskVector.load(whole), tv.TaskVector.load(killed)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not state.exists()
    logs = [(tmp_path / name).read_text().splitlines() for name in ("whole.jsonl", "log.jsonl")]
    series = [[(step["step"], step["loss"], step["lr"]) for step in map(json.loads, log)] for log in logs]
    assert series[0] == series[1] and [step for step, _, _ in series[0]] == list(range(1, 13))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train", "-t", "petz", "-o", "OUT"], "no task called 'petz' in suite 'tiny'; did you mean 'pets'?"),
        (
            ["train", "-t", "pets", "-t", "pets", "-o", "OUT"],
            "--task: pets pets given, expected one or more, each once",
        ),
        (["train", "-t", "pets", "--lr", "nan", "-o", "OUT"], "lr"),
        (["train", "-t", "pets", "--batch-size", "0", "-o", "OUT"], "batch_size: input should be greater"),
        (
            ["train", "-t", "pets", "--regime", "random", "-o", "OUT"],
            "--like and --regime random belong together",
        ),
        (
            [
                "train",
                "-t",
                "pets",
                "--regime",
                "random",
                "--like",
                "EXISTING",
                "--select",
                "mlp",
                "-o",
                "OUT",
            ],
            "--regime random: draws every tensor of the vector in --like; leave out what selects",
        ),
        (["train", "-t", "pets", "--regime", "atention", "-o", "OUT"], "did you mean 'attention'?"),
        (["train", "-t", "pets", "--regime", "asent", "-o", "OUT"], "did you mean 'ascent'?"),
        (["train", "-t", "pets", "--regime", "re:nowhere", "-o", "OUT"], "choose another: full, attention"),
        (["train", "-t", "pets", "-o", "EXISTING"], "--force"),
        (
            ["train", "-t", "pets", "-o", "OUT", "--log", "EXISTING"],
            "exists already; --force replaces it, --resume",
        ),
        (["train", "-t", "pets", "-o", "OUT", "--log-to", "wandbb"], "did you mean 'wandb'?"),
        (["train", "-t", "-o", "OUT"], "--task: nothing given"),
        (["train", "-t", "pets", "--limit", "0", "-o", "OUT"], "--limit"),
        (["train", "-t", "pets", "--limit", "-3", "-o", "OUT"], "--limit"),
        (["train", "-t", "pets", "--seed", str(2**60), "-o", "OUT"], "seed: input should be less than"),
        (["train", "-t", "pets", "-o", "EXISTING/below.safetensors"], "Not a directory"),
    ],
)
def test_bad_requests_are_one_line_and_write_nothing(
    arguments: list[str],
    complaint: str,
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    existing = tmp_path / "existing.safetensors"
    existing.write_text("precious")
    out = str(tmp_path / "out.safetensors")
    given = [one.replace("EXISTING", str(existing)).replace("OUT", out) for one in arguments]
    assert command(*given, "-m", tiny_model, "-s", tiny_suite) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error
    assert not (tmp_path / "out.safetensors").exists()
    assert existing.read_text() == "precious"


def test_a_vector_of_another_model_is_refused_by_eval(
    pets: dict[str, Path],
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tv.open_weights(tiny_model)
    weights = dict(other)
    weights["embeddings.LayerNorm.weight"] = weights["embeddings.LayerNorm.weight"] + 1
    tv.save_weights(weights, tmp_path / "moved", like=other)
    assert command("eval", tmp_path / "moved", "-s", tiny_suite, "-v", f"a={pets['full']}") == 2
    assert "fingerprint" in capsys.readouterr().err


def test_a_missing_model_is_named(tiny_suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("eval", "./no-such-model", "-s", tiny_suite) == 2
    error = capsys.readouterr().err
    assert "no-such-model" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--limit", "0"], "--limit"),
        (["--batch-size", "0"], "--batch-size"),
        (["-t", "pets", "pets"], "--task: pets pets given"),
        (["--space", "tangent"], "--space: without a --vector"),
        (["-e", "a"], "--expression: names vectors that no --vector gives"),
        (["-v", "a=VECTOR", "-e", ""], "expression"),
        (["-v", "a=VECTOR", "-v", "b=VECTOR", "-e", "a+b"], "same vector"),
        (["-v", "1=VECTOR"], "the name '1' is not one word"),
        (["-v", "a=VECTOR", "-e", "1e400*a"], "finite"),
    ],
)
def test_bad_requests_of_eval_are_one_line(
    arguments: list[str],
    complaint: str,
    pets: dict[str, Path],
    tiny_model: Path,
    tiny_suite: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    given = [argument.replace("VECTOR", str(pets["full"])) for argument in arguments]
    assert command("eval", tiny_model, "-s", tiny_suite, *given) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert complaint in shown.err


def test_a_task_of_another_modality_is_refused(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("eval", tiny_model, "-s", "builtin8", "-t", "gabor") == 2
    assert "gabor: a task on images, and" in capsys.readouterr().err


def test_names_with_brackets_are_shown_as_they_are(
    options: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vector = tmp_path / "n[/b]:smile:.safetensors"
    assert command("train", *options, "-t", "pets", "-o", vector) == 0
    assert vector.name in capsys.readouterr().out


def test_provenance_names_task_and_data(pets: dict[str, Path], tiny_suite: Path) -> None:
    training = tv.TaskVector.load(pets["full"]).info.training
    assert training is not None
    assert training["tasks"] == {"pets": tv.load_suite(tiny_suite).task("pets").fingerprint}


def test_a_checkpoint_of_other_data_is_not_gone_on_with(evaluator: tv.Evaluator, tmp_path: Path) -> None:
    part, state = evaluator.part("pets"), tmp_path / "state.pt"

    class Stopped(Exception):
        pass

    def stop(*_: object, **__: object) -> None:
        raise Stopped

    recipe = tv.TrainSettings(steps=2, batch_size=16)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("taskvec.training.checkpoint.Checkpoint.every", 0.0)
        tv.finetune(evaluator.backbone, part, settings=recipe, checkpoint=state, watch=stop)
    other = replace(part, fingerprint="of other rows")
    with pytest.raises(InputError, match="of another training"):
        tv.finetune(evaluator.backbone, other, settings=recipe, checkpoint=state)


@pytest.mark.parametrize("regime", ["tangent", "tangent-attention", r"tangent-re:.*(query|key)\.weight"])
def test_a_tangent_vector_is_trained_stored_and_evaluated_in_its_own_space(
    regime: str,
    options: list[object],
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "pets.safetensors"
    assert command("train", *options, "-t", "pets", "--regime", regime, "-o", path) == 0
    trained = capsys.readouterr().out
    assert "in tangent space" in " ".join(trained.split())
    vector = tv.TaskVector.load(path)
    assert (vector.info.regime, vector.info.space) == (regime, "tangent")
    shown = {}
    for space in (None, "tangent", "ordinary"):
        flag = ["--space", space] if space else []
        assert (
            command("eval", tiny_model, "-s", tiny_suite, "-t", "pets", "-v", f"a={path}", *flag, "--json")
            == 0
        )
        shown[space] = json.loads(capsys.readouterr().out)["scores"]["pets"]
    assert shown[None] == shown["tangent"] == vector.info.metrics["pets"]  # type: ignore[index]
    assert command("apply", tiny_model, "-v", f"a={path}", "-o", tmp_path / "edited") == 0
    assert "The model written is an ordinary one" in " ".join(capsys.readouterr().out.split())
