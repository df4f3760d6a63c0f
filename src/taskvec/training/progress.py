"""Where ATM stands between two tasks or rounds, and the file that it goes on from after a kill."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskvec.errors import InputError
from taskvec.group import current
from taskvec.training import checkpoint
from taskvec.training.moments import Moments
from taskvec.writing import replacing

Params = Mapping[str, Tensor]


@dataclass
class Progress:
    """Args:
    turn: rounds that are over.
    place: the parameters in ordinary space, tau in tangent space.
    deltas: of the tasks that are done in the round at work.
    moments: of each task's optimizer, where they are kept.
    history: a record of every round that is over.
    steps: of all tasks that are done.
    """

    place: dict[str, Tensor]
    turn: int = 0
    deltas: dict[str, Params] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0


class RoundFile:
    """The progress on disk, for the same bits after a kill; none without a path."""

    def __init__(self, path: Path | None, signature: str) -> None:
        self._path, self._signature = path, signature
        self._last = time.monotonic()

    def restore(self, beginning: Progress) -> Progress:
        """The progress on disk; the beginning where there is none.

        Raises: InputError for a damaged file, and one of another training.
        """
        if self._path is None:
            return beginning
        try:
            state = checkpoint.read_shared(self._path)
            if state is None:
                return beginning
            if state["signature"] != self._signature:
                raise InputError(
                    f"{self._path}: the checkpoint is of another training (settings, data or start differ); "
                    "remove it to start anew"
                )
            return _progress(state, beginning)
        except InputError:
            raise
        except Exception as error:  # torch reports a damaged archive in many types
            raise InputError(
                f"{self._path}: damaged training checkpoint ({type(error).__name__}); remove it to start anew"
            ) from None

    def save_if_due(self, progress: Progress) -> None:
        """Write the progress, unless it was written a moment ago."""
        if self._path is None or not current().first:
            return
        if time.monotonic() - self._last < checkpoint.Checkpoint.every:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            **vars(progress),
            "signature": self._signature,
            "deltas": {task: dict(deltas) for task, deltas in progress.deltas.items()},
            "moments": {task: moments.held for task, moments in progress.moments.items()},
        }
        with replacing(self._path) as file:
            torch.save(state, file)
        self._last = time.monotonic()

    def remove(self) -> None:
        """All rounds are over."""
        if self._path is not None and current().first:
            self._path.unlink(missing_ok=True)


def _progress(state: Mapping[str, Any], beginning: Progress) -> Progress:
    """Raises: any of a dozen types for a state that does not fit the beginning."""
    turn, steps, history = state["turn"], state["steps"], state["history"]
    if not all(type(count) is int and 0 <= count < 2**31 for count in (turn, steps)):
        raise ValueError
    if not isinstance(history, list) or len(history) != turn:
        raise ValueError
    _check_like(state["place"], beginning.place)
    if state["place"].keys() != beginning.place.keys():
        raise ValueError
    for deltas in state["deltas"].values():
        _check_like(deltas, beginning.place)
    shapes = {value.shape for value in beginning.place.values()} | {torch.Size()}
    for of_task in state["moments"].values():
        for value in (value for of in of_task.values() for value in of.values()):
            if value.shape not in shapes or not value.is_floating_point():
                raise ValueError
    moments = {task: Moments(held) for task, held in state["moments"].items()}
    return Progress(state["place"], turn, state["deltas"], moments, history, steps)


def _check_like(found: Any, wanted: Params) -> None:
    if not isinstance(found, dict):
        raise ValueError
    for name, value in found.items():
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            raise ValueError
