"""A model written in parts by several processes that are killed, again and again: the bytes of one process.

``PYTHONPATH=src:tests python -m attacks.parts FOLDER --gigabytes 1.3 --parts 8 --workers 3 --kills 50``
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
import yaml

from taskvec.weights import save_weights

TENSORS = 24


def make_inputs(place: Path, nbytes: int) -> None:
    """A base and a model made of it, in bfloat16, and a recipe for both."""
    rows = max(4, nbytes // (2 * TENSORS * 1024))
    draw = torch.Generator().manual_seed(0)
    base = {
        f"model.layers.{i}.mlp.weight": torch.randn(rows, 1024, generator=draw).bfloat16()
        for i in range(TENSORS)
    }
    save_weights(base, place / "base")
    tuned = {name: value + 0.01 * value.roll(1) for name, value in base.items()}
    save_weights(tuned, place / "tuned")
    for name in ("base", "tuned"):
        (place / name / "config.json").write_text(f'{{"num_hidden_layers": {TENSORS}}}')
    recipe = {"base": "base", "models": {"tuned": "tuned"}, "rule": "dare", "parameters": {"density": 0.5}}
    (place / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "max_shard_gb": nbytes / 16e9}))


def command(place: Path, out: Path, *more: str) -> list[str]:
    """The command that writes the model, or a part of it."""
    words = [sys.executable, "-m", "taskvec", "merge", place / "recipe.yaml", "-o", out, "-q", *more]
    return list(map(str, words))


def digests(folder: Path) -> dict[str, str]:
    """What a folder holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


class Crowd:
    """Processes that write parts, of which one is killed now and then."""

    def __init__(self, place: Path, parts: int, workers: int, draw: Random) -> None:
        self.place, self.out, self.parts, self.draw = place, place / "work" / "out", parts, draw
        self.workers, self.killed, self.codes = workers, 0, list[int]()
        self.waiting = draw.sample(range(1, parts + 1), parts)
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Keep all workers busy."""
        while self.waiting and len(self.running) < self.workers:
            number = self.waiting.pop(0)
            words = command(self.place, self.out, "--part", f"{number}/{self.parts}")
            self.running[number] = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def collect(self) -> None:
        """Take note of those that ended."""
        for number, process in list(self.running.items()):
            if process.poll() is not None:
                _, errors = process.communicate()
                assert process.returncode in (0, -9), errors.decode()
                del self.running[number]
                if process.returncode:
                    self.waiting.append(number)

    def kill(self) -> None:
        """Kill one with signal 9."""
        number = self.draw.choice(sorted(self.running))
        self.running[number].kill()
        self.killed += 1

    def run(self, kills: int, seconds: float) -> None:
        """Write the model, and kill so often, up to so many seconds after the last time."""
        due = time.monotonic() + self.draw.uniform(0, seconds)
        while self.waiting or self.running or self.killed < kills:
            if not (self.waiting or self.running):  # all were done before enough were killed
                assert self.out.exists()
                shutil.rmtree(self.out)
                self.waiting = self.draw.sample(range(1, self.parts + 1), self.parts)
            self.start()
            if self.killed < kills and time.monotonic() > due:
                self.kill()
                due = time.monotonic() + self.draw.uniform(0, seconds)
            time.sleep(0.01)
            self.collect()

    def end(self) -> None:
        """Leave no process behind."""
        for process in self.running.values():
            process.kill()
            process.communicate()


def survive(place: Path, *, nbytes: int, parts: int, workers: int, kills: int, seed: int = 0) -> None:
    """Check that a model whose writers are killed has the bytes of one process."""
    make_inputs(place, nbytes)
    begun = time.monotonic()
    subprocess.run(command(place, place / "one" / "out"), check=True, stdout=subprocess.DEVNULL)
    alone = time.monotonic() - begun
    crowd = Crowd(place, parts, workers, Random(seed))
    try:
        begun = time.monotonic()
        crowd.run(kills, alone / 4)
        sys.stdout.write(
            f"one process {alone:.1f} s; {kills} kills, {time.monotonic() - begun:.1f} s in all\n"
        )
    finally:
        crowd.end()
    assert digests(crowd.out) == digests(place / "one" / "out")
    assert list(crowd.out.parent.iterdir()) == [crowd.out], "something is left behind"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.3)
    for name, default in (("parts", 8), ("workers", 3), ("kills", 50), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(arguments)
    survive(
        given.folder,
        nbytes=int(given.gigabytes * 1e9),
        parts=given.parts,
        workers=given.workers,
        kills=given.kills,
        seed=given.seed,
    )
    sys.stdout.write("the same bytes\n")


if __name__ == "__main__":
    main()
