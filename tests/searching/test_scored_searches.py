"""``taskvec search`` by each kind of score, from options to what is found."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import taskvec as tv
from searching.worlds import make
from taskvec.cli import main

SEARCH = "search recipe.yaml --vary weights.*=0..1.5 --method random"
JUDGE = """
import sys
from safetensors.torch import load_file
value = float(load_file(sys.argv[1] + "/model.safetensors")["pooler.dense.bias"].double().pow(2).sum())
print("part", sys.argv[2])
print({"search": -value, "holdout": -2 * value}[sys.argv[2]])
"""
FUNCTION = """
def far(model, part):
    value = float(model.pooler.dense.bias.double().pow(2).sum())
    return -value if part == "search" else -2 * value

"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of two models tuned from one, a suite, and what scores them."""
    folder = tmp_path_factory.mktemp("place")
    world = make("encoder", folder)
    recipe = {"base": "base", "models": {"a": "a", "b": "b"}, "expression": "1.0*a + 1.0*b"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "judge.py").write_text(JUDGE)
    (folder / "mine.py").write_text(FUNCTION)
    assert world.suite == folder / "suite.yaml"
    return folder


def run(capsys: pytest.CaptureFixture[str], folder: Path, words: str, name: str) -> dict[str, Any]:
    line = f"{SEARCH} {words} -o {name} -q --json"
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(line))
    captured = capsys.readouterr()
    assert stopped.value.code == 0, captured.err
    lines = (folder / name / "evaluations.jsonl").read_text().splitlines()
    return {"found": json.loads(captured.out), "lines": [json.loads(line) for line in lines]}


SCORES = {
    "suite": "--score suite.yaml --limit 20",
    "task": "--score suite.yaml -t one",
    "command": f"--score-command '{sys.executable} judge.py {{model}} {{part}}'",
    "function": "--score mine.py:far",
    "both": "--score suite.yaml --score mine.py:far --weigh small=1 --weigh far=0.01 --keep 'small.one>0.5x'",
}


@pytest.mark.parametrize("words", SCORES.values(), ids=SCORES)
def test_the_best_is_at_least_the_start_and_is_measured_on_what_was_held_out(
    words: str,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(place)
    done = run(capsys, tmp_path, f"{words} --evaluations 3", str(tmp_path / "run"))
    searched = [line for line in done["lines"] if line["part"] == "search"]
    held_out = [line for line in done["lines"] if line["part"] == "holdout"]
    assert len(searched) == 3 and 1 <= len(held_out) <= 2
    assert max(line["objective"] for line in searched) >= searched[0]["objective"]
    assert {path.name for path in (tmp_path / "run").iterdir() if not path.suffix} <= {"figures", ".lock"}
    again = tv.open_recipe(tmp_path / "run" / "best.yaml")
    assert len(again.weights) > 30


def test_the_command_and_the_function_agree(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A model in memory is the one that is written."""
    monkeypatch.chdir(place)
    runs = [
        run(capsys, tmp_path, f"{SCORES[name]} --evaluations 3", str(tmp_path / name))
        for name in ("command", "function")
    ]
    one, other = ([line["figures"]["score"] for line in done["lines"]] for done in runs)
    assert one == pytest.approx(other, rel=1e-9)


def test_a_killed_search_goes_on_to_the_same_trace(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(place)
    words = f"{SCORES['suite']} --evaluations 6"
    whole = run(capsys, tmp_path, words, str(tmp_path / "whole"))
    line = f"{SEARCH} {words} -o {tmp_path / 'killed'} -q"
    trace = tmp_path / "killed" / "evaluations.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "taskvec", *shlex.split(line)], stdout=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not (trace.exists() and trace.read_text().count("\n") >= 2):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    killed = run(capsys, tmp_path, words, str(tmp_path / "killed"))
    kept = [[{**line, "seconds": 0} for line in done["lines"]] for done in (whole, killed)]
    assert kept[0] == kept[1]


def test_errors_of_scores_end_with_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(place)
    cases = (
        ("", 2, "--score: missing, expected what candidates are scored by"),
        ("--score suite.yml", 2, "suite.yml"),
        ("--score suite.yaml --minimise", 2, "--minimise: no score here heeds it; leave it out"),
        ("--score suite.yaml --keep acc>0.5", 2, "--keep: the score gives no figure 'acc'"),
        ("--score suite.yaml --limit 1", 2, "one: 1 validation example, expected two or more"),
        (
            "--score-command 'echo no GPU here >&2; exit 4 # {model}'",
            1,
            "failed with exit status 4: no GPU here",
        ),
    )
    for number, (words, code, message) in enumerate(cases):
        with pytest.raises(SystemExit) as stopped:
            main(shlex.split(f"{SEARCH} {words} -o {tmp_path / str(number)} -q"))
        said = capsys.readouterr().err
        assert (stopped.value.code, message in said) == (code, True), said


def test_a_score_is_named_in_python_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    found = tv.search("recipe.yaml", {"weights.a": (0, 1)}, "suite.yaml", method="grid", evaluations=4)
    assert found.gain >= 0 and found.gain_on_holdout is not None
