"""A vector encoded, tensor by tensor, with the error of each."""

import math

from taskvec.errors import InputError, NonFinite
from taskvec.later import torch
from taskvec.progress import Watch
from taskvec.vectors.delta import Delta
from taskvec.vectors.info import CompactInfo
from taskvec.vectors.stored.compact.form import PLAIN, Entries, Form, Parts, part_name, plain
from taskvec.vectors.stored.compact.spool import Spool
from taskvec.weights.blocks import row_blocks, rows_of
from taskvec.weights.dtypes import nonfinite_count
from taskvec.weights.streaming import nonfinite_message


def encode(vector: Delta, form: Form, spool: Spool, dtype: "torch.dtype | None", watch: Watch) -> CompactInfo:
    """Put the parts of every tensor that is not zero into ``spool``; what the header says of them.

    A tensor for which the form needs no fewer bytes is kept as it is.

    Args:
        dtype: of what is stored as floats, where that is a choice; that of computing by default.

    Raises: NonFinite, for a delta or what it would be after decoding; InputError for names that collide.
    Cost: a few passes over every tensor, block by block, where the form does not need a tensor whole.
    """
    coded: dict[str, tuple[int, ...]] = {}
    squares: dict[str, tuple[float, float]] = {}
    bad: dict[str, int] = {}
    for done, name in enumerate(vector, 1):
        tensor = _entries(vector, name)
        nonfinite, changed = _look_through(tensor) if vector.terms_at(name) else (0, False)
        if nonfinite:
            bad[name] = nonfinite
        if changed and not bad:
            parts = _store(vector, name, tensor, form, spool, dtype)
            squares[name] = _squares(parts, form, tensor)
            if not math.isfinite(squares[name][0]):
                raise NonFinite(f"{vector.ref}: {name!r} is not finite after decoding; nothing was written")
            if PLAIN not in parts.specs:
                coded[name] = tensor.spec.shape
        if not bad:
            watch(f"encoding {spool.target.name}", done, len(vector))
    if bad:
        raise NonFinite(nonfinite_message(vector.ref, bad))
    lost, whole = (math.sqrt(math.fsum(pair[side] for pair in squares.values())) for side in (0, 1))
    return CompactInfo(
        form=form.name,
        settings=form.model_dump(),
        error=_ratio(lost, whole),
        errors={name: _ratio(math.sqrt(gone), math.sqrt(all_)) for name, (gone, all_) in squares.items()},
        coded=coded,
    )


def _store(
    vector: Delta, name: str, tensor: Entries, form: Form, spool: Spool, dtype: "torch.dtype | None"
) -> Parts:
    """Put the parts of a tensor into the spool: those of the form, or itself if that is smaller."""
    plain_dtype = dtype or tensor.spec.dtype
    coded, kept = form.encode(tensor, plain_dtype), plain(tensor, plain_dtype)
    sizes = [sum(spec.nbytes for spec in way.specs.values()) for way in (coded, kept)]
    chosen = coded if sizes[0] < sizes[1] else kept
    for part, spec in chosen.specs.items():
        place = part_name(name, part)
        if place in spool or (part and place in vector):
            raise InputError(
                f"{vector.ref}: {place!r} is a tensor, expected no such name, as a part of {name!r} takes it"
            )
        spool.allot(place, spec)
    for part, first, piece in chosen.pieces:
        spool.put(part_name(name, part), piece, first)
    return Parts(spool, name, chosen.specs)


def working_bytes(vector: Delta, form: Form, name: str) -> int:
    """Bytes that encoding ``name`` takes, at most."""
    spec = vector.specs[name]
    whole = 0 if vector.in_rows(name) else spec.nbytes
    return vector.working_bytes(name) + whole + form.working_bytes(spec.shape, spec.dtype)


def _entries(vector: Delta, name: str) -> Entries:
    """A tensor of the vector; at hand as a whole where its rows cannot be had by themselves."""
    if vector.in_rows(name):
        return Entries(vector.specs[name], lambda rows: vector.read(name, rows))
    whole = vector.read(name)
    return Entries(vector.specs[name], lambda rows: rows_of(whole, rows))


def _look_through(tensor: Entries) -> tuple[int, bool]:
    """How many entries are NaN or infinite, and whether any is not zero."""
    bad, changed = 0, False
    for rows in row_blocks(tensor.spec.shape):
        block = tensor.read(rows)
        bad += nonfinite_count(block)
        changed = changed or bool(block.any())
    return bad, changed


def _squares(parts: Parts, form: Form, tensor: Entries) -> tuple[float, float]:
    """Squared norms of what was lost and of the tensor, in float64."""
    shape, lost, whole = tensor.spec.shape, 0.0, 0.0
    for rows in row_blocks(shape):
        block = tensor.read(rows).double()
        back = parts.read(PLAIN, rows) if PLAIN in parts.specs else form.decode(parts, shape, rows)
        lost += float((back.double() - block).square().sum())
        whole += float(block.square().sum())
    return lost, whole


def _ratio(lost: float, whole: float) -> float:
    """Six digits of it."""
    return float(f"{lost / whole if whole else 0.0:.6g}")
