"""Where the figures of a training go, step by step: to a function, a file of JSON lines, a tracker."""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from taskvec.errors import OutputExists
from taskvec.progress import Watch
from taskvec.training.trackers import tracker
from taskvec.writing import open_own, replacing

Log = Callable[[int, Mapping[str, float]], None]
"""Called after every step with its number, from 1 on, and its figures: ``loss``, ``lr``, ``gradient_norm``,
``examples_per_second`` or more, and those of a validation when there was one."""

_note = logging.getLogger(__name__)


class Logged:
    """A watcher of trainings that gives every step to a log too. Trainings that follow each other, such as
    those of ATM's rounds, are one series of steps."""

    def __init__(self, watch: Watch, log: Log) -> None:
        self.inner, self._log = watch, log
        self._label, self._total, self._before = "", 0, 0

    def __call__(self, label: str, done: int, total: int, **facts: float) -> None:
        """One step is done; what has no figures, such as measuring before the first, is none."""
        self.inner(label, done, total, **facts)
        if not facts:
            return
        if label != self._label:
            self._before += self._total
            self._label, self._total = label, total
        self._log(self._before + done, facts)

    def begin(self, before: int) -> None:
        """A training follows, after so many steps of others, in this process or one that is gone."""
        self._label, self._total, self._before = "", 0, before


def logged(watch: Watch, log: Log | None) -> Watch:
    """The watcher, with a log if there is one. A log that raises is left alone from then on."""
    return Logged(watch, _Guarded(log)) if log is not None else watch


def unlogged(watch: Watch) -> Watch:
    """The watcher without its log."""
    return watch.inner if isinstance(watch, Logged) else watch


class _Guarded:
    """A log whose failure is said once and does not end the training."""

    def __init__(self, log: Log) -> None:
        self._log: Log | None = log

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        if self._log is not None:
            try:
                self._log(step, values)
            except Exception as error:  # whatever a file system or somebody's code can raise
                _complain(f"at step {step}", error)
                self._log = None


def _complain(when: str, error: Exception) -> None:
    _note.warning(
        "logging failed %s (%s: %s); training goes on without it", when, type(error).__name__, error
    )


class JsonLines:
    """A log in a file, one JSON object a step: ``{"step": 1, "loss": 0.7, …}``; not a number is ``null``.

    The first step decides what stays of an earlier file: the steps before it. So a training that is resumed
    appends, and one that starts anew replaces.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line."""
        if self._handle is None:
            self._handle = self._begin(step)
        plain = {name: _plain(value) for name, value in values.items()}
        os.write(self._handle, json.dumps({"step": step, **plain}).encode() + b"\n")

    def close(self) -> None:
        """No step follows."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _begin(self, step: int) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(self.path) if _step_of(line) < step] if step > 1 else []
        with replacing(self.path) as file:
            file.writelines(kept)
        handle = open_own(self.path)
        os.lseek(handle, 0, os.SEEK_END)
        return handle


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _lines(path: Path) -> list[bytes]:
    """The whole lines of a file; none if it is not there."""
    if not path.exists():
        return []
    with os.fdopen(open_own(path), "rb") as file:
        return [line for line in file if line.endswith(b"\n")]


def _step_of(line: bytes) -> float:
    """The step of a line; infinity for one that has none."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return math.inf


def replay(path: Path, log: Log) -> None:
    """Call a log with every step of a file of JSON lines, in order; with none if there is no such file."""
    for line in _lines(path):
        step = _step_of(line)
        if step < math.inf:
            values = json.loads(line).items()
            log(int(step), {name: value for name, value in values if _is_figure(name, value)})


def _is_figure(name: str, value: object) -> bool:
    return name != "step" and isinstance(value, int | float)


def check_log(path: Path, output: Path, *, keep: bool) -> None:
    """Refuse a file for a log before anything is done.

    Args:
        output: of the training.
        keep: whether the file may be there already.

    Raises: OutputExists.
    """
    if path.absolute() == output.absolute():
        raise OutputExists(f"{path}: is the output, expected another file for the log")
    if path.is_dir() or path.is_symlink():
        raise OutputExists(
            f"{path}: is a {'link' if path.is_symlink() else 'folder'}, expected a file for the log"
        )
    if path.exists() and not keep:
        raise OutputExists(f"{path}: exists already; --force replaces it, --resume goes on with it")


@contextmanager
def recording(
    path: Path | None,
    trackers: Sequence[str] = (),
    *,
    folder: Path,
    project: str = "taskvec",
    name: str = "training",
    config: Mapping[str, object] | None = None,
) -> Iterator[Log | None]:
    """A log to a file of JSON lines and to trackers by name, open for one training; none if there are none.

    Args:
        folder: for files of trackers.
        project, name, config: what a tracker calls the training, and its settings.

    A tracker that cannot be opened or closed is left alone, and said. Raises: UnknownName, MissingExtra.
    """
    logs: list[Log] = []
    with ExitStack() as stack:
        if path is not None:
            lines = JsonLines(path)
            stack.callback(lines.close)
            logs.append(_Guarded(lines))
        for kind in trackers:
            opened = tracker(kind)
            try:
                log, close = opened(project, name, dict(config or {}), folder)
            except Exception as error:  # no network, no account, no room
                _complain(f"to {kind}", error)
                continue
            stack.callback(_closing, kind, close)
            logs.append(_Guarded(log))
        yield _spread(logs) if logs else None


def _closing(kind: str, close: Callable[[], None]) -> None:
    try:
        close()
    except Exception as error:
        _complain(f"at the end of {kind}", error)


def _spread(logs: Sequence[Log]) -> Log:
    def log(step: int, values: Mapping[str, float]) -> None:
        for one in logs:
            one(step, values)

    return log
