"""Workers, blocks and memory change no bit; a worker that dies takes the edit with it and nothing else."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from threading import Lock, get_ident
from typing import Any

import pytest
import torch
from torch import Tensor

from taskvec.errors import CorruptFile, NonFinite, TaskvecError
from taskvec.vectors import TaskVector, apply, combine
from taskvec.weights import Weights, blocks, open_weights, save_weights, streaming
from taskvec.weights.blocks import TensorSpec, row_blocks, rows_of, rows_shape

SHAPES = {
    "wide": (40, 300),
    "experts": (3, 20, 50),
    "long": (7001,),
    "one": (),
    "none": (0, 5),
    "row": (1, 900),
}
HOWS: list[dict[str, Any]] = [{"threads": 1}, {"threads": 4}, {"processes": 3}]


def state(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {**drawn, "ids": torch.arange(12).reshape(3, 4)}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A base and three fine-tuned models in bfloat16, with many equal entries; read in small blocks."""
    base = state(0)
    made = [base, *({n: t + state(seed, 0.1)[n] if t.is_floating_point() else t for n, t in base.items()}
                    for seed in (1, 2, 3))]  # fmt: skip
    half = [{n: t.bfloat16() if t.is_floating_point() else t for n, t in one.items()} for one in made]
    paths = [save_weights(one, tmp_path / f"model{n}") for n, one in enumerate(half)]
    monkeypatch.setattr(blocks, "BLOCK", 500)
    return paths


