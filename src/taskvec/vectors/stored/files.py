"""Task vectors on disk."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any, NamedTuple

from numpy.typing import NDArray

from taskvec.errors import InputError
from taskvec.later import torch
from taskvec.memory import within
from taskvec.progress import Watch, unwatched
from taskvec.reading import local_path, shown
from taskvec.vectors.base import Base, check_bound
from taskvec.vectors.bits import is_plain, plain
from taskvec.vectors.delta import Delta, Reading
from taskvec.vectors.directions import Stored
from taskvec.vectors.info import OPEN_FIELDS, CompactInfo, VectorInfo, check_fields, read_info
from taskvec.vectors.stored.compact import FORMS, Form
from taskvec.vectors.stored.compact.decoding import Decoded
from taskvec.vectors.stored.compact.encoding import encode
from taskvec.vectors.stored.compact.spool import Spool
from taskvec.vectors.stored.factored import as_stored
from taskvec.weights import TensorSpec, Weights, change, save_weights
from taskvec.weights.blocks import row_blocks
from taskvec.weights.change import Change
from taskvec.weights.dtypes import check_editable, name_of, short
from taskvec.weights.output import url_of
from taskvec.weights.staging import check_target

if TYPE_CHECKING:
    from torch import Tensor


class Saved(NamedTuple):
    """What was written.

    Attributes:
        path: where.
        changes: how far each tensor leads from the base, if that was at hand.
    """

    path: Path
    changes: Mapping[str, Change] | None


def save_vector(
    vector: Delta,
    path: str | Path,
    *,
    dtype: "torch.dtype | None",
    force: bool,
    form: str | None = None,
    memory: float = 512e6,
    watch: Watch = unwatched,
    **options: Any,
) -> Saved:
    """Write the deltas that are not zero, with the provenance in every header; factors as they are.

    Args:
        form: one of ``FORMS``, whose parameters are then among the options.
        **options: of ``save_weights``; fields of ``VectorInfo``, which replace those that the vector has.
    """
    given = [name for name in ("max_shard_size", "processes") if name in options]
    writing: dict[str, Any] = {name: options.pop(name) for name in given}
    info = {name: value for name, value in options.items() if form is None or name in OPEN_FIELDS}
    check_fields(info)
    check_editable(path, dtype)
    url = url_of(path)
    target = local_path(path) if url is None else Path(gettempdir()) / "vector"  # where scratch space is
    settings = {name: value for name, value in options.items() if name not in info}
    chosen = None if form is None else choose_form(form, settings, dtype)
    # Refuse what cannot be written before reading gigabytes to find out what changed.
    if url is None:
        check_target(target, force=force, inputs=vector.files)
    check_bound(vector.ref, vector.base)
    writing |= {"force": force, "memory": memory, "watch": watch}
    kept = None if form else as_stored(vector, dtype)
    if kept is not None:
        return _write(vector, path, info, kept.stored, kept.info, {**writing, "processes": 1})
    if chosen is None:
        return _write(vector, path, info, Uncoded(vector, dtype), None, writing)
    with Spool(vector.ref, target, vector.files) as spool, within(memory / 2):
        compact = encode(vector, chosen, spool, dtype, watch)
        return _write(vector, path, info, spool, compact, {**writing, "processes": 1})


def _write(
    vector: Delta,
    path: str | Path,
    info: Mapping[str, Any],
    stored: Weights,
    compact: CompactInfo | None,
    writing: Mapping[str, Any],
) -> Saved:
    """Write what is stored of a vector, whole tensors or parts, under a header that says so."""
    types = {stored.spec(name).code for name in stored}
    present = stored if compact is None else compact.errors
    facts = {
        "format": 2 if compact and compact.coded else 1,
        "dtype": name_of(types.pop()) if len(types) == 1 else None,
        "compact": compact,
        "masks": None,
        "unchanged": {name: spec.shape for name, spec in vector.specs.items() if name not in present},
    }
    header = VectorInfo.model_validate({**dict(vector.info), **info, **facts})
    return Saved(write_with(header, "task vector", stored, path, writing), _changes(vector, stored))


def write_with(
    header: VectorInfo, kind: str, stored: Weights, path: str | Path, writing: Mapping[str, Any]
) -> Path:
    """Write tensors under a header that says what they are, which the manifest says too."""
    manifest = {"kind": kind, **summary(header)}
    return save_weights(stored, path, metadata=header.header(), manifest=manifest, **writing)


def summary(info: VectorInfo) -> dict[str, Any]:
    """The provenance without what is said tensor by tensor."""
    return info.model_dump(mode="json", exclude={"unchanged": True, "compact": {"errors", "coded"}})


def choose_form(name: str, settings: Mapping[str, Any], dtype: "torch.dtype | None") -> Form:
    """A form with its parameters.

    Raises: UnknownName; InputError for parameters that it has not, or that do not fit.
    """
    form = FORMS[name].parse(f"form {name!r}", dict(settings))
    if dtype is not None and not form.takes_dtype:
        raise InputError(f"form {name!r}: dtype {short(dtype)} given, expected none, as the form decides it")
    return form


def open_vector(weights: Weights) -> Stored:
    """The deltas in an open file, decoded as they are read if they are in a compact form.

    Raises: InputError for a file of no task vector, or of several, or a form that is not known; CorruptFile.
    """
    info = read_info(weights)
    if info.masks is not None:
        tasks = ", ".join(info.masks.factors)
        raise InputError(
            f"{weights.ref}: holds masked vectors of several tasks, expected one; "
            f"name a task, as in '{weights.ref}#TASK' (it has {tasks})"
        )
    return stored_deltas(weights if info.compact is None else _decoded(weights, info.compact), info)


def stored_deltas(weights: Weights, info: VectorInfo) -> Stored:
    """The direction whose deltas that are not zero are ``weights``."""
    wide = any(weights.spec(name).code == "F64" for name in weights)
    code = "F64" if wide else "F32"
    unchanged = {name: TensorSpec(shape, code) for name, shape in info.unchanged.items()}
    return Stored(weights, Base(info.base.ref, info.base.fingerprint), info, unchanged)


def _decoded(weights: Weights, compact: CompactInfo) -> Decoded:
    if compact.form not in FORMS:
        raise InputError(
            f"{weights.ref}: form {shown(compact.form)}, expected one of {', '.join(FORMS)}; "
            "a later taskvec wrote it, upgrade"
        )
    form = FORMS[compact.form].parse(f"{weights.ref}: 'settings' in the header", compact.settings)
    return Decoded(weights, form, compact)


def _changes(vector: Delta, stored: Weights) -> Mapping[str, Change] | None:
    """How far each tensor leads from the base, as measured while it was stored; the others do not move."""
    base = vector.base.weights
    if base is None or stored.changes is None:
        return None
    still = {
        name: change.total(
            change.between(block, block)
            for block in (base.read(name, rows) for rows in base.row_blocks(name))
        )
        for name in vector.specs
        if name not in stored
    }
    return {**stored.changes, **still}


class Uncoded(Weights):
    """The tensors of a vector that are not zero, in the element type they are stored in."""

    def __init__(self, vector: Delta, dtype: "torch.dtype | None") -> None:
        specs = {name: spec for name, spec in vector.specs.items() if is_changed(vector, name)}
        super().__init__(
            vector.ref,
            {name: TensorSpec(spec.shape, dtype or spec.code) for name, spec in specs.items()},
            ("uncoded", hash(vector), dtype),
            parts=[vector],
        )
        self._vector = vector

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        return self._vector.read(name, rows).to(self._specs[name].dtype)

    def read_with_change(self, name: str, rows: slice | None = None) -> "tuple[Tensor, Change | None]":
        """As ``read``, and how far that leads from the base, if it is at hand."""
        base = self._vector.base.weights
        if base is None:
            return super().read_with_change(name, rows)
        begun = base.read(name, rows)
        reading = Reading(name, rows, self._vector.specs[name].dtype, (base, begun))
        delta = self._vector.evaluate(reading).to(self._specs[name].dtype)
        return delta, change.step(begun, delta)

    def array_with_change(self, name: str, rows: slice | None = None) -> "tuple[NDArray[Any], Change | None]":
        """As ``read_with_change``, between files without torch."""
        base, terms = self._vector.base.weights, self._vector.terms_at(name)
        if base is None or self._specs[name].code != "F32" or not is_plain(terms, name):
            return super().array_with_change(name, rows)
        if base.spec(name).code not in ("F32", "BF16"):
            return super().array_with_change(name, rows)
        begun = base.read_array(name, rows)
        delta = plain(terms, name, rows, (base, begun))
        return delta, change.step_of_array(begun, base.spec(name).code, delta)

    def change_to(self, name: str, rows: slice | None, made: "Tensor") -> Change | None:
        """How far ``made``, which was read here before, leads from the base, if it is at hand."""
        base = self._vector.base.weights
        return None if base is None else change.step(base.read(name, rows), made)


def is_changed(vector: Delta, name: str) -> bool:
    """Whether any entry of ``name`` is not zero; stops at the first block that has one.

    What a rule may change counts as changed: computing it twice, to find out, costs more than storing it.
    """
    if not vector.terms_at(name):
        return False
    if not vector.by_rows:
        return True
    terms, blocks = vector.terms_at(name), row_blocks(vector.specs[name].shape)
    if is_plain(terms, name):
        return any(bool(plain(terms, name, rows).any()) for rows in blocks)
    return any(bool(vector.read(name, rows).any()) for rows in blocks)
