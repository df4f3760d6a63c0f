"""Task vectors on disk."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from taskvec.errors import InputError
from taskvec.memory import within
from taskvec.progress import Watch, unwatched
from taskvec.reading import exists, local_path, shown
from taskvec.vectors.base import check_bound
from taskvec.vectors.info import OPEN_FIELDS, CompactInfo, VectorInfo, check_fields
from taskvec.vectors.stored.compact import FORMS, Form
from taskvec.vectors.stored.compact.decoding import Decoded
from taskvec.vectors.stored.compact.encoding import encode
from taskvec.vectors.stored.compact.spool import Spool
from taskvec.weights import TensorSpec, Weights, change, save_weights
from taskvec.weights.blocks import row_blocks
from taskvec.weights.change import Change
from taskvec.weights.dtypes import EDITABLE, compute_dtype, short
from taskvec.weights.staging import check_target

if TYPE_CHECKING:
    from taskvec.vectors.vector import TaskVector


def save_vector(
    vector: "TaskVector",
    path: str | Path,
    *,
    dtype: torch.dtype | None,
    force: bool,
    form: str | None = None,
    max_shard_size: float = 5e9,
    memory: float = 512e6,
    processes: int = 1,
    watch: Watch = unwatched,
    **options: Any,
) -> Path:
    """Write the deltas that are not zero, with the provenance in every header.

    Args:
        form: one of ``FORMS``, whose parameters are then among the options.
        **options: fields of ``VectorInfo``, which replace those that the vector has.
    """
    info = {name: value for name, value in options.items() if form is None or name in OPEN_FIELDS}
    check_fields(info)
    if dtype is not None and dtype not in EDITABLE:
        wanted = ", ".join(sorted(map(short, EDITABLE)))
        raise InputError(f"{path}: dtype {short(dtype)}, expected one of {wanted}")
    target = local_path(path)
    settings = {name: value for name, value in options.items() if name not in info}
    chosen = None if form is None else chosen_form(form, settings, dtype)
    # Refuse what cannot be written before reading gigabytes to find out what changed.
    check_target(target, force=force, inputs=vector.files)
    check_bound(vector.ref, vector.base)
    save = partial(
        _save,
        vector,
        info,
        path=path,
        force=force,
        max_shard_size=max_shard_size,
        memory=memory,
        watch=watch,
    )
    if chosen is None:
        return save(Deltas(vector, dtype), None, processes=processes)
    with Spool(vector.ref, target, vector.files) as spool, within(memory / 2):
        return save(spool, encode(vector, chosen, spool, dtype, watch))


def _save(
    vector: "TaskVector",
    info: Mapping[str, Any],
    stored: Weights,
    compact: CompactInfo | None,
    *,
    path: str | Path,
    watch: Watch,
    **options: Any,
) -> Path:
    """Write what is stored of a vector, whole tensors or parts, under a header that says so."""
    types = {stored.spec(name).dtype for name in stored}
    present = stored if compact is None else compact.errors
    facts = {
        "format": 2 if compact and compact.coded else 1,
        "dtype": short(types.pop()) if len(types) == 1 else None,
        "compact": compact,
        "masks": None,
        "unchanged": {name: spec.shape for name, spec in vector.specs.items() if name not in present},
    }
    said = VectorInfo.model_validate({**dict(vector.info), **info, **facts})
    manifest = {"kind": "task vector", **summary(said)}
    written = save_weights(stored, path, metadata=said.header(), manifest=manifest, watch=watch, **options)
    vector.changes = _changes(vector, stored)
    return written


def chosen_form(name: str, settings: Mapping[str, Any], dtype: torch.dtype | None) -> Form:
    """A form with its parameters.

    Raises: UnknownName; InputError for parameters that it has not, or that do not fit.
    """
    form = FORMS[name].parse(f"form {name!r}", dict(settings))
    if dtype is not None and not form.takes_dtype:
        raise InputError(f"form {name!r}: dtype {short(dtype)} given, expected none, as the form decides it")
    return form


def opened(weights: Weights, info: VectorInfo) -> Weights:
    """The deltas of an open file, decoded if they are in a compact form.

    Raises: InputError for a form that is not known, or a file of masks; CorruptFile.
    """
    if info.masks is not None:
        tasks = ", ".join(info.masks.factors)
        raise InputError(
            f"{weights.ref}: holds masked vectors of several tasks, expected one; "
            f"name a task, as in '{weights.ref}#TASK' (it has {tasks})"
        )
    if info.compact is None:
        return weights
    if info.compact.form not in FORMS:
        raise InputError(
            f"{weights.ref}: form {shown(info.compact.form)}, expected one of {', '.join(FORMS)}; "
            "a later taskvec wrote it, upgrade"
        )
    form = FORMS[info.compact.form].parse(f"{weights.ref}: 'settings' in the header", info.compact.settings)
    return Decoded(weights, form, info.compact)


def with_task(path: str | Path) -> tuple[str | Path, str | None]:
    """The file and the task in a reference to a masked vector, ``PATH#TASK``; a path that exists wins."""
    place, mark, task = str(path).rpartition("#")
    return (place, task) if mark and not exists(local_path(path)) else (path, None)


def masked(place: str | Path, task: str) -> "TaskVector":
    """The vector of one task in a file of masked vectors.

    Raises: InputError; CorruptFile; UnknownName for a task that it does not have.
    """
    from taskvec.vectors.stored.masked import MaskedVectors  # made of task vectors, which are made here

    return MaskedVectors.load(place).vector(task)


def summary(info: VectorInfo) -> dict[str, Any]:
    """The provenance without what is said tensor by tensor."""
    return info.model_dump(mode="json", exclude={"unchanged": True, "compact": {"errors", "coded"}})


def _changes(vector: "TaskVector", stored: Weights) -> Mapping[str, Change] | None:
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

    def read_with_change(self, name: str, rows: slice | None = None) -> tuple[Tensor, Change | None]:
        """As ``read``, and how far that leads from the base, if it is at hand."""
        base = self._vector.base.weights
        if base is None:
            return super().read_with_change(name, rows)
        begun = base.read(name, rows)
        delta = self._vector.read(name, rows, known=(base, begun)).to(self._specs[name].dtype)
        return delta, change.step(begun, delta)

    def change_to(self, name: str, rows: slice | None, made: Tensor) -> Change | None:
        """How far ``made``, which was read here before, leads from the base, if it is at hand."""
        base = self._vector.base.weights
        return None if base is None else change.step(base.read(name, rows), made)

    def in_rows(self, name: str) -> bool:
        """Whether rows of this tensor can be had by themselves."""
        return self._vector.in_rows(name)

    @property
    def inputs(self) -> tuple[Weights, ...]:
        """What the vector is made of."""
        return self._vector.inputs

    def prepare(self) -> None:
        """Take the passes over the whole model that the vector needs."""
        self._vector.prepare()

    def working_bytes(self, name: str) -> int:
        """Bytes that computing a block of ``name`` takes, about."""
        return super().working_bytes(name) + self._vector.working_bytes(name)


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