@pytest.mark.parametrize("rule", ["sum", "ties", "dare+ties", "tsv", "model_stock", "metagpt", "della+sce"])
def test_workers_of_any_kind_and_number_write_the_same_bytes(
    rule: str, models: list[Path], tmp_path: Path
) -> None:
    written = []
    for how in HOWS:
        base = open_weights(models[0])
        vectors = [TaskVector.between(base, path) for path in models[1:]]
        edited = apply(base, combine(rule, vectors), 0.7)
        out = tmp_path / "-".join(map(str, how.items()))
        save_weights(edited, out, max_shard_size=30_000, **how)
        written.append({file.name: file.read_bytes() for file in out.iterdir()})
        found = open_weights(out)
        assert json.loads((out / "taskvec.json").read_text())["fingerprint"] == found.fingerprint()
        assert len(list(out.glob("*.safetensors"))) > 1
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_fingerprints_of_inputs_come_with_the_pass_that_reads_them(
    how: dict[str, Any], models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned = open_weights(models[0]), open_weights(models[1])
    for one in (base, tuned):
        one.fingerprint_while_reading()
    save_weights(apply(base, 0.5 * TaskVector.between(base, tuned)), tmp_path / "out", **how)
    expected = [open_weights(path).fingerprint() for path in models[:2]]

    def read_again(name: str, rows: slice | None) -> Tensor:
        assert name == "ids", "a tensor that the edit has read is read again"
        return torch.arange(12).reshape(3, 4)

    for one in (base, tuned):
        monkeypatch.setattr(one, "_read", read_again)
    assert [base.fingerprint(), tuned.fingerprint()] == expected


class Odd(Weights):
    """Weights of which one tensor is trouble."""

    def __init__(self, trouble: Callable[[], Tensor], *files: Path) -> None:
        specs = {f"layer.{n}": TensorSpec((50, 50), torch.float32) for n in range(6)}
        super().__init__("odd", specs, "odd", files=files)
        self._trouble = trouble

    def _read(self, name: str, rows: slice | None) -> Tensor:
        return rows_of(self._trouble() if name == "layer.3" else torch.ones(50, 50), rows)


def nan() -> Tensor:
    return torch.ones(50, 50).index_fill(1, torch.tensor([4]), float("nan"))


def corrupt() -> Tensor:
    raise CorruptFile("odd: 'layer.3' ends early")


def die() -> Tensor:
    time.sleep(0.5)  # for what comes first to be finished
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_what_goes_wrong_in_a_worker_is_said_and_nothing_is_left(how: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(NonFinite, match=r"odd: 'layer.3' holds 50 values"):
        save_weights(Odd(nan), tmp_path / "out", **how)
    with pytest.raises(CorruptFile, match=r"'layer.3' ends early"):
        save_weights(Odd(corrupt), tmp_path / "out", **how)
    assert not list(tmp_path.iterdir())
    kept = save_weights(Odd(nan), tmp_path / "out", allow_nonfinite=True, **how)
    assert open_weights(kept)["layer.3"].isnan().sum() == 50


def test_a_worker_that_is_killed_ends_the_edit(tmp_path: Path) -> None:
    with pytest.raises(TaskvecError, match="a worker ended with code -9"):
        save_weights(Odd(die), tmp_path / "out", processes=2)
    assert not list(tmp_path.iterdir())


def test_what_was_finished_when_a_worker_was_killed_waits_for_another_run(tmp_path: Path) -> None:
    with pytest.raises(TaskvecError, match=r"ended with code -9.*; finished shards wait in \.out.*--resume"):
        save_weights(Odd(die), tmp_path / "out", processes=2, max_shard_size=15_000)
    read = Counted()
    save_weights(read, tmp_path / "out", resume=True, max_shard_size=15_000)
    assert "layer.0" not in read.names and len(open_weights(tmp_path / "out")) == 6


class Counted(Odd):
    """The same weights without trouble, which note what is read."""

    def __init__(self) -> None:
        super().__init__(lambda: torch.ones(50, 50))
        self.names: set[str] = set()

    def _read(self, name: str, rows: slice | None) -> Tensor:
        self.names.add(name)
        return super()._read(name, rows)


def test_an_input_that_is_written_to_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "input"
    file.write_text("before")

    def meddle() -> Tensor:
        file.write_text("afterwards")
        return torch.ones(50, 50)

    with pytest.raises(CorruptFile, match=r"input: was written to while it was read; run again"):
        save_weights(Odd(meddle, file), tmp_path / "out", max_shard_size=15_000)
    assert list(tmp_path.iterdir()) == [file]


class Counting(Weights):
    """Weights that count how many of their tensors, had whole, are worked on at a time."""

    splits = False

    def __init__(self) -> None:
        super().__init__(
            "counting", {f"w{n}": TensorSpec((100,), torch.float32) for n in range(12)}, "counting"
        )
        self.now = self.most = 0
        self._lock = Lock()

    def _read(self, name: str, rows: slice | None) -> Tensor:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        made = torch.ones(100) * sum(torch.randn(200, 200).sum().item() * 0 for _ in range(20))
        with self._lock:
            self.now -= 1
        return made


@pytest.mark.parametrize(("memory", "most"), [(1e6, 4), (800, 2), (400, 1), (1, 1)])
def test_memory_decides_how_many_are_at_work(memory: float, most: int, tmp_path: Path) -> None:
    weights = Counting()
    save_weights(weights, tmp_path / "out", threads=4, memory=memory)
    assert 1 <= weights.most <= most


@pytest.mark.parametrize("shape", SHAPES.values())
def test_blocks_are_the_rows_of_a_tensor_in_order(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 120)
    tensor = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    parts = [rows_of(tensor, rows) for rows in row_blocks(shape)]
    assert [block.shape for block in parts] == [rows_shape(shape, rows) for rows in row_blocks(shape)]
    assert torch.equal(torch.cat([block.reshape(-1) for block in parts]), tensor.reshape(-1))
    assert all(block.numel() <= max(120, shape[-1] if len(shape) > 1 else 1) for block in parts)


class Measuring(Weights):
    """Weights that note which worker reads which tensor."""

    def __init__(self, rows: dict[str, int]) -> None:
        specs = {name: TensorSpec((number, 50), torch.float32) for name, number in rows.items()}
        super().__init__("measuring", specs, "measuring")
        self.readers: dict[str, set[int]] = {name: set() for name in specs}
        self.names: list[str] = []

    def _read(self, name: str, rows: slice | None) -> Tensor:
        self.readers[name].add(get_ident())
        self.names.append(name)
        time.sleep(0.001)
        return rows_of(torch.ones(self.spec(name).shape), rows)


def test_a_tensor_is_one_workers_unless_it_is_a_large_part_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 500)
    monkeypatch.setattr(streaming, "SPAN", 4000)
    monkeypatch.setattr(streaming, "_SMALL", 1000)
    weights = Measuring(
        {**{f"small.{n}": 4 for n in range(5)}, **{f"w{n}": 40 for n in range(8)}, "huge": 400}
    )
    save_weights(weights, tmp_path / "out", threads=2)
    assert {name for name, workers in weights.readers.items() if len(workers) > 1} == {"huge"}
    weights.names.clear()
    save_weights(weights, tmp_path / "in order", threads=1)
    assert weights.names[0] == "huge" and weights.names[-1].startswith("small")


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system has no such call")
def test_what_was_written_leaves_memory_as_it_reaches_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 500)
    monkeypatch.setattr(streaming, "SPAN", 4000)
    monkeypatch.setattr(streaming, "_SMALL", 0)
    monkeypatch.setattr(streaming, "_SETTLED", 10_000)
    dropped = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *given: dropped.append(given[1:]))
    save_weights(Measuring({"w": 400}), tmp_path / "out", threads=1)
    assert dropped == [(0, 0, os.POSIX_FADV_DONTNEED)] * 6
    monkeypatch.delattr(os, "posix_fadvise")
    save_weights(Measuring({"w": 400}), tmp_path / "other", threads=1)
    assert (tmp_path / "other/model.safetensors").read_bytes() == (
        tmp_path / "out/model.safetensors"
    ).read_bytes()
