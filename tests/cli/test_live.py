"""What a run shows while it works: on a terminal, elsewhere, and when it is interrupted."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from taskvec.cli import _live
from taskvec.cli._live import Compact, Lines, display, duration
from taskvec.runs.events import Begun, Done, Finished, Part, Trained, Working
from taskvec.runs.report import title_of
from taskvec.studies.study import Results

EXPERIMENT = """
experiment: "live \\e[31m[bold]name"
description: Two tasks.
model: {model}
suite: {suite}
tasks: [pets, taste]
limits: {{train: 32, validation: 12, test: 12}}
training: {{lr: 2e-3, steps: 3, batch_size: 8, validations: 1}}
regimes: {{full: {{}}}}
search: {{step: 0.5, coarse: 2, limit: 1}}
addition: {{subsets: pairs}}
joint: true
negation: {{targets: [pets]}}
"""
TITLES = ("Single tasks", "Addition of all 2 tasks", "Negation of pets")
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"
STYLES = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")


@pytest.fixture
def file(tiny_model: Path, tiny_suite: Path, tmp_path: Path) -> Path:
    path = tmp_path / "live.yaml"
    path.write_text(EXPERIMENT.format(model=tiny_model, suite=tiny_suite))
    return path


def on_terminal(file: Path, columns: int, stop_at: str | None = None, **environment: str) -> tuple[int, str]:
    """Run the experiment on a terminal; its exit code, and all that was written.

    Args:
        stop_at: press Ctrl-C when this was written.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "taskvec", "run", str(file), "-o", str(file.parent / "run")],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env={**kept, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **environment},
    )
    os.close(slave)
    written = b""
    while True:
        try:
            piece = os.read(master, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        written += piece
        if stop_at is not None and stop_at.encode() in written:
            os.write(master, b"\x03")
            stop_at = None
    os.close(master)
    return process.wait(), written.decode()


def test_a_terminal_gets_each_table_once_and_is_left_clean(file: Path) -> None:
    code, written = on_terminal(file, 100, NO_COLOR="1")
    assert code == 0
    assert written.count(HIDDEN) == written.count(SHOWN) >= 1
    assert written.rindex(SHOWN) > written.rindex(HIDDEN)
    shown = STYLES.sub("", written)
    lines = [line.strip() for line in re.split(r"[\r\n]+", shown)]
    assert [lines.count(title) for title in TITLES] == [1] * len(TITLES)
    ended = next(place for place, line in enumerate(lines) if line.startswith(f"{title_of('negation')}: 1 r"))
    assert lines.index("Single tasks") < ended  # as soon as it is done
    assert re.search(r"pets: accuracy [\d.]+ zero-shot, [\d.]+ fine-tuned \(full, validation\)", shown)
    assert shown.count("fine-tuned (full, validation)") == 1
    assert "1/1" not in shown and "\x1b[31m[bold]" not in written
    assert shown.rstrip().splitlines()[-1].startswith("Open ") and "report.html in a" in shown


def test_ctrl_c_leaves_the_terminal_clean_and_a_page_that_says_so(file: Path) -> None:
    longer = "joint: {combiner: [mean, pcgrad, mgda, upgrad]}\natm: {rounds: [1, 2, 3]}"
    file.write_text(file.read_text().replace("joint: true", longer))
    code, written = on_terminal(file, 80, stop_at="Single tasks")
    assert code == 130
    assert written.rindex(SHOWN) > written.rindex(HIDDEN)
    assert "interrupted" in written[written.rindex(SHOWN) :]
    page = (file.parent / "run" / "report.html").read_text()
    assert "The run was stopped" in page and f"taskvec run {file}" in page
    assert "Single tasks" in page


def test_elsewhere_a_study_is_a_line(file: Path) -> None:
    command = [sys.executable, "-m", "taskvec", "run", str(file), "-o", str(file.parent / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert "\x1b" not in done.stderr + done.stdout
    ended = [line for line in lines if re.search(r": \d+ results? in \d:\d\d", line)]
    names = [line.partition(":")[0] for line in ended]
    usual = list(map(title_of, ("zero_shot", "single", "addition", "joint", "negation")))
    assert [name for name in names if name in usual] == usual and len(set(names)) == len(names)
    asked = [line for line in lines if line not in ended and " now " not in line]
    assert len(asked) == 1 and asked[0].startswith("pets: accuracy")
    printed = list(map(str.strip, done.stdout.splitlines()))
    assert [printed.count(title) for title in TITLES] == [1] * len(TITLES)
    quiet = subprocess.run([*command, "--quiet"], capture_output=True, text=True, check=True)
    assert (quiet.stdout, quiet.stderr) == (done.stdout, "")


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], tuple[Compact, Callable[[], list[str]]]]:
    """A display as wide as asked, and what its foot shows."""

    def make(width: int) -> tuple[Compact, Callable[[], list[str]]]:
        console = Console(file=StringIO(), width=width, force_terminal=True, color_system=None)
        shown = Compact(console)

        def foot() -> list[str]:
            with console.capture() as captured:
                console.print(shown._render())
            return captured.get().splitlines()

        return shown, foot

    return make


@pytest.mark.parametrize("width", [10, 30, 80, 200])
def test_the_foot_fits_its_terminal_and_names_are_text(
    screen: Callable[[int], tuple[Compact, Callable[[], list[str]]]], width: int
) -> None:
    shown, foot = screen(width)
    assert "opening the model" in foot()[1] or width == 10
    name = "a\x1b[31mb[bold]" + 60 * "ü"
    parts = [Part("addition", "full", seed, (name, "two", "three", "four")) for seed in (0, 1)]
    shown(Begun(name, parts))
    for done, label in enumerate(parts[0].cells[:3]):
        shown(Working(parts[0], label))
        shown(Done(parts[0], label, done + 1, {}, 2.0))
    shown(Working(parts[0], "four"))
    shown.watch(f"full {name}", 18, 30, loss=0.3123, lr=1e-4)
    lines = foot()
    assert len(lines) == 3 and all(len(line) <= width for line in lines)
    assert not any("\x1b" in line for line in lines)
    if width == 200:
        assert "3 of 8" in lines[0] and "left" in lines[0] and "[bold]" in lines[0]
        assert lines[1].startswith(f"{title_of('addition')}, full, seed 0: 3 of 4, now four")
        assert "18/30 loss 0.312" in lines[2] and "lr" not in lines[2]


def test_where_a_line_would_be_hidden_there_are_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(display(quiet=True)) is _live.Display
    assert isinstance(display(quiet=False), Lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(display(quiet=False), Lines)


def test_plain_lines_are_ten_seconds_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown = Lines()
    part = Part("methods", "full", 0, tuple(map(str, range(100))))
    shown(Begun("it", [part]))
    for done, label in enumerate(part.cells):
        shown(Working(part, label))
        shown.watch("learning", 3, 40, objective=2.5)
        now[0] += 1.0
        shown(Done(part, label, done + 1, {}, 1.0))
    lines = capsys.readouterr().err.splitlines()
    assert 9 <= len(lines) <= 10
    assert lines[1].startswith(
        f"{title_of('methods')}, full: 20 of 100, now 19; learning: 3/40 objective 2.5"
    )


def test_what_was_on_record_is_not_reported(
    capsys: pytest.CaptureFixture[str], plan_results: Results
) -> None:
    shown = Lines()
    part = Part("addition", "full", 0, ("a", "b"))
    shown(Begun("it", [part]))
    shown(Trained("pets", "accuracy", "full", 0.5, 0.9))
    for done, label in enumerate(part.cells):
        shown(Done(part, label, done + 1, {}, None))
    shown(Finished(part, plan_results, last=True))
    assert capsys.readouterr().err == ""


@pytest.fixture
def plan_results() -> Results:
    return Results(None, [])  # type: ignore[arg-type]


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0:00"), (62, "1:02"), (3723, "1:02:03")])
def test_durations_are_read_at_once(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_ctrl_c_waits_for_the_end_of_an_import(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nfor _ in range(10):\n    time.sleep(0.1)\ndone = True\n")
    code = """
import os, signal, sys, time
from threading import Timer
from taskvec.cli import _interrupted_once
Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    with _interrupted_once():
        import slow
        time.sleep(20)
except KeyboardInterrupt:
    sys.exit(3 if slow.done else 4)
"""
    begun = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 3
    assert time.monotonic() - begun < 20
