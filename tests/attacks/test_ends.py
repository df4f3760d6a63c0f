"""Commands that are killed or run out of disk: no wrong output, sound inputs, the same bytes in the end."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from attacks.cases import Outcome, recorded
from attacks.writings import WRITINGS, Bench, moved
from effort import EFFORT

every_command = pytest.mark.parametrize("name", WRITINGS)
ENDS = {signal.SIGKILL: {0, -9}, signal.SIGTERM: {0, -15, 143}, signal.SIGINT: {0, 130, -2, 98}}
"""With which codes a command may end that was sent a signal, perhaps too late for it or too early (98)."""


@pytest.mark.parametrize("part", range(max(1, EFFORT // 2)))
@every_command
def test_a_command_that_is_killed_leaves_a_whole_output_or_none(name: str, part: int, bench: Bench) -> None:
    draw = Random(f"{name} {part}")
    seconds = bench.seconds(name)
    bench.clear()
    words = WRITINGS[name].command
    if draw.random() < 0.4:
        code = bench.run(words, die_before_change=draw.randint(1, 40))
        assert code in ENDS[signal.SIGKILL]
    else:
        sent = draw.choice(sorted(ENDS))
        code = bench.run(words, send=sent, after=draw.uniform(0, 1.1 * seconds))
        assert code in ENDS[sent], bench.forks.said
        assert code != 130 or bench.forks.errors.count("\n") == 1, bench.forks.errors
    bench.check_inputs()
    bench.check_whole_or_absent(name)
    bench.check_finished(name)
    bench.check_inputs()
    recorded([Outcome("kills", part, "right")])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path | None]:
    """A small disk of its own, or none where mounting is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], capture_output=True)
    yield None if mount.returncode else place
    if not mount.returncode:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path, room: int) -> None:
    """Leave so much room on a disk."""
    state = os.statvfs(disk)
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, state.f_bavail * state.f_frsize - room))


@pytest.mark.parametrize("part", range(max(1, EFFORT // 8)))
@every_command
def test_a_full_disk_is_one_line_and_leaves_no_output(
    name: str, part: int, bench: Bench, disk: Path | None
) -> None:
    draw = Random(f"disk {name} {part}")
    size = sum(map(len, bench.expected(name).values()))
    bench.clear()
    room = draw.randrange(max(1, size))
    words = moved(WRITINGS[name].command, disk)
    if disk is None:
        code = bench.run(words, limit_files=room)
    else:
        fill(disk, room)
        code = bench.run(words, **({"claim_room": 10**12} if draw.random() < 0.8 else {}))
    errors = bench.forks.errors
    bench.check_inputs()
    bench.check_whole_or_absent(name, disk)
    if code == 0:  # it fitted
        assert disk is None or bench.written(name, disk) == bench.expected(name)
    else:
        said = [
            line for line in errors.splitlines() if not line.startswith("note: ")
        ]  # of what can do without
        assert code in (1, 2) and len(said) == 1 and "internal error" not in errors, errors
    if disk is not None:
        (disk / "filler").unlink()
    bench.check_finished(name, disk)
    recorded([Outcome("full disks", part, "right")])
