"""What an interrupted run finished is kept only where it is surely what would be written again."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from taskvec.weights import open_weights, save_weights

NAMES = "abcdef"
OPTIONS = {"max_shard_size": 400.0, "threads": 1}


def make(path: Path, value: float) -> Path:
    save_file({name: torch.full((100,), value) for name in NAMES}, path)
    return path


def interrupted(source: Path, target: Path) -> set[str]:
    """The shards that a run finishes before it is interrupted."""

    def stop(label: str, done: int, total: int, **facts: float) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="--resume"):
        save_weights(source, target, watch=stop, **OPTIONS)  # type: ignore[arg-type]
    work = target.parent / f".{target.name}.partial"
    finished = set(json.loads((work / "journal.json").read_text())["shards"])
    assert 0 < len(finished) < len(NAMES)
    return finished


def values(folder: Path) -> set[float]:
    tensors = (tensor for file in folder.glob("*.safetensors") for tensor in load_file(file).values())
    return {float(value) for tensor in tensors for value in tensor}


def rewritten(source: Path) -> None:
    """Other content of the same size, with the times it had before."""
    before = source.stat()
    make(source, 2.0)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchanged(source: Path) -> None:
    """Another file of the same size and age under the same name."""
    before = source.stat()
    other = make(source.with_name("other.safetensors"), 2.0)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(source)


@pytest.mark.parametrize("change", [rewritten, exchanged])
def test_shards_of_changed_inputs_are_never_kept(
    change: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = make(tmp_path / "source.safetensors", 1.0), tmp_path / "out"
    interrupted(source, target)
    size, time = source.stat().st_size, source.stat().st_mtime_ns
    change(source)
    assert (source.stat().st_size, source.stat().st_mtime_ns) == (size, time)
    save_weights(source, target, resume=True, **OPTIONS)  # type: ignore[arg-type]
    assert values(target) == {2.0}
    assert [record.message for record in caplog.records if "begins afresh" in record.message]


def test_shards_of_the_same_inputs_are_kept_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = make(tmp_path / "source.safetensors", 1.0), tmp_path / "out"
    finished = interrupted(source, target)
    work = tmp_path / ".out.partial" / "out"
    kept = {name: (work / name).stat().st_ino for name in finished}
    save_weights(source, target, resume=True, **OPTIONS)  # type: ignore[arg-type]
    assert {name: (target / name).stat().st_ino for name in finished} == kept
    assert values(target) == {1.0} and not caplog.records


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"key": 3, "shards": []}',
        "[" * 9999,
        '{"key": "\\ud800", "shards": {}}',
        '{"shards": {"x": 1}}',
    ],
)
def test_a_damaged_journal_is_a_fresh_start(text: str, tmp_path: Path) -> None:
    source, target = make(tmp_path / "source.safetensors", 1.0), tmp_path / "out"
    interrupted(source, target)
    (tmp_path / ".out.partial" / "journal.json").write_text(text)
    save_weights(source, target, resume=True, **OPTIONS)  # type: ignore[arg-type]
    assert values(target) == {1.0} and len(open_weights(target)) == len(NAMES)


def test_a_journal_names_only_shards_of_the_output(tmp_path: Path) -> None:
    source, target = make(tmp_path / "source.safetensors", 1.0), tmp_path / "out"
    name = min(interrupted(source, target))
    work = tmp_path / ".out.partial"
    written = json.loads((work / "journal.json").read_text())
    (tmp_path / "elsewhere.safetensors").write_bytes((work / "out" / name).read_bytes())
    (work / "out" / name).unlink()
    (work / "out" / name).symlink_to("../../elsewhere.safetensors")
    written["shards"]["../../elsewhere.safetensors"] = written["shards"][name]
    (work / "journal.json").write_text(json.dumps(written))
    save_weights(source, target, resume=True, **OPTIONS)  # type: ignore[arg-type]
    assert not any(path.is_symlink() for path in target.iterdir()) and values(target) == {1.0}
