"""The state of a training on disk, so that a killed run goes on to the same bits."""

import math
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskvec.errors import InputError
from taskvec.group import current
from taskvec.reading import open_file, parse_json
from taskvec.training.scaling import LossScale
from taskvec.writing import replacing

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What Adam and AdamW keep of a parameter."""


def load_state(path: Path) -> dict[str, Any]:
    """The content of a checkpoint. Raises: any of a dozen types for a damaged one."""
    with open_file(path) as file:
        # torch compresses nothing, and would unpack whatever is.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in zipfile.ZipFile(file).infolist()):
            raise ValueError
        file.seek(0)
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
    return state


def read_shared(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint, if there is one, as the first process of a group reads it, in all of them.

    Raises: any of a dozen types for a damaged one, in all of them.
    """
    return current().of_first(lambda: load_state(path) if path.exists() else None)


class Checkpoint:
    """The loop's state on disk: leaves, optimizer, step, and the loss's factor where it varies.

    It is read to any device, whatever device wrote it. Of several processes the first reads and writes it.
    """

    every = 20.0  # seconds: writing the optimizer's moments takes about one

    def __init__(
        self,
        path: Path | None,
        leaves: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        signature: str,
        scale: LossScale | None = None,
    ) -> None:
        self._path, self._leaves, self._optimizer, self._signature = path, leaves, optimizer, signature
        self._scale = scale if scale and not scale.fixed else None
        self._device = str(next(iter(leaves.values())).device)
        self._last = time.monotonic()

    def restore(self) -> int:
        """Load the state if there is one of the same training; the step to go on from."""
        if self._path is None:
            return 0
        try:
            state = read_shared(self._path)
            if state is None:
                return 0
            if not self._agrees(state["signature"], state.get("device", "cpu")):
                raise self._another(self._path)
            return self._take_over(state)
        except InputError:
            raise
        except Exception as error:  # torch reports a damaged archive in many types
            raise self._damaged(self._path, error) from None

    @staticmethod
    def _another(path: Path) -> InputError:
        return InputError(
            f"{path}: the checkpoint is of another training (settings, data or start differ); "
            "remove it to start anew"
        )

    @staticmethod
    def _damaged(path: Path, error: Exception) -> InputError:
        return InputError(
            f"{path}: damaged training checkpoint ({type(error).__name__}); remove it to start anew"
        )

    def _agrees(self, signature: str, device: str) -> bool:
        """Whether a state is of this training; heads that two devices made differ by rounding."""
        if signature == self._signature or device == self._device:
            return signature == self._signature
        return self._without_heads(signature) == self._without_heads(self._signature)

    def _without_heads(self, signature: str) -> dict[str, Any]:
        said: dict[str, Any] = parse_json(signature.encode(), str(self._path))
        return {**said, "parts": [part[:3] for part in said["parts"]]}

    def _take_over(self, state: Mapping[str, Any]) -> int:
        """Put the state into leaves and optimizer; nothing is changed if it does not fit.

        Raises: any of a dozen types for a state that does not fit.
        """
        step, leaves, saved = state["step"], list(self._leaves.values()), state["optimizer"]
        names = MOMENTS if isinstance(self._optimizer, torch.optim.Adam) else ()
        # Anything may stand where mappings belong; a tensor would even take their keys.
        for part in (state["leaves"], saved, *saved["state"].values()):
            if not isinstance(part, dict):
                raise ValueError
        values = [state["leaves"][name] for name in self._leaves]
        moments = {place: {name: part[name] for name in names} for place, part in saved["state"].items()}
        for leaf, value in zip(leaves, values, strict=True):
            _check_fits(value, leaf.shape)
        for place, part in moments.items():
            for name, value in part.items():
                _check_fits(value, torch.Size() if name == "step" else leaves[place].shape)
        if not (type(step) is int and 0 <= step < 2**31):
            raise ValueError
        if self._scale:
            self._scale.factor, self._scale.calm = _scaling(*state["scaling"])
        with torch.no_grad():
            for leaf, value in zip(leaves, values, strict=True):
                leaf.copy_(value)
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        return step

    def save_if_due(self, step: int) -> None:
        """Write the state after ``step`` steps, unless it was written a moment ago."""
        if self._path is None or not current().first or time.monotonic() - self._last < self.every:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "signature": self._signature,
            "step": step,
            "leaves": {name: leaf.detach() for name, leaf in self._leaves.items()},
            "optimizer": self._optimizer.state_dict(),
        }
        if self._device != "cpu":
            state["device"] = self._device
        if self._scale:
            state["scaling"] = [self._scale.factor, self._scale.calm]
        with replacing(self._path) as file:
            torch.save(state, file)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Training is over: forget the state."""
        if self._path is not None and current().first:
            self._path.unlink(missing_ok=True)


def _scaling(factor: object, calm: object) -> tuple[float, int]:
    if not (isinstance(factor, float) and 0 < factor < math.inf and type(calm) is int and calm >= 0):
        raise ValueError
    return factor, calm


def _check_fits(value: Tensor, shape: torch.Size) -> None:
    if value.shape != shape or value.layout != torch.strided or not value.is_floating_point():
        raise ValueError
