"""Compiled loops work wherever the package is installed."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CODE = "from taskvec.rules.draws import philox; assert philox(0, 0, 0, 1)[0, 0] == 0x6627E8D5"


def run(folder: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    subprocess.run([sys.executable, "-c", CODE], check=True, env=environment)


def nowhere(folder: Path) -> Path:
    return Path("/dev/null/folder")


def damaged(folder: Path) -> Path:
    run(folder)
    kept = [file for file in folder.rglob("*") if file.is_file()]
    assert kept, "the machine code is kept for the next process"
    for file in kept:
        file.write_bytes(b"")
    return folder


@pytest.mark.parametrize("place", [nowhere, damaged])
def test_machine_code_that_cannot_be_kept_or_read_is_made_again(
    place: Callable[[Path], Path], tmp_path: Path
) -> None:
    run(place(tmp_path))


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_machine_code_in_a_folder_that_others_write_to_is_not_run(mode: int, tmp_path: Path) -> None:
    run(tmp_path)
    kept = {file: file.read_bytes() for file in tmp_path.rglob("*.nb?")}
    assert kept, "the machine code is kept for the next process"
    poison = b"\x80\x04cposix\nsystem\n(S'touch poisoned'\ntR."
    for file in kept:
        file.write_bytes(poison)
        file.parent.chmod(mode)
    run(tmp_path)
    assert {file.read_bytes() for file in kept} == {poison}, "nothing is read or written there"
