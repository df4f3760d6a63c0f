"""What is written is whole, loads everywhere, and never takes anything with it when it fails."""

import errno
import json
import os
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn

from taskvec.errors import DiskFull, NonFinite, OutputExists, TaskvecError
from taskvec.weights import open_weights, save_weights, staging
from taskvec.weights.dtypes import CODES

STATE = {"b": torch.arange(6.0).reshape(2, 3), "flag": torch.tensor([True]), "a": torch.randn(50, 7)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder with the files that lie beside weights."""
    folder = save_weights(STATE, tmp_path / "model")
    (folder / "config.json").write_text("{}")
    (folder / "vocab.txt").write_text("a b")
    (folder / "README.md").write_text("about the base, not the edit")
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_other_readers_get_what_was_written(tmp_path: Path) -> None:
    path = save_weights(STATE, tmp_path / "x.safetensors")
    loaded = load_file(path)
    assert loaded.keys() == STATE.keys()
    assert all(torch.equal(loaded[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("dtype", CODES.values(), ids=CODES)
def test_every_dtype_passes_byte_for_byte(dtype: torch.dtype, tmp_path: Path) -> None:
    pattern = torch.arange(48, dtype=torch.uint8)
    tensor = (pattern % 2).bool() if dtype == torch.bool else pattern.view(dtype)
    path = save_weights(
        {"x": tensor, "one": torch.tensor([1], dtype=torch.uint8)}, tmp_path / "x.safetensors"
    )
    assert torch.equal(open_weights(path)["x"].view(torch.uint8), tensor.view(torch.uint8))
    assert torch.equal(load_file(path)["x"].view(torch.uint8), tensor.view(torch.uint8))


def test_a_slice_of_a_larger_tensor_is_written_alone(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    path = save_weights({"column": whole[:, 1], "turned": whole.T}, tmp_path / "x.safetensors")
    assert torch.equal(open_weights(path)["column"], whole[:, 1])
    assert torch.equal(open_weights(path)["turned"], whole.T)


def test_a_folder_gets_what_lies_beside_the_weights(model: Path, tmp_path: Path) -> None:
    copy = save_weights(open_weights(model), tmp_path / "copy")
    copied = {"config.json", "vocab.txt", "modules.json", "1_Pooling/config.json"}
    assert set(everything(copy)) == copied | {"model.safetensors", "taskvec.json"}
    assert "created_by" in json.loads((copy / "taskvec.json").read_text())


def test_a_large_tensor_is_written_in_pieces_and_read_back_whole(tmp_path: Path) -> None:
    state = {"large": torch.randn(3000, 1000), "long": torch.randn(2_500_000)}
    folder = save_weights(state, tmp_path / "large", max_shard_size=11e6)
    assert len(list(folder.glob("*.safetensors"))) == 2
    weights = open_weights(folder)
    assert len(list(weights.row_blocks("large"))) > 2
    assert all(torch.equal(weights[name], state[name]) for name in state)
    assert weights.fingerprint() == open_weights(state).fingerprint()


class Tied(nn.Module):
    """Two names, one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_ties_are_kept_in_the_form_that_safetensors_itself_uses(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    module, other = Tied(), Tied()
    save_weights(module, ours)
    save_model(module, str(theirs))
    assert open_weights(ours).tied == open_weights(theirs).tied == {"head.weight": "embed.weight"}
    assert not any(load_model(other, ours))
    assert torch.equal(other.head.weight, module.head.weight)


def test_an_output_that_exists_is_refused_unless_forced(model: Path, tmp_path: Path) -> None:
    before = everything(model)
    other = {"c": torch.ones(2)}
    with pytest.raises(OutputExists, match="exists already"):
        save_weights(other, model)
    assert everything(model) == before
    save_weights(other, model, force=True)
    assert set(everything(model)) == {"model.safetensors", "taskvec.json"}
    single = save_weights(STATE, tmp_path / "x.safetensors")
    save_weights(other, single, force=True)
    assert list(open_weights(single)) == ["c"]


def test_force_never_removes_a_folder_that_was_not_written_here(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExists, match="remove it yourself"):
        save_weights(STATE, tmp_path / "home", force=True)
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_an_input_is_never_the_output(model: Path, tmp_path: Path) -> None:
    before = everything(model)
    link = tmp_path / "link"
    link.symlink_to(model)
    for target in (model, model / "model.safetensors", link, tmp_path):
        with pytest.raises(OutputExists, match="is an input"):
            save_weights(open_weights(model), target, force=True)
    assert everything(model) == before


def test_a_full_disk_is_seen_before_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 100, 100))
    with pytest.raises(DiskFull, match=r"x: needs 0\.0 MB, 0\.0 MB are free"):
        save_weights(STATE, tmp_path / "deep" / "x")
    assert list(tmp_path.iterdir()) == []


