"""Deltas of which several processes have the rows, written tensor by tensor into one file."""

import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from taskvec.errors import TaskvecError
from taskvec.weights.blocks import TensorSpec
from taskvec.weights.dtypes import raw_bytes
from taskvec.weights.lazy import Weights
from taskvec.weights.plan import plan_shards
from taskvec.weights.stored import StoredWeights
from taskvec.writing import open_own, unwritable, write_at


class ShardedDeltas(Weights):
    """Deltas that no process has whole, of which only names and shapes are known.

    Args:
        like: tensors of their shapes and dtypes.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        specs = {name: TensorSpec(tuple(value.shape), value.dtype) for name, value in like.items()}
        super().__init__("deltas in shards", specs, ("shards", id(like)))

    def _read(self, name: str, rows: slice | None) -> NoReturn:
        raise TaskvecError(
            f"{self.ref}: process 0 of the group alone has the vector, at the end of training; measure the "
            "model itself, at evaluator.pretrained"
        )


def write_rows(deltas: ShardedDeltas, path: Path, rows_of: Callable[[str], Iterable[Tensor]]) -> Weights:
    """Write deltas into a file, which lasts as long as what is returned.

    Args:
        rows_of: the rows of a tensor, in pieces in their order; asked for once, in the order of the names.

    Raises: TaskvecError where the file cannot be written.
    """
    [plan] = plan_shards(deltas, None, {})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(open_own(path, fresh=True), "wb", buffering=0) as file:
            write_at(file.fileno(), memoryview(plan.header), 0)
            for name in deltas:
                place = plan.places[name]
                for rows in rows_of(name):
                    data = raw_bytes(rows.cpu())
                    write_at(file.fileno(), data, place)
                    place += len(data)
    except OSError as error:
        raise unwritable(path, error, "make room, and go on with --resume") from error
    written = StoredWeights(path, ref=deltas.ref)
    weakref.finalize(written, path.unlink, missing_ok=True)
    return written


def check_headers(folder: Path) -> None:
    """Look at every safetensors file of a folder. Raises: CorruptFile where a header does not describe it."""
    for file in folder.glob("*.safetensors"):
        StoredWeights(file).close()
