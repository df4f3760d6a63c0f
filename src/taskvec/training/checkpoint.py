"""The state of a training on disk, so that a killed run goes on to the same bits."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskvec.errors import InputError
from taskvec.writing import open_own


class Checkpoint:
    """The loop's state on disk: leaves, optimizer, step. Nothing else varies, so nothing else is kept."""

    every = 20.0

    def __init__(
        self,
        path: Path | None,
        leaves: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        signature: str,
    ) -> None:
        self._path, self._leaves, self._optimizer, self._signature = path, leaves, optimizer, signature
        self._last = time.monotonic()

    def restore(self) -> int:
        """Load the state if there is one of the same training; the step to go on from."""
        if self._path is None or not self._path.exists():
            return 0
        try:
            state: dict[str, Any] = torch.load(self._path, weights_only=True, map_location="cpu")
        except Exception as error:  # torch reports a damaged archive in many types
            raise InputError(
                f"{self._path}: damaged training checkpoint ({type(error).__name__}); remove it to start anew"
            ) from None
        if state.get("signature") != self._signature:
            raise InputError(
                f"{self._path}: the checkpoint is of another training (settings, data or start differ); "
                "remove it to start anew"
            )
        with torch.no_grad():
            for name, leaf in self._leaves.items():
                leaf.copy_(state["leaves"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def save_if_due(self, step: int) -> None:
        """Write the state after ``step`` steps, unless it was written a moment ago."""
        if self._path is None or time.monotonic() - self._last < self.every:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(f".{self._path.name}.partial")
        state = {
            "signature": self._signature,
            "step": step,
            "leaves": {name: leaf.detach() for name, leaf in self._leaves.items()},
            "optimizer": self._optimizer.state_dict(),
        }
        with os.fdopen(open_own(partial, fresh=True), "wb") as file:
            torch.save(state, file)
        partial.replace(self._path)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Training is over: forget the state."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
