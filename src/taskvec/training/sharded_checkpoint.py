"""The state of a training in shards on disk: each process writes its rows, any number of them reads.

It is written by ``torch.distributed.checkpoint`` as safetensors files: its own format is read by unpickling.
"""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskvec.errors import InputError
from taskvec.group import current
from taskvec.reading import read_mapping
from taskvec.training.checkpoint import MOMENTS, Checkpoint
from taskvec.training.scaling import LossScale
from taskvec.vectors.stored.shards import check_headers
from taskvec.writing import flush, remove, replace_text

_STATE = "training.json"


def folder_of(checkpoint: Path) -> Path:
    """Where a training in shards keeps its state, beside where another one would."""
    return checkpoint.with_suffix(".shards")


class ShardedCheckpoint(Checkpoint):
    """Leaves and moments in a folder that all processes see; resumed by as many processes it gives the same
    bits.

    Raises: InputError where a process does not see the folder.
    """

    def __init__(
        self,
        path: Path | None,
        leaves: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        signature: str,
        scale: LossScale | None = None,
    ) -> None:
        super().__init__(path, leaves, optimizer, signature, scale)
        self._folder = None if path is None else folder_of(path)
        if self._folder is not None:
            self._share(self._folder)

    def _share(self, folder: Path) -> None:
        """Make the folder. Raises: InputError where a process does not see it."""
        group = current()
        if group.first:
            folder.mkdir(parents=True, exist_ok=True)
        group.barrier()
        seen = group.gather(folder.is_dir())
        if not all(seen):
            raise InputError(
                f"{folder}: process {seen.index(False)} of {group.size} does not see it, and each writes its "
                "share of the checkpoints there; put the output into a folder that all processes share"
            )

    def restore(self) -> int:
        """Load the state if there is one of the same training; the step to go on from."""
        if self._path is None or self._folder is None:
            return 0
        group = current()
        last = group.broadcast(max(self._folder.glob("step-*"), default=None) if group.first else None)
        if last is None:
            if group.broadcast(self._path.exists()):
                raise InputError(
                    f"{self._path}: the checkpoint is of a training without fsdp; leave fsdp out, or remove "
                    "it to start anew"
                )
            return 0
        try:
            state = read_mapping(last / _STATE)
            if state["signature"] != self._signature:
                raise self._another(last)
            return self._load(last, state["step"])
        except InputError:
            raise
        except Exception as error:  # torch reports a damaged checkpoint in many types
            raise self._damaged(last, error) from None

    def _load(self, folder: Path, step: object) -> int:
        """Read the state into leaves and optimizer. Raises: any of a dozen types for a damaged one."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        if not (type(step) is int and 0 < step < 2**31):
            raise ValueError
        check_headers(folder)  # more closely than torch does
        held = dict(self._held())
        load(held, storage_reader=HuggingFaceStorageReader(str(folder)))
        for name, leaf in self._leaves.items():
            moments = {of: held[f"{of}/{name}"] for of in self._kept}
            if moments:
                self._optimizer.state[leaf] = {"step": torch.tensor(float(step)), **moments}
        return step

    def save_if_due(self, step: int) -> None:
        """Write the state after ``step`` steps, unless it was written a moment ago."""
        if self._folder is None or not current().broadcast(time.monotonic() - self._last >= self.every):
            return
        self._save(self._folder, step)
        self._last = time.monotonic()

    def _save(self, folder: Path, step: int) -> None:
        """Write the state under another name, then give it its own, then remove the one before."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        group, partial, whole = current(), folder / "partial", folder / f"step-{step:010}"
        if group.first:
            remove(partial)
            partial.mkdir()
        group.barrier()
        save(dict(self._held()), storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True))
        if group.first:
            replace_text(partial / _STATE, json.dumps({"signature": self._signature, "step": step}))
            flush(partial / _STATE)
            partial.rename(whole)
            for other in folder.glob("step-*"):
                if other != whole:
                    remove(other)

    def remove(self) -> None:
        """Training is over: forget the state."""
        if self._folder is not None and current().first:
            remove(self._folder)

    @property
    def _kept(self) -> tuple[str, ...]:
        """What the optimizer keeps of a leaf, beside the number of its steps."""
        return MOMENTS[1:] if isinstance(self._optimizer, torch.optim.Adam) else ()

    def _held(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that is sharded; moments that the optimizer does not have yet are zeros."""
        for name, leaf in self._leaves.items():
            yield f"leaf/{name}", leaf.detach()
            held: dict[str, Any] = self._optimizer.state.get(leaf, {})
            for of in self._kept:
                yield f"{of}/{name}", held[of] if of in held else torch.zeros_like(leaf.detach())
