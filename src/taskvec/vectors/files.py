"""Task vectors on disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from taskvec.errors import InputError
from taskvec.progress import Watch, unwatched
from taskvec.vectors.info import VectorInfo, check_fields
from taskvec.weights import TensorSpec, Weights, save_weights
from taskvec.weights.dtypes import EDITABLE, compute_dtype, short
from taskvec.weights.source import row_blocks
from taskvec.weights.staging import check_target

if TYPE_CHECKING:
    from taskvec.vectors.vector import TaskVector


def save_vector(
    vector: "TaskVector",
    path: str | Path,
    *,
    dtype: torch.dtype | None,
    force: bool,
    max_shard_size: float = 5e9,
    watch: Watch = unwatched,
    **info: Any,
) -> Path:
    """Write the deltas that are not zero, with the provenance in every header."""
    check_fields(info)
    if dtype is not None and dtype not in EDITABLE:
        wanted = ", ".join(sorted(map(short, EDITABLE)))
        raise InputError(f"{path}: dtype {short(dtype)}, expected one of {wanted}")
    # Refuse what cannot be written before reading gigabytes to find out what changed.
    check_target(Path(path).expanduser(), force=force, inputs=vector.files)
    deltas = Deltas(vector, dtype)
    types = {deltas.spec(name).dtype for name in deltas}
    stored = short(types.pop()) if len(types) == 1 else None
    unchanged = {name: spec.shape for name, spec in vector.specs.items() if name not in deltas}
    written = vector.info.model_copy(update={**info, "dtype": stored, "unchanged": unchanged})
    written = VectorInfo.model_validate(written.model_dump())
    return save_weights(
        deltas,
        path,
        force=force,
        max_shard_size=max_shard_size,
        metadata=written.header(),
        manifest={"kind": "task vector", **written.model_dump(mode="json", exclude={"unchanged"})},
        watch=watch,
    )


class Deltas(Weights):
    """The tensors of a vector that are not zero, in the element type they are stored in."""

    def __init__(self, vector: "TaskVector", dtype: torch.dtype | None) -> None:
        changed = [name for name in vector if is_changed(vector, name)]
        super().__init__(
            vector.ref,
            {
                name: TensorSpec(vector.specs[name].shape, dtype or vector.specs[name].dtype)
                for name in changed
            },
            ("deltas", hash(vector), dtype),
            files=vector.files,
        )
        self.by_rows = vector.by_rows
        self._vector = vector

    def _read(self, name: str, rows: slice | None) -> Tensor:
        return self._vector.read(name, rows).to(self._specs[name].dtype)


def is_changed(vector: "TaskVector", name: str) -> bool:
    """Whether any entry of ``name`` is not zero; stops at the first block that has one.

    What a rule may change counts as changed: computing it twice, to find out, costs more than storing it.
    """
    if not vector.terms_at(name):
        return False
    blocks = row_blocks(vector.specs[name].shape)
    return not vector.by_rows or any(bool(vector.read(name, rows).any()) for rows in blocks)


def widest(weights: Weights) -> torch.dtype:
    """The precision to compute in: float64 if any tensor is float64."""
    wide = any(weights.spec(name).dtype == torch.float64 for name in weights)
    return compute_dtype(torch.float64 if wide else torch.float32)
