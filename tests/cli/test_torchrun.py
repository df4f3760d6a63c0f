"""Commands in several processes: one speaks, one says what is wrong, what is killed goes on."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import taskvec as tv
from launching import launch, lines_of
from taskvec.studies.store import read_records

RECIPE = ["--steps", "6", "--batch-size", "16", "--lr", "1e-3", "--validations", "0"]

ELSEWHERE = """
import os, sys
from taskvec.cli import main
os.chdir(sys.argv[1 + int(os.environ["RANK"])])
main(sys.argv[3:])
"""

KILLED = """
import os, sys
from pathlib import Path
import torch
import taskvec as tv
from launching import leave
from taskvec.group import joined
from taskvec.training.checkpoint import Checkpoint

model, suite, checkpoint, output, last = sys.argv[1:]
torch.set_num_threads(1)
Checkpoint.every = 0.0

def watch(label, done, total, **facts):
    if done == int(last) and group.rank == group.size - 1:
        os.kill(os.getpid(), 9)

with joined() as group:
    evaluator = tv.Evaluator(tv.load_backbone(model), list(tv.load_suite(suite).tasks.values()))
    settings = tv.TrainSettings(lr=1e-3, steps=8, batch_size=16, validations=0)
    part, path = evaluator.part("pets"), Path(checkpoint)
    vector = tv.finetune(evaluator.backbone, part, settings=settings, checkpoint=path, watch=watch)
    if group.first:
        torch.save({name: vector[name] for name in vector}, output)
leave()
"""


def flat(vector: "tv.TaskVector | dict[str, torch.Tensor]") -> torch.Tensor:
    return torch.cat([vector[name].flatten() for name in sorted(vector)])


def test_train_speaks_once_and_learns_what_one_process_learns(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    command = ["taskvec", "train", "-m", tiny_model, "-t", "pets", "-s", tiny_suite, *RECIPE]
    for name, processes in {"one": 1, "two": 2}.items():
        output, log = tmp_path / f"{name}.safetensors", tmp_path / f"{name}.jsonl"
        ended = launch(["-m", "--", *command, "-o", output, "--log", log], processes)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("fine-tuned") == 1
        assert len(log.read_text().splitlines()) == 6
    one, two = (flat(tv.TaskVector.load(tmp_path / f"{name}.safetensors")) for name in ("one", "two"))
    assert float((one - two).abs().max()) <= 1e-6
    assert float((one - two).norm()) <= 5e-6 * float(one.norm())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "-m", "nowhere", "-t", "pets", "-o", "x.safetensors"], "taskvec: no task called 'pets'"),
        (["inspect", "x.safetensors"], "taskvec: torchrun: 2 processes for 'inspect', which is for one;"),
        (["demo", "-o", "run", "--workers", "2"], "taskvec: --workers: is for results that are made one by"),
    ],
)
def test_what_is_wrong_is_said_once(tmp_path: Path, arguments: list[str], said: str) -> None:
    ended = launch([script(tmp_path, ELSEWHERE), tmp_path, tmp_path, *arguments], 2)
    assert ended.returncode != 0
    [line] = lines_of(ended)
    assert line.startswith(said)
    assert "exitcode  : 2" in ended.stderr


def test_help_is_shown_once() -> None:
    ended = launch(["-m", "taskvec", "tasks", "--help"], 2)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Usage:") == 1


@pytest.mark.parametrize("what", ["model", "data of pets"])
def test_processes_with_different_files_are_refused(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, what: str
) -> None:
    places = [tmp_path / "here", tmp_path / "there"]
    for place in places:
        shutil.copytree(tiny_model, place / "model")
        shutil.copytree(tiny_suite.parent, place / "data")
    if what == "model":
        path = places[1] / "model/model.safetensors"
        tensors = dict(tv.open_weights(path))
        name = next(name for name in tensors if name.endswith("dense.weight"))
        tv.save_weights({**tensors, name: 2 * tensors[name]}, path, force=True)
    else:
        path = places[1] / "data/pets.jsonl"
        path.write_text(path.read_text().replace("cat", "dog", 1))
    command = ["train", "-m", "model", "-t", "pets", "-s", "data/tiny.yaml", *RECIPE, "-o", "x.safetensors"]
    ended = launch([script(tmp_path, ELSEWHERE), *places, *command], 2)
    [line] = lines_of(ended)
    assert line.startswith(f"taskvec: {what}: process 1 of 2 has ")
    assert not any((place / "x.safetensors").exists() for place in places)


def test_a_killed_training_goes_on_to_the_same_bits_with_any_number_of_processes(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    def trained(checkpoint: str, last: int, processes: int) -> "subprocess.CompletedProcess[str]":
        given = (tiny_model, tiny_suite, tmp_path / f"{checkpoint}.pt", tmp_path / "vector.pt", last)
        return launch([script(tmp_path, KILLED), *given], processes)

    def learned() -> torch.Tensor:
        path = tmp_path / "vector.pt"
        vector = flat(torch.load(path))
        path.unlink()
        return vector

    assert trained("killed", 4, 2).returncode != 0
    shutil.copy(tmp_path / "killed.pt", tmp_path / "copied.pt")
    for checkpoint, processes in {"whole": 2, "killed": 2, "copied": 1}.items():
        ended = trained(checkpoint, 99, processes)
        assert ended.returncode == 0, ended.stderr
        assert not (tmp_path / f"{checkpoint}.pt").exists()
        if checkpoint == "whole":
            whole = learned()
        else:
            difference = (learned() - whole).abs().max()
            assert float(difference) <= (0 if processes == 2 else 1e-6), checkpoint


def test_a_run_is_that_of_one_process_and_is_gone_on_with(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path
) -> None:
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(
        f"experiment: shared\nmodel: {tiny_model}\nsuite: {tiny_suite}\n"
        "training: {steps: 6, batch_size: 16, lr: 1.0e-3}\n"
        "regimes: {tangent: {}}\naddition: {}\n"
    )
    for name, processes in (("one", 1), ("two", 2), ("two", 2)):
        ended = launch(["-m", "taskvec", "run", experiment, "-o", tmp_path / name, "--json"], processes)
        assert ended.returncode == 0, ended.stderr
        json.loads(ended.stdout)
    one, two = (read_records(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert len((tmp_path / "two/records.jsonl").read_text().splitlines()) == len(two)
    for key, record in one.items():
        if record["cell"] in ("zero_shot", "single"):
            assert record["result"] == two[key]["result"]


def script(folder: Path, text: str) -> Path:
    path = folder / "script.py"
    path.write_text(text)
    return path
