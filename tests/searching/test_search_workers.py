"""A search by several workers is that of one process, whatever becomes of the workers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from searching.worlds import make
from taskvec.errors import InputError, TaskvecError

BOTH = {"weights.a": (0.0, 1.5), "weights.b": (-1.0, 1.0)}
JUDGE = """
import os, signal, time
from pathlib import Path

def fit(weights, part):
    total = sum(float(weights[name].double().abs().sum()) for name in weights)
    if total % 1 > 0.8:
        raise ValueError(f"odd: {total}")
    return {"fit": -abs(total - 60.0), "other": total + (part == "holdout")}

def slow(weights):
    time.sleep(0.3)
    return fit(weights, "search")

def deadly(weights):
    try:
        Path(DYING).touch(exist_ok=False)
    except FileExistsError:
        return fit(weights, "search")
    os.kill(os.getpid(), signal.SIGKILL)

def always(weights):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def judge(tmp_path: Path) -> str:
    """A file of functions; ``deadly`` kills the process that first calls it."""
    path = tmp_path / "judge.py"
    path.write_text(JUDGE.replace("DYING", repr(str(tmp_path / "died"))))
    return str(path)


def lines(folder: Path) -> list[dict[str, Any]]:
    """All that is on record, in its order, but for seconds."""
    text = (folder / "evaluations.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": 0} for line in text]


@pytest.mark.parametrize("method", ["grid", "random", "cmaes"])
def test_two_workers_leave_the_trace_of_one_process(
    recipe: Path, judge: str, tmp_path: Path, method: Any
) -> None:
    if method == "cmaes":
        pytest.importorskip("cmaes")
    more: dict[str, Any] = {"method": method, "evaluations": 17}
    one = tv.search(recipe, BOTH, f"{judge}:fit", folder=tmp_path / "one", **more)
    two = tv.search(recipe, BOTH, f"{judge}:fit", folder=tmp_path / "two", workers=2, **more)
    assert lines(tmp_path / "two") == lines(tmp_path / "one")
    assert (two.best.number, two.ended, two.gain_on_holdout) == (
        one.best.number,
        one.ended,
        one.gain_on_holdout,
    )
    assert not (tmp_path / "two" / "scratch").exists()


def test_a_suite_gives_the_same_figures_in_every_worker(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    world = make("encoder", tmp_path / "world")
    given = {
        "base": str(world.base),
        "models": {name: str(path) for name, path in world.tuned.items()},
        "expression": "0.5*a + 0.5*b",
    }
    for workers in (1, 2):
        tv.search(
            given,
            {"weights.a": (0.0, 1.0)},
            str(world.suite),
            method="random",
            evaluations=5,
            folder=tmp_path / str(workers),
            workers=workers,
        )
    assert lines(tmp_path / "1") == lines(tmp_path / "2")


def test_a_candidate_whose_worker_is_killed_is_measured_again(
    recipe: Path, judge: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more: dict[str, Any] = {"method": "grid", "evaluations": 10}
    tv.search(recipe, BOTH, f"{judge}:deadly", folder=tmp_path / "two", workers=2, **more)
    assert "evaluation 0: worker 1 was ended by SIGKILL; measured again, 1 of 3 times" in caplog.text
    tv.search(recipe, BOTH, f"{judge}:deadly", folder=tmp_path / "one", **more)
    assert lines(tmp_path / "two") == lines(tmp_path / "one")


def test_a_candidate_whose_workers_are_always_killed_ends_the_search(recipe: Path, judge: str) -> None:
    with pytest.raises(TaskvecError, match=r"evaluation 0: its worker was ended by SIGKILL, as 3 others did"):
        tv.search(recipe, BOTH, f"{judge}:always", method="random", evaluations=3, workers=2)


def test_what_workers_cannot_have_is_refused_before_they_start(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"workers: the score cannot be handed to other processes"):
        tv.search(recipe, BOTH, lambda weights: 1.0, folder=tmp_path / "run", workers=2)
    with pytest.raises(InputError, match=r"workers: 0, expected 1 or more"):
        tv.search(recipe, BOTH, lambda weights: 1.0, workers=0)
    assert not (tmp_path / "run").exists()


def started(recipe: Path, words: Sequence[str], folder: Path) -> "subprocess.Popen[bytes]":
    """A search by two workers on the command line."""
    vary = [f"--vary={path}={low}..{high}" for path, (low, high) in BOTH.items()]
    command = [sys.executable, "-m", "taskvec", "search", str(recipe), *vary, *words, "-o", str(folder), "-q"]
    return subprocess.Popen(
        [*command, "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=recipe.parent
    )


def children(process: "subprocess.Popen[bytes]") -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, check=False)
    return list(map(int, found.stdout.split()))


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(met: Any, seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_killed_search_ends_its_workers_and_goes_on_to_the_same_trace(
    recipe: Path, judge: str, tmp_path: Path
) -> None:
    words = ["--score", f"{judge}:slow", "--method", "random", "--evaluations", "9"]
    record = tmp_path / "two" / "evaluations.jsonl"
    with started(recipe, words, tmp_path / "two") as process:
        wait_until(lambda: record.exists() and record.read_text().count("\n") >= 3)
        workers = children(process)
        process.kill()
    assert len(workers) == 2
    wait_until(lambda: not any(map(alive, workers)))
    more: dict[str, Any] = {"method": "random", "evaluations": 9}
    tv.search(recipe, BOTH, f"{judge}:slow", folder=tmp_path / "one", **more)
    with started(recipe, words, tmp_path / "two") as process:
        assert process.wait(120) == 0
    assert lines(tmp_path / "two") == lines(tmp_path / "one")


def test_an_interrupted_search_ends_the_commands_of_its_workers(recipe: Path, tmp_path: Path) -> None:
    command = f"echo $$ >> {tmp_path}/pids; test -e {{model}} && sleep 300"
    pids = tmp_path / "pids"
    with started(recipe, ["--score-command", command], tmp_path / "run") as process:
        wait_until(lambda: pids.exists() and bool(pids.read_text().strip()))
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert b"interrupted; the same command goes on where it was" in said
    wait_until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()), 20)
