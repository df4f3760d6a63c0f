"""An experiment on a Ray cluster of two nodes, whose workers are killed now and then, against one process.

``python scripts/scale.py FOLDER EXPERIMENT``: the tables, records and vectors of both have to be the same.
``KILLS`` in the environment says how often a worker is killed, ``SEED`` when. ``tests`` has to be on
``PYTHONPATH``, for its cluster.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from clusters import Cluster, cluster

KILLS, SEED = int(os.environ.get("KILLS", "3")), int(os.environ.get("SEED", "0"))


def main(folder: Path, experiment: Path) -> int:
    """Run both, compare, print a table; the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    one, many = folder / "one", folder / "ray"
    first = seconds_of(command(experiment, one))
    count = len(records(one))
    with cluster(2) as nodes:
        killer = Killer(nodes, many, count)
        second = seconds_of(command(experiment, many, "--ray", nodes.address), killer)
    faults = list(differences(one, many))
    print(f"{'':24}{'seconds':>10}{'cells':>8}{'killed':>8}")
    print(f"{'one process':24}{first:10.1f}{count:8}{'-':>8}")
    print(f"{'Ray, two nodes of a core':24}{second:10.1f}{len(records(many)):8}{killer.done:8}")
    print(f"one process takes {first / second:.2f} times as long")
    for fault in faults:
        print(f"DIFFERENT: {fault}")
    if killer.done < KILLS:
        faults.append("kills")
        print(f"only {killer.done} of {KILLS} workers were killed")
    print("the tables, records and vectors are the same" if not faults else "FAILED")
    return bool(faults)


def command(experiment: Path, output: Path, *options: str) -> list[str]:
    """What runs the experiment anew."""
    given = [str(experiment), "-o", str(output), "--force", *options]
    return [sys.executable, "-m", "taskvec", "run", *given]


class Killer:
    """Kills a worker whenever a number of records is there that was drawn before."""

    def __init__(self, nodes: Cluster, folder: Path, count: int) -> None:
        draw = random.Random(SEED)
        self._nodes, self._path, self._draw = nodes, folder / "records.jsonl", draw
        self._due = sorted(draw.sample(range(1, max(KILLS + 1, count * 3 // 4)), KILLS))
        self.done = 0

    def __call__(self) -> None:
        """Kill one, if it is time."""
        there = self._path.read_bytes().count(b"\n") if self._path.exists() else 0
        if self._due and there >= self._due[0] and (workers := self._nodes.workers()):
            os.kill(self._draw.choice(workers), signal.SIGKILL)
            self._due.pop(0)
            self.done += 1


def seconds_of(command: list[str], meanwhile: Callable[[], None] = lambda: None) -> float:
    """How long a command takes."""
    begun = time.monotonic()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            meanwhile()
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return time.monotonic() - begun


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same in two run folders, but for times."""
    found = []
    if records(one) != records(other):
        keys = [key for key, value in records(one).items() if records(other).get(key) != value]
        found.append(f"records.jsonl ({len(keys)} records)")
    if tables(one) != tables(other):
        found.append("results.json")
    for path in sorted(one.glob("vectors/**/*.safetensors")):
        there = other / path.relative_to(one)
        if not there.exists() or there.read_bytes() != path.read_bytes():
            found.append(str(path.relative_to(one)))
    return found


def records(folder: Path) -> dict[str, object]:
    """Results by key."""
    lines = map(json.loads, (folder / "records.jsonl").read_text().splitlines())
    return {line["key"]: without_times(line["result"]) for line in lines}


def tables(folder: Path) -> object:
    """What tables and figures are made of."""
    return without_times(json.loads((folder / "results.json").read_text()))


def without_times(content: object) -> object:
    """Plain data without what a clock said."""
    if isinstance(content, dict):
        clock = ("seconds", "date", "finished", "created")
        return {k: without_times(v) for k, v in content.items() if not any(word in k for word in clock)}
    return list(map(without_times, content)) if isinstance(content, list) else content


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
