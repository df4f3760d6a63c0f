"""A vector encoded, tensor by tensor, with the error of each."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from taskvec.errors import InputError, NonFinite
from taskvec.progress import Watch
from taskvec.vectors.compact.form import PLAIN, Form, Parts, part_name
from taskvec.vectors.compact.spool import Spool
from taskvec.vectors.info import CompactInfo
from taskvec.weights.dtypes import nonfinite_count
from taskvec.weights.source import row_blocks, rows_of
from taskvec.weights.writer import nonfinite_message

if TYPE_CHECKING:
    from taskvec.vectors.vector import TaskVector


def encode(
    vector: "TaskVector", form: Form, spool: Spool, dtype: torch.dtype | None, watch: Watch
) -> CompactInfo:
    """Put the parts of every tensor that is not zero into ``spool``; what the header says of them.

    A tensor for which the form needs no fewer bytes is kept as it is.

    Args:
        dtype: of what is stored as floats, where that is a choice; that of computing by default.

    Raises: NonFinite, for a delta or what it would be after decoding; InputError for names that collide.
    Cost: one read of every tensor; one tensor at a time in memory, with what encoding it takes.
    """
    coded: dict[str, tuple[int, ...]] = {}
    squares: dict[str, tuple[float, float]] = {}
    bad: dict[str, int] = {}
    for done, name in enumerate(vector, 1):
        tensor = vector.read(name) if vector.terms_at(name) else torch.zeros(())
        count = nonfinite_count(tensor)
        if count:
            bad[name] = count
        if tensor.any() and not bad:
            parts = _smaller(form.encode(tensor, dtype or tensor.dtype), tensor, dtype)
            squares[name] = _squares(parts, form, tensor)
            if not math.isfinite(squares[name][0]):
                raise NonFinite(f"{vector.ref}: {name!r} is not finite after decoding; nothing was written")
            if PLAIN not in parts:
                coded[name] = tuple(tensor.shape)
            for part, value in parts.items():
                _check_free(vector, name, part, spool)
                spool.add(part_name(name, part), value)
        if not bad:
            watch(f"encoding {spool.target.name}", done, len(vector))
    if bad:
        raise NonFinite(nonfinite_message(vector.ref, bad))
    lost, whole = (math.sqrt(math.fsum(pair[at] for pair in squares.values())) for at in (0, 1))
    return CompactInfo(
        form=form.name,
        settings=form.model_dump(),
        error=_ratio(lost, whole),
        errors={name: _ratio(math.sqrt(gone), math.sqrt(all_)) for name, (gone, all_) in squares.items()},
        coded=coded,
    )


def _smaller(parts: dict[str, Tensor], tensor: Tensor, dtype: torch.dtype | None) -> dict[str, Tensor]:
    plain = tensor.to(dtype or tensor.dtype)
    return parts if sum(part.nbytes for part in parts.values()) < plain.nbytes else {PLAIN: plain}


def _squares(parts: dict[str, Tensor], form: Form, tensor: Tensor) -> tuple[float, float]:
    """Squared norms of what was lost and of the tensor, in float64."""
    held, lost, whole = Parts.held(parts), 0.0, 0.0
    for rows in row_blocks(tuple(tensor.shape)):
        block = rows_of(tensor, rows).double()
        back = held.read(PLAIN, rows) if PLAIN in parts else form.decode(held, tuple(tensor.shape), rows)
        lost += float((back.double() - block).square().sum())
        whole += float(block.square().sum())
    return lost, whole


def _ratio(lost: float, whole: float) -> float:
    """Six digits of it."""
    return float(f"{lost / whole if whole else 0.0:.6g}")


def _check_free(vector: "TaskVector", name: str, part: str, spool: Spool) -> None:
    place = part_name(name, part)
    if place in spool or (part and place in vector):
        raise InputError(
            f"{vector.ref}: {place!r} is a tensor, expected no such name, as a part of {name!r} takes it"
        )
