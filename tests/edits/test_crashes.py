"""Edits that are killed, interrupted or run out of disk: never a folder that loads and is wrong."""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import save_file

from effort import EFFORT
from forking import Forks, Trouble
from taskvec.vectors import EditedWeights, TaskVector, apply, combine
from taskvec.weights import open_weights, save_weights

MOMENTS = 2 * EFFORT
"""Random moments, or sizes, of each kind of trouble."""

Files = dict[str, bytes]
RESUME = "--resume"
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks(tmp_path_factory.mktemp("log"))
    yield server
    server.close()


def read(folder: Path) -> Files:
    """Every file below a folder; none if there is no folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


class World:
    """A base, two edits of it that differ in every file, and a folder where one of them is to be."""

    def __init__(self, place: Path, forks: Forks) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = {**{f"layer.{i}.weight": (60, 1000) for i in range(6)}, "head.bias": (7,)}
        draw = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        self.base = save_weights(draw, place / "base", max_shard_size=5e5)
        (self.base / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}]')
        (self.base / "1_Pooling").mkdir()
        (self.base / "1_Pooling" / "config.json").write_text("{}")
        steps = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        TaskVector.from_tensors(steps, self.base).save(place / "v.safetensors")
        self.recipe = place / "recipe.yaml"
        self.recipe.write_text("base: base\nvectors: {v: v.safetensors}\n")
        self._forks = forks
        self.place = place / "work"
        self.place.mkdir()
        self.out = self.place / "out"
        self.old = self._made(self.arguments(scale=-2.0, shard=2.6e-4))
        started = time.perf_counter()
        self.new = self._made(self.arguments())
        self.seconds = time.perf_counter() - started
        assert set(self.old) - set(self.new), "the old output has files of its own"

    def arguments(self, *flags: str, scale: float = 0.5, shard: float = 5e-4) -> list[str]:
        """The command that writes an edit."""
        words = [
            "merge",
            self.recipe,
            "-o",
            self.out,
            "--scale",
            scale,
            "--max-shard-gb",
            shard,
            "-q",
            *flags,
        ]
        return [str(word) for word in words]

    def _made(self, arguments: list[str]) -> Files:
        assert self._forks(arguments) == 0, self._forks.said
        files = read(self.out)
        shutil.rmtree(self.out)
        return files

    def prepare(self, *, replacing: bool) -> list[str]:
        """An empty folder, or one with the old output; the options that the command needs."""
        shutil.rmtree(self.place)
        self.place.mkdir()
        for name, content in self.old.items() if replacing else ():
            path = self.out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return ["--force"] if replacing else []

    def check(self, *, replacing: bool) -> None:
        """The output is the old one or the new one, whole, or not there; what else there is, is hidden."""
        allowed = [{}, self.new, *([self.old] if replacing else [])]
        assert read(self.out) in allowed
        assert all(path == self.out or path.name.startswith(".") for path in self.place.iterdir())

    def finish(self, *flags: str) -> None:
        """Another run gives the same bytes and leaves nothing else."""
        assert self._forks(self.arguments(*flags)) == 0, self._forks.said
        assert read(self.out) == self.new
        assert list(self.place.iterdir()) == [self.out]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> World:
    return World(tmp_path_factory.mktemp("world"), forks)


by_threads_and_processes = pytest.mark.parametrize(
    "trouble", [{}, {"share_out": 2}], ids=["threads", "processes"]
)
fresh_and_replacing = pytest.mark.parametrize("replacing", [False, True], ids=["fresh", "replacing"])


@fresh_and_replacing
def test_dying_before_any_change_of_the_disk_never_shows_half_an_output(
    replacing: bool, world: World, forks: Forks
) -> None:
    code, number = KILLED, 0
    while code == KILLED:
        number += 1
        force = world.prepare(replacing=replacing)
        code = forks(world.arguments(*force), {"die_before_change": number})
        world.check(replacing=replacing)
        world.finish("--force", *((RESUME,) if number % 2 else ()))
    assert code == 0 and number > 10


@fresh_and_replacing
@by_threads_and_processes
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_the_end_at_any_moment_never_shows_half_an_output(
    sent: signal.Signals, trouble: Trouble, replacing: bool, world: World, forks: Forks
) -> None:
    draw = Random(f"{sent}{replacing}{trouble}")
    for number in range(MOMENTS):
        force = world.prepare(replacing=replacing)
        code = forks(world.arguments(*force), trouble, sent, draw.uniform(0, world.seconds))
        # An interrupt before the command begins, after its end, or in a hook of a fork is Python's own.
        assert code in ((0, KILLED) if sent is signal.SIGKILL else (0, 130, -sent)), forks.said
        assert code != 130 or "Traceback" not in forks.said
        world.check(replacing=replacing)
        world.finish("--force", *((RESUME,) if number % 2 else ()))


@fresh_and_replacing
@by_threads_and_processes
@pytest.mark.parametrize("limit", ["fill_after", "limit_files"])
def test_a_disk_that_fills_up_is_one_line_and_never_shows_half_an_output(
    limit: str, trouble: Trouble, replacing: bool, world: World, forks: Forks
) -> None:
    sizes = list(map(len, world.new.values()))
    room = sum(sizes) if limit == "fill_after" else max(sizes)
    draw = Random(f"{limit}{replacing}{trouble}")
    for number in range(MOMENTS):
        force = world.prepare(replacing=replacing)
        assert forks(world.arguments(*force), {**trouble, limit: draw.randrange(room - 5000)}) == 1
        assert forks.said.count("\n") == 1 and "out: could not be written" in forks.said
        assert read(world.out) == (world.old if replacing else {})
        world.check(replacing=replacing)
        world.finish("--force", *((RESUME,) if number % 2 else ()))


def test_what_another_edit_left_is_never_resumed(world: World, forks: Forks) -> None:
    draw = Random(0)
    for _ in range(MOMENTS):
        world.prepare(replacing=False)
        other = world.arguments(scale=0.25)
        forks(other, send=signal.SIGKILL, after=draw.uniform(0, world.seconds))
        world.finish("--force", RESUME)


def test_an_edit_that_is_killed_and_resumed_over_and_over_ends_with_the_same_bytes(
    world: World, forks: Forks
) -> None:
    world.prepare(replacing=False)
    number = 0
    while not world.out.exists():
        number += 1
        assert forks(world.arguments(RESUME), {"die_before_change": number}) in (0, KILLED)
        world.check(replacing=False)
    assert number > 10 and read(world.out) == world.new


def test_a_single_file_is_there_whole_or_not_at_all(world: World, forks: Forks) -> None:
    single = world.place / "out.safetensors"
    command = [str(single) if word == str(world.out) else word for word in world.arguments()]
    world.prepare(replacing=False)
    assert forks(command) == 0
    whole, code, number = single.read_bytes(), KILLED, 0
    while code == KILLED:
        number += 1
        world.prepare(replacing=False)
        code = forks(command, {"die_before_change": number})
        assert not single.exists() or single.read_bytes() == whole
        again = forks([*command, RESUME, "--force"])
        assert again == 0 and single.read_bytes() == whole
        assert list(world.place.iterdir()) == [single]


def written_at(folder: Path) -> dict[str, int]:
    """When each shard was last written to."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def test_another_process_resumes_with_the_shards_that_were_finished(world: World, forks: Forks) -> None:
    world.prepare(replacing=False)
    assert forks(world.arguments(), {"fill_after": sum(map(len, world.new.values())) * 5 // 6}) == 1
    assert "finished shards wait in .out.partial, --resume" in forks.said
    before = written_at(world.place / ".out.partial" / "out")
    world.finish(RESUME)
    # Two of three are whole; the second counts if its worker was heard before the one that failed.
    assert 1 <= len(before.items() & written_at(world.out).items()) <= 2


def test_a_finished_shard_that_was_damaged_since_is_written_again(world: World, forks: Forks) -> None:
    world.prepare(replacing=False)
    assert forks(world.arguments(), {"fill_after": sum(map(len, world.new.values())) * 5 // 6}) == 1
    shard = world.place / ".out.partial" / "out" / "model-00001-of-00003.safetensors"
    with shard.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"xyz")
    world.finish(RESUME)


def interrupt(label: str, done: int, total: int, **facts: float) -> None:
    """A watcher that loses patience after four tensors."""
    if done == 4:
        raise KeyboardInterrupt


def test_tensors_in_memory_that_changed_since_are_not_mixed_with_finished_shards(tmp_path: Path) -> None:
    state = {f"layer.{i}": torch.full((100,), float(i)) for i in range(6)}
    with pytest.raises(KeyboardInterrupt):
        save_weights(state, tmp_path / "out", max_shard_size=400, watch=interrupt)
    for tensor in state.values():
        tensor.add_(100)
    written = open_weights(save_weights(state, tmp_path / "out", max_shard_size=400, resume=True))
    assert all(torch.equal(written[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("rule", ["sum", "ties", "dare+ties", "tsv", "own scales"])
def test_inputs_that_changed_since_are_not_mixed_with_finished_shards(rule: str, tmp_path: Path) -> None:
    base = save_weights({f"layer.{i}": torch.zeros(10, 10) for i in range(6)}, tmp_path / "base.safetensors")

    def edit(value: float) -> EditedWeights:
        tuned = {name: torch.full((10, 10), value) for name in open_weights(base)}
        path = save_weights(tuned, tmp_path / "tuned.safetensors", force=True)
        vector = TaskVector.between(base, path)
        if rule == "own scales":
            return apply(base, (2 * vector).scaled({"layer.0": 0.5}))
        return apply(base, combine(rule, [vector, 2 * vector]))

    with pytest.raises(KeyboardInterrupt):
        save_weights(edit(1.0), tmp_path / "out", max_shard_size=400, watch=interrupt)
    changed = edit(-7.0)
    written = open_weights(save_weights(changed, tmp_path / "out", max_shard_size=400, resume=True))
    assert all(torch.equal(written[name], tensor) for name, tensor in changed.items())


def calls_of_edit(rule: str, place: Path, tensors: int) -> int:
    """Calls of functions, in all threads, while so many tiny tensors of one file are edited."""
    names = [f"layers.{i // 16}.experts.{i % 16}.weight" for i in range(tensors)]
    base, tuned = place / f"base{tensors}.safetensors", place / f"tuned{tensors}.safetensors"
    for path, value in ((base, 0.0), (tuned, 1.0)):
        save_file({name: torch.full((4,), value) for name in names}, path)
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    threading.setprofile(count)
    sys.setprofile(count)
    try:
        vector = TaskVector.between(base, tuned)
        save_weights(apply(base, combine(rule, [vector, 2 * vector])), place / f"out{tensors}")
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return calls


@pytest.mark.parametrize("rule", ["mean", "sce", "ties"])
def test_the_cost_of_many_small_tensors_grows_with_their_number_not_its_square(
    rule: str, tmp_path: Path
) -> None:
    _, few, many = (calls_of_edit(rule, tmp_path, tensors) for tensors in (2, 30, 300))  # the first imports
    assert many < 1.5 * 10 * few