def full(handle: int, data: memoryview, place: int) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(label: str, done: int, total: int, **facts: float) -> None:
    raise KeyboardInterrupt


def broken_read(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**state, "a": torch.full((2,), float("nan"))}


@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_what_fails_leaves_the_old_output_and_nothing_else(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = save_weights({"old": torch.ones(3)}, tmp_path / f"out{suffix}")
    before = everything(tmp_path)

    def unchanged() -> bool:
        return everything(tmp_path) == before and len(list(tmp_path.iterdir())) == 1

    with pytest.raises(KeyboardInterrupt):
        save_weights(STATE, target, force=True, watch=interrupt)
    assert unchanged()
    with pytest.raises(NonFinite, match=r"'a' holds 2 values that are NaN or infinite"):
        save_weights(broken_read(STATE), target, force=True)
    assert unchanged()
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(TaskvecError, match="no space left on device") as caught:
        save_weights(STATE, target, force=True)
    assert caught.value.exit_code == 1
    monkeypatch.undo()
    assert unchanged()
    assert list(open_weights(target)) == ["old"]


def test_a_killed_write_leaves_the_old_output_and_the_next_one_clears_up(tmp_path: Path) -> None:
    target = save_weights({"old": torch.ones(3)}, tmp_path / "out")

    def die(label: str, done: int, total: int, **facts: float) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    state = {name: torch.ones(9) for name in "abc"}
    options = {"force": True, "max_shard_size": 40, "watch": die}
    process = get_context("fork").Process(target=save_weights, args=(state, target), kwargs=options)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert list(open_weights(target)) == ["old"]
    assert (tmp_path / ".out.partial" / "out" / "model-00001-of-00003.safetensors").exists()
    save_weights({"new": torch.ones(3)}, target, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert list(open_weights(target)) == ["new"]


def test_a_write_killed_between_two_renames_gives_the_old_output_back(tmp_path: Path) -> None:
    target = save_weights({"old": torch.ones(3)}, tmp_path / "out")
    (tmp_path / ".out.partial").mkdir()
    target.rename(tmp_path / ".out.partial" / "replaced")
    with pytest.raises(OutputExists):
        save_weights({"new": torch.ones(3)}, target)
    assert list(open_weights(target)) == ["old"]


def test_two_writers_of_one_output_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with (
        staging.staged(target, folder=True, force=False) as work,
        pytest.raises(OutputExists, match="another process is writing"),
    ):
        (work / "taskvec.json").write_text("{}")
        save_weights(STATE, target)
    assert [path.name for path in target.iterdir()] == ["taskvec.json"]


def test_non_finite_values_are_counted_and_written_only_when_allowed(tmp_path: Path) -> None:
    bad = {
        "fine": torch.ones(2),
        "first": torch.tensor([1.0, float("nan"), float("inf")], dtype=torch.bfloat16),
        "second": torch.tensor([[-float("inf")]], dtype=torch.float64),
    }
    expected = r"'second' holds 1 values that are NaN or infinite \(2 more in 1 other tensors\)"
    with pytest.raises(NonFinite, match=expected):
        save_weights(bad, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    path = save_weights(bad, tmp_path / "x", allow_nonfinite=True)
    assert open_weights(path)["first"].isnan().sum() == 1


def test_the_watcher_hears_of_every_tensor(tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []

    def hear(label: str, done: int, total: int, **facts: float) -> None:
        heard.append((label, done, total))

    save_weights(STATE, tmp_path / "x", watch=hear)
    assert heard == [("writing x", done, 3) for done in (1, 2, 3)]
