"""Experiment trackers by name; none of them is needed, and none is imported before it is asked for."""

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from taskvec.errors import UnknownName, optional
from taskvec.registry import nearest

Opened = tuple[Callable[[int, Mapping[str, float]], None], Callable[[], None]]
"""What takes the figures of a step, and what ends the series."""

Tracker = Callable[[str, str, Mapping[str, object], Path], Opened]
"""Opens a series: the project, its name, its settings, a folder for trackers that write files."""


def tracker(kind: str) -> Tracker:
    """A tracker by name.

    Raises: UnknownName; MissingExtra, with the command that installs it.
    """
    if kind not in TRACKERS:
        raise UnknownName(f"no tracker called {kind!r}; {nearest(kind, TRACKERS)}")
    module, opened = TRACKERS[kind]
    missing = f"{kind} is not installed, needed to log to it; pip install {kind}"
    return partial(opened, optional(module, missing))


def _open_run(module: Any, project: str, name: str, config: Mapping[str, object], folder: Path) -> Opened:
    """Of a package with the interface of wandb. What it prints is no result: it goes to standard error."""
    with redirect_stdout(sys.stderr):
        module.init(project=project, name=name, config=dict(config))

    def log(step: int, values: Mapping[str, float]) -> None:
        module.log(dict(values), step=step)

    def close() -> None:
        with redirect_stdout(sys.stderr):
            module.finish()

    return log, close


class _Events:
    """Event files of TensorBoard. The first step hides those that an earlier process wrote from there on."""

    def __init__(self, module: Any, folder: Path) -> None:
        self._module, self._folder = module, folder
        self._writer: Any = None

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            self._writer = self._module.SummaryWriter(str(self._folder), purge_step=step)
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _open_events(module: Any, project: str, name: str, config: Mapping[str, object], folder: Path) -> Opened:
    """Of TensorBoard: event files in ``tensorboard/NAME`` of the folder."""
    events = _Events(module, folder / "tensorboard" / name)
    return events, events.close


TRACKERS: dict[str, tuple[str, Callable[..., Opened]]] = {
    "wandb": ("wandb", _open_run),
    "trackio": ("trackio", _open_run),
    "tensorboard": ("torch.utils.tensorboard", _open_events),
}
"""Name, which is the package to install -> its module, and what opens a series in it."""
