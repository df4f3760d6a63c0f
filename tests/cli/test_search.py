"""``taskvec search``: what it prints, writes and refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from searching.bowls import save_world
from taskvec.cli import main

SCORE = """
import time
from pathlib import Path

def fit(weights):
    time.sleep(float(Path(__file__).with_name("delay").read_text()))
    return {"size": -sum(float(value.abs().sum()) for value in weights.values()), "tensors": len(weights)}

def ill(weights):
    return float("nan")
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli-search")
    save_world(folder)
    (folder / "score.py").write_text(SCORE)
    (folder / "delay").write_text("0")
    return folder


def words(world: Path, out: Path, *more: str) -> list[str]:
    given = [
        "search",
        str(world / "recipe.yaml"),
        "--score",
        f"{world / 'score.py'}:fit",
        "-o",
        str(out),
        "-q",
    ]
    return [*given, "--vary", "weights.*=-1..1.5", "--method", "random", *more]


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_search_ends_with_a_recipe_a_report_and_figures(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(words(world, out, "--evaluations", "8")) == 0
    shown = capsys.readouterr().out
    assert "weights.a" in shown and "Gain on what the search saw" in shown and "best.yaml" in shown
    assert {"best.yaml", "report.md", "results.json", "evaluations.jsonl"} <= {p.name for p in out.iterdir()}
    assert len(list((out / "figures").glob("*.png"))) == 2
    assert run(["merge", str(out / "best.yaml"), "-o", str(tmp_path / "merged"), "-q"]) == 0
    capsys.readouterr()
    assert run(words(world, out, "--evaluations", "8", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((out / "results.json").read_text())
    assert found["best"]["objective"] >= found["start"]["objective"] and found["evaluations"] == 8


@pytest.mark.parametrize(
    ("more", "code", "complaint"),
    [
        (["--vary", "scale=0"], 2, "--vary scale: '0', expected a range LOW..HIGH"),
        (["--vary", "weights.a=0..1"], 2, "'weights.a' is varied twice"),
        (["--vary", "scal=0..1"], 2, "--vary scal: no number of"),
        (["--time", "soon"], 2, "expected a time such as 90s, 30m or 2h"),
        (["--points", "3"], 2, "--points: of --method grid"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    code: int,
    complaint: str,
) -> None:
    assert run(words(world, tmp_path / "run", *more)) == code
    said = capsys.readouterr().err.strip()
    assert complaint in said and "\n" not in said
    assert not (tmp_path / "run").exists()


def test_a_recipe_with_ranges_is_none_to_merge(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranged = world / "ranged.yaml"
    ranged.write_text((world / "recipe.yaml").read_text() + "scale: {search: [0, 1]}\n")
    assert run(["merge", str(ranged), "-o", str(tmp_path / "out")]) == 2
    assert (
        "scale: a range to be searched, expected a number; find it with taskvec search"
        in capsys.readouterr().err
    )


def test_a_start_that_cannot_be_scored_ends_with_1(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace(":fit", ":ill") for word in words(world, tmp_path / "run")]
    assert run(given) == 1
    assert "the recipe's own numbers: score is nan" in capsys.readouterr().err


def test_a_command_scores_models_written_for_it(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sh = world / "score.sh"
    sh.write_text('printf \'{"bytes": %s, "part": %s}\' $(wc -c < "$1/model.safetensors") ${#2}\n')
    out = tmp_path / "run"
    given = [
        str(world / "recipe.yaml"),
        "--score-command",
        f"sh {sh} {{model}} {{part}}",
        "--keep",
        "bytes<1.1x",
    ]
    more = ["--vary", "weights.a=0..1", "--method", "random", "--evaluations", "3"]
    assert run(["search", *given, *more, "-o", str(out), "-q", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["holdout"]["best"]["figures"]["part"] == 7 and found["best"]["figures"]["part"] == 6
    assert not (out / "scratch").exists()


def test_one_that_was_killed_goes_on_to_the_same_end(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed between two evaluations or within one: the lines that are there stay, and the rest follow."""
    assert run(words(world, tmp_path / "whole", "--evaluations", "10")) == 0
    (world / "delay").write_text("0.1")
    out = tmp_path / "run"
    command = [sys.executable, "-m", "taskvec", *words(world, out, "--evaluations", "10")]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    lines = out / "evaluations.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not lines.exists() or lines.read_text().count("\n") < 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (world / "delay").write_text("0")
    before = lines.read_text().splitlines()
    assert 3 <= len(before) < 10
    assert run(words(world, out, "--evaluations", "10")) == 0
    after = lines.read_text().splitlines()
    assert after[: len(before)] == before
    expected = (tmp_path / "whole" / "evaluations.jsonl").read_text().splitlines()

    def measured(line: str) -> dict[str, object]:
        return {key: value for key, value in json.loads(line).items() if key != "seconds"}

    assert list(map(measured, after)) == list(map(measured, expected))
    assert (out / "best.yaml").read_text() == (tmp_path / "whole" / "best.yaml").read_text()
