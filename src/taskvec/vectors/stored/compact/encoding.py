"""A vector encoded, tensor by tensor, with the error of each."""

import math

import torch

from taskvec.errors import InputError, NonFinite
from taskvec.progress import Watch
from taskvec.vectors.delta import Delta
from taskvec.vectors.info import CompactInfo
from taskvec.vectors.stored.compact.form import PLAIN, Coded, Entries, Form, Parts, part_name, plain
from taskvec.vectors.stored.compact.spool import Spool
from taskvec.weights.blocks import row_blocks, rows_of
from taskvec.weights.dtypes import nonfinite_count
from taskvec.weights.writer import nonfinite_message


def encode(vector: Delta, form: Form, spool: Spool, dtype: torch.dtype | None, watch: Watch) -> CompactInfo:
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
        bad_entries, changed = _look_through(tensor) if vector.terms_at(name) else (0, False)
        if bad_entries:
            bad[name] = bad_entries
        if changed and not bad:
            parts = _smaller(form.encode(tensor, dtype or tensor.spec.dtype), tensor, dtype)
            for part, spec in parts.specs.items():
                _check_free(vector, name, part, spool)
                spool.allot(part_name(name, part), spec)
            for part, first, piece in parts.pieces:
                spool.put(part_name(name, part), piece, first)
            squares[name] = _squares(Parts(spool, name, parts.specs), form, tensor)
            if not math.isfinite(squares[name][0]):
                raise NonFinite(f"{vector.ref}: {name!r} is not finite after decoding; nothing was written")
            if PLAIN not in parts.specs:
                coded[name] = tensor.spec.shape
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


def _smaller(coded: Coded, tensor: Entries, dtype: torch.dtype | None) -> Coded:
    kept = plain(tensor, dtype or tensor.spec.dtype)
    sizes = [sum(spec.nbytes for spec in one.specs.values()) for one in (coded, kept)]
    return coded if sizes[0] < sizes[1] else kept


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


def _check_free(vector: Delta, name: str, part: str, spool: Spool) -> None:
    place = part_name(name, part)
    if place in spool or (part and place in vector):
        raise InputError(
            f"{vector.ref}: {place!r} is a tensor, expected no such name, as a part of {name!r} takes it"
        )
