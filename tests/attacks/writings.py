"""Every command that writes, on inputs of its own, and what it must have written in the end."""

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from attacks.learning import EXPERIMENT, suites
from forking import Forks
from taskvec.vectors import TaskVector
from taskvec.weights import save_weights

Files = dict[str, bytes]

RULED = {
    "base": "base",
    "vectors": {"a": "a.safetensors"},
    "models": {"b": "b"},
    "rule": "ties",
    "scale": 0.5,
}
SLICED = {
    "merge_method": "passthrough",
    "slices": [
        {"sources": [{"model": "base", "layer_range": [0, 2]}]},
        {"sources": [{"model": "a", "layer_range": [1, 3], "parameters": {"scale": 0.5}}]},
    ],
}

SIZE = "def size(weights):\n    return sum(float(weights[name].abs().sum()) for name in weights)\n"


@dataclass(frozen=True)
class Writing:
    """A command that writes ``out``.

    Attributes:
        again: the options that let it go on, or start anew, after an end too soon.
        kept: which files of a run folder must be the same; all of them for others.
    """

    command: str
    out: str
    again: str = "--force"
    kept: tuple[str, ...] = ("**/*",)


def one_file(command: str) -> Writing:
    return Writing(f"{command} -o out.safetensors -q", "out.safetensors")


def in_shards(command: str) -> Writing:
    return Writing(f"{command} -o out --max-shard-gb 4e-5 -q", "out", "--force --resume")


WRITINGS: dict[str, Writing] = {
    "apply": in_shards('apply base -v a=a.safetensors -v b=b.safetensors -e "0.4*a - b"'),
    "apply ties": one_file("apply base -v a=a.safetensors -v b=b.safetensors --rule ties"),
    "merge ties": in_shards("merge ties.yaml"),
    "merge slices": in_shards("merge slices.yaml"),
    "diff": one_file("diff base a"),
    "diff in shards": Writing("diff base a -o out --max-shard-gb 4e-5 -q", "out"),
    "diff as adapter": Writing("diff base a --rank 2 -o out -q", "out"),
    "apply as adapter": Writing("apply base -v a=a.safetensors --as-adapter --rank 2 -o out -q", "out"),
    **{
        f"compress {form.split()[0]}": one_file(f"compress a.safetensors --form {form}")
        for form in ("bf16", "sparse --density 0.2", "low-rank --rank 2", "int8", "1-bit")
    },
    "mask emr": one_file("mask -v a=a.safetensors -v b=b.safetensors"),
    "mask tall": one_file("mask -v a=a.safetensors -v b=b.safetensors --method tall"),
    "stats": Writing("stats bert -s suite.yaml -t pets --examples 4 -o out -q", "out"),
    "train": Writing(
        "train -m bert -s suite.yaml -t pets --steps 2 --batch-size 4 --lr 1e-3 -o out.safetensors -q",
        "out.safetensors",
        "--force --resume",
    ),
    "search": Writing(
        "search ties.yaml --vary scale=0..1 --vary weights.*=0..2 --method random --evaluations 3 "
        "--score size.py:size -o out -q",
        "out",
        "",
        ("best.yaml",),
    ),
    "run": Writing("run tiny.yaml -o out -q", "out", "", ("vectors/**/*.safetensors", "results.json")),
}


def files(folder: Path, patterns: tuple[str, ...] = ("**/*",)) -> Files:
    """The files of a folder that match, or a file under its own name; none if there is nothing."""
    if folder.is_file():
        return {folder.name: folder.read_bytes()}
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found)}


class Bench:
    """A folder of inputs, and the commands that write beside them."""

    def __init__(self, place: Path, forks: Forks) -> None:
        self.place, self.forks = place, forks
        suites(place)
        shapes = {f"model.layers.{i}.mlp.weight": (60, 200) for i in range(3)} | {"model.norm.weight": (7,)}
        draw = [torch.Generator().manual_seed(seed) for seed in range(3)]
        states = [{key: torch.randn(shape, generator=one) for key, shape in shapes.items()} for one in draw]
        for name, step in zip(("base", "a", "b"), states, strict=True):
            moved = {key: states[0][key] + (0.1 * step[key] if name != "base" else 0) for key in shapes}
            save_weights(moved, place / name, max_shard_size=5e4)
            (place / name / "config.json").write_text(json.dumps({"num_hidden_layers": 3}))
        for name in "ab":
            TaskVector.between(place / "base", place / name).save(place / f"{name}.safetensors", task=name)
        for name, document in (("ties", RULED), ("slices", SLICED), ("tiny", EXPERIMENT)):
            (place / f"{name}.yaml").write_text(yaml.safe_dump(document))
        (place / "size.py").write_text(SIZE)
        self.inputs = files(place)
        self._expected: dict[str, Files] = {}
        self._seconds: dict[str, float] = {}

    def run(self, words: str, *, send: int = 0, after: float = 0, **trouble: object) -> int:
        """The exit code of a command."""
        return self.forks(shlex.split(words), trouble, send, after, place=self.place)

    def expected(self, name: str) -> Files:
        """What a command writes when nothing disturbs it."""
        if name not in self._expected:
            self.clear()
            writing = WRITINGS[name]
            self.forks(shlex.split(writing.command), place=self.place, learn=True)
            self.clear()
            assert self.run(writing.command) == 0, self.forks.said
            self._seconds[name] = self.forks.ended.seconds
            self._expected[name] = self.written(name)
            self.clear()
        return self._expected[name]

    def seconds(self, name: str) -> float:
        """How long it takes."""
        self.expected(name)
        return self._seconds[name]

    def written(self, name: str, place: Path | None = None) -> Files:
        """What is there of its output."""
        writing = WRITINGS[name]
        found = files((place or self.place) / writing.out, writing.kept)
        # What is hidden is work that was not finished, which the next run to the same output clears.
        return {file: data for file, data in found.items() if not file.startswith(".") and "/." not in file}

    def clear(self) -> None:
        """Take away what is no input."""
        for path in self.place.iterdir():
            if not any(name.split("/")[0] == path.name for name in self.inputs):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def check_inputs(self) -> None:
        """Nothing that was given has changed."""
        now = files(self.place)
        assert {name: now.get(name) for name in self.inputs} == self.inputs

    def check_whole_or_absent(self, name: str, place: Path | None = None) -> None:
        """The output is not there, or is the right one; a run's folder holds only what is right."""
        expected, found = self.expected(name), self.written(name, place)
        if WRITINGS[name].kept == ("**/*",):
            # Statistics are files of their own, one after the other; a model is a folder, whole or not there.
            whole = found in ({}, expected) or (name == "stats" and found.items() <= expected.items())
            assert whole, f"{name}: {sorted(found)} differ from the right ones"
        else:
            vectors = {file for file in found if file.endswith(".safetensors")}
            assert all(found[file] == expected.get(file) for file in vectors), f"{name}: a wrong vector"

    def check_finished(self, name: str, place: Path | None = None) -> None:
        """Once more without trouble, the output is the right one."""
        writing, base = WRITINGS[name], place or self.place
        command = moved(writing.command, place)
        assert self.run(f"{command} {writing.again}") == 0, f"{name}: {self.forks.said}"
        assert self.written(name, place) == self.expected(name), f"{name}: other bytes when run again"
        hidden = [path.name for path in base.iterdir() if path.name.startswith(f".{writing.out}")]
        assert not hidden, f"{name}: {hidden} left behind"


def moved(command: str, place: Path | None) -> str:
    """The same command with its output in another folder."""
    return command if place is None else command.replace("-o out", f"-o {place}/out")
