"""Commands on files that lie end with a line and exit code 2, whatever is wrong with them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import taskvec as tv
from hostile import little_memory, texts
from taskvec.cli import main
from taskvec.weights import open_weights

BASE = {"m.weight": torch.zeros(40, 30), "b": torch.zeros(100)}


def vector(seed: int = 0) -> tv.TaskVector:
    draws = torch.Generator().manual_seed(seed)
    return tv.TaskVector.from_tensors(
        {n: torch.randn(t.shape, generator=draws) for n, t in BASE.items()}, BASE
    )


def masks(path: Path) -> Path:
    return tv.emr({"a": vector(0), "b": vector(1)}).save(path)


def compact(path: Path) -> Path:
    return vector().save(path, form="sparse", density=0.1)


@pytest.mark.parametrize("make", [masks, compact])
def test_inspect_shows_or_refuses_whatever_a_header_says(
    make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path / "v.safetensors")
    said: dict[str, Any] = json.loads(open_weights(path).metadata["taskvec"])
    if "masks" in said:
        said["masks"]["settings"] |= {"norms_by_layer": 3, "path": "x", "kind": []}
    tensors = load_file(path)
    for text in texts(said, most=60):
        save_file(tensors, tmp_path / "x.safetensors", metadata={"taskvec": text})
        for arguments in (["inspect"], ["inspect", "--json"]):
            with little_memory(), pytest.raises(SystemExit) as ended:
                main([*arguments, str(tmp_path / "x.safetensors")])
            out, err = capsys.readouterr()
            assert ended.value.code in (0, 2), err
            assert "internal error" not in err and "\x1b[2J" not in out + err


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", ""],
        ["inspect", "~nosuchuser/model"],
        ["inspect", "x" * 300],
        ["inspect", "/dev/zero"],
        ["diff", "x" * 300, "b", "-o", "c"],
        ["diff", "base.safetensors", "base.safetensors", "-o", "x" * 250],
        ["diff", "base.safetensors", "base.safetensors", "-o", ""],
        ["diff", "base.safetensors", "base.safetensors", "-o", "~nosuchuser/x"],
        ["apply", "base.safetensors", "-v", "a=~nosuchuser/x", "-o", "c"],
        ["apply", "base.safetensors", "-v", "a=v.safetensors", "-o", "y" * 300],
        ["apply", "base.safetensors", "-v", "a=v.safetensors", "-e", f"[0x{'f' * 9000}]*a", "-o", "c"],
        ["compress", "v.safetensors", "--form", "int8", "-o", "~nosuchuser/x"],
        ["compress", "v.safetensors", "--form", "int8", "-o", "x" * 250],
        ["merge", "x" * 300, "-o", "c"],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_names_that_no_file_has_are_refused_in_words(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(BASE, "base.safetensors")
    vector().save("v.safetensors")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.startswith("taskvec: ") and err.count("\n") == 1, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "v.safetensors"]
