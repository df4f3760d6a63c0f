"""One vector for many tasks, with a mask and a factor for each: EMR and TALL masks.

Such vectors are no merge: whoever serves the model has to know the task. In exchange a task costs one bit
a parameter, and comes back almost whole.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from taskvec.arguments import checked
from taskvec.errors import InputError, NonFinite, UnknownName
from taskvec.later import torch
from taskvec.progress import Watch, unwatched
from taskvec.reading import local_path
from taskvec.registry import nearest
from taskvec.vectors.base import check_bound
from taskvec.vectors.combining import combine
from taskvec.vectors.delta import Summand
from taskvec.vectors.info import MaskInfo, VectorInfo, read_info
from taskvec.vectors.stored.compact.form import pack, packed_size, part_name
from taskvec.vectors.stored.compact.spool import Spool
from taskvec.vectors.stored.files import stored_deltas, write_with
from taskvec.vectors.stored.masks import Computed, Masks, Needed, Packed, Unified, deltas_like
from taskvec.vectors.vector import TaskVector
from taskvec.weights import TensorSpec, Weights, open_weights
from taskvec.weights.blocks import block_size, row_blocks, row_size, rows_of
from taskvec.weights.dtypes import check_editable, nonfinite_count, short
from taskvec.weights.staging import check_target

if TYPE_CHECKING:
    from torch import Tensor

Rescaler = Literal["global", "tensor_mean"]


class Masked(Summand):
    """The direction of one task: the unified one where its mask says so, times its factor."""

    def __init__(self, vectors: "MaskedVectors", task: str) -> None:
        unified, masks, info = vectors.unified, vectors.masks, vectors.info
        ref, settings = f"{vectors.ref}#{task}", repr(sorted(info.settings.items()))
        rule = {"name": info.method, **info.settings, "factor": info.factors[task]}
        super().__init__(
            ref,
            ("masked", info.method, settings, task, unified, masks.identity),
            unified.specs,
            unified.base,
            parts=(unified, masks),
            recorded=VectorInfo(tuned=ref, task=task, rule=rule),
        )
        self._unified, self._masks, self._task = unified, masks, task
        self._factor = info.factors[task]

    def changes(self, name: str) -> bool:
        return bool(self._unified.terms_at(name))

    def compute(self, name: str, rows: slice | None, dtype: "torch.dtype") -> "Tensor":
        if rows is not None and rows.step not in (None, 1):
            return rows_of(self.compute(name, None, dtype), rows)
        unified = self._unified.read(name, rows, dtype)
        mask = self._masks.read(self._task, name, rows, unified)
        return torch.where(mask, unified, 0).mul_(self._factor)


@checked
@dataclass(frozen=True, eq=False)
class MaskedVectors:
    """A unified vector, and a mask and a factor for each task.

    Attributes:
        unified: the vector that all tasks share.
        masks: of every task.
        info: method, settings and factors, by task.
        ref: opens error messages.
    """

    unified: TaskVector
    masks: Masks
    info: MaskInfo
    ref: str

    def __post_init__(self) -> None:
        check_bound(self.ref, self.unified.base)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(self.info.factors)

    def vector(self, task: str) -> TaskVector:
        """``factor * mask * unified``, lazily: what is applied at scale 1 to serve the task.

        Raises: UnknownName, with the nearest task.
        """
        if task not in self.info.factors:
            raise UnknownName(f"{self.ref}: no task called {task!r}; {nearest(task, self.info.factors)}")
        return TaskVector.of(Masked(self, task))

    def save(
        self,
        path: str | Path,
        *,
        dtype: "torch.dtype | None" = None,
        force: bool = False,
        max_shard_size: float = 5e9,
        memory: float = 512e6,
        watch: Watch = unwatched,
    ) -> Path:
        """Write the unified vector and, beside each of its tensors, the masks: a file or a folder.

        ``TaskVector.load("PATH#TASK")`` opens the vector of a task.

        Args:
            dtype: element type of the unified vector; that of computing by default.
            force, max_shard_size, memory, watch: as for ``save_weights``.

        Returns: the path written.
        Raises: OutputExists; DiskFull; NonFinite; InputError for names that collide.
        Cost: each vector is read twice; blocks of a few MiB of each in memory, and twice the result on the
            disk until it is complete.
        """
        check_editable(path, dtype)
        target, files = local_path(path), (*self.unified.files, *self.masks.files)
        check_target(target, force=force, inputs=files)
        with Spool(self.ref, target, files) as spool:
            self._put_into(spool, dtype, watch)
            header = VectorInfo(
                format=2,
                base=self.unified.info.base,
                tuned=self.ref,
                dtype=short(dtype) if dtype else None,
                rule={"name": self.info.method, **self.info.settings},
                masks=self.info,
                unchanged={
                    name: spec.shape for name, spec in self.unified.specs.items() if name not in spool
                },
            )
            writing = {"force": force, "memory": memory, "watch": watch, "max_shard_size": max_shard_size}
            return write_with(header, "masked task vectors", spool, path, writing)

    def _put_into(self, spool: Spool, dtype: "torch.dtype | None", watch: Watch) -> None:
        """Unified tensors and masks, from one pass over all vectors."""
        changed = [name for name in self.unified if self.unified.terms_at(name)]
        for done, name in enumerate(changed, 1):
            spec = self.unified.specs[name]
            spool.allot(name, TensorSpec(spec.shape, dtype or spec.code))
            for task in self.tasks:
                if part_name(name, task) in self.unified:
                    raise InputError(
                        f"{self.ref}: {part_name(name, task)!r} is a tensor, expected no such name, "
                        f"as the mask of {task!r} takes it"
                    )
                spool.allot(part_name(name, task), TensorSpec((packed_size(spec.numel),), torch.uint8))
            in_rows = self.unified.in_rows(name) and self.masks.in_rows(name)
            for rows in row_blocks(spec.shape, multiple=8) if in_rows else [None]:
                unified = self.unified.read(name, rows)
                first = 0 if rows is None else rows.start
                bits = first and first * row_size(spec.shape)
                spool.put(name, unified.to(dtype or spec.dtype), first)
                for task in self.tasks:
                    mask = self.masks.read(task, name, rows, unified)
                    spool.put(part_name(name, task), pack(mask), bits // 8)
            watch(f"masking {spool.target.name}", done, len(changed))

    @classmethod
    def load(cls, path: str | Path) -> "MaskedVectors":
        """Open a file or folder of masked vectors; reads its headers only.

        Raises: InputError if it holds none; CorruptFile.
        """
        return cls.opened(open_weights(path))

    @classmethod
    def opened(cls, weights: Weights) -> "MaskedVectors":
        """The masked vectors in a file that is open already.

        Raises: InputError if it holds none; CorruptFile.
        """
        info = read_info(weights)
        if info.masks is None:
            raise InputError(
                f"{weights.ref}: holds one task vector, expected masked ones; "
                "make them with: taskvec mask -v a=A -v b=B -o OUT"
            )
        held = Unified(weights, info.masks)
        shapes = {name: held.spec(name).shape for name in held}
        unified = TaskVector.of(stored_deltas(held, info))
        return cls(unified, Packed(weights, shapes, info.masks.factors), info.masks, weights.ref)


def open_task(weights: Weights, task: str) -> TaskVector:
    """The vector of one task in an open file of masked vectors.

    Raises: InputError; CorruptFile; UnknownName for a task that it does not have.
    """
    return MaskedVectors.opened(weights).vector(task)


def masking_needs(vectors: Mapping[str, TaskVector]) -> Iterator[tuple[str, int]]:
    """The bytes that it takes to mask each tensor of the vectors, a block at a time where that goes."""
    if not vectors:
        return
    unified = combine("emr", list(vectors.values()))
    for name, spec in unified.specs.items():
        elements = block_size(spec.shape, whole=not unified.in_rows(name))
        yield name, unified.working_bytes(name) + 4 * spec.itemsize * elements


@checked
def emr(vectors: Mapping[str, TaskVector], *, rescaler: Rescaler = "global") -> MaskedVectors:
    """EMR: elect signs, mask by sign, rescale to the size of the task.

        unified  = sgn(sum_t tau_t) * max_t |tau_t| over the tasks whose entry has that sign
        mask_t   = 1[tau_t has that sign]
        factor_t = sum |tau_t| / sum |mask_t unified|,     1 where nothing is left

    With ``global`` the sums are over the whole vector, so that a task's vector keeps its L1 norm;
    ``tensor_mean`` gives each tensor the same weight, as the authors' code does: sums over tensors of means.

    Args:
        vectors: by task, of the same base. One alone comes back as it is.

    Raises: InputError for no vectors, or names with ``#``; BaseMismatch; NonFinite.
    Cost: reads each vector twice, for the factors.
    Source: Huang et al. 2024, arXiv:2405.17461.
    """
    _check_tasks("emr", vectors)
    if rescaler not in get_args(Rescaler):
        raise InputError(f"emr: rescaler is {rescaler!r}, expected one of {', '.join(get_args(Rescaler))}")
    unified = combine("emr", list(vectors.values()))
    factors, needed = _rescale(vectors, unified, rescaler), dict.fromkeys(vectors, _agrees)
    return _computed("emr", {"rescaler": rescaler}, vectors, unified, factors, needed)


@checked
def tall_masks(vectors: Mapping[str, TaskVector], *, lam: float | Mapping[str, float] = 0.4) -> MaskedVectors:
    """TALL masks: of the sum of all vectors, the entries that a task needs.

        unified = sum_t tau_t
        mask_t  = 1[|tau_t| > lam_t |unified - tau_t|],     factor_t = 1

    Args:
        vectors: by task, of the same base.
        lam: one for all tasks or one for each; 0.2 to 0.6 in the paper, chosen on validation data. The
            larger, the fewer entries a task needs.

    Raises: InputError for no vectors, names with ``#``, or a lam that is no number from 0 on; BaseMismatch.
    Source: Wang et al. 2024, arXiv:2405.07813 (it writes >=, the authors' code >).
    """
    _check_tasks("tall", vectors)
    lams = dict(lam) if isinstance(lam, Mapping) else dict.fromkeys(vectors, lam)
    if lams.keys() != vectors.keys():
        raise InputError(f"tall: lam for {', '.join(lams)}, expected one for each of {', '.join(vectors)}")
    for task, value in lams.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise InputError(f"tall: lam is {value!r} for {task!r}, expected a finite number, 0 or more")
    needed = {task: partial(_outweighs, lam=float(lams[task])) for task in vectors}
    unified = combine("sum", list(vectors.values()))
    return _computed("tall", {"lam": lam}, vectors, unified, dict.fromkeys(vectors, 1.0), needed)


def _agrees(deltas: "Tensor", unified: "Tensor") -> "Tensor":
    return (deltas.sign() == unified.sign()) & (deltas != 0)


def _outweighs(deltas: "Tensor", unified: "Tensor", *, lam: float) -> "Tensor":
    return deltas.abs() > lam * (unified - deltas).abs()


def _computed(
    method: str,
    settings: Mapping[str, Any],
    vectors: Mapping[str, TaskVector],
    unified: TaskVector,
    factors: Mapping[str, float],
    needed: Mapping[str, Needed],
) -> MaskedVectors:
    info = MaskInfo(method=method, settings=dict(settings), factors=dict(factors))
    masks = Computed(vectors, needed, (method, repr(sorted(settings.items()))))
    return MaskedVectors(unified, masks, info, f"{method}({', '.join(vectors)})")


def _rescale(vectors: Mapping[str, TaskVector], unified: TaskVector, rescaler: Rescaler) -> dict[str, float]:
    """The factor of each task, from sums in float64."""
    sizes, left = dict.fromkeys(vectors, 0.0), dict.fromkeys(vectors, 0.0)
    for name, spec in unified.specs.items():
        if not (unified.terms_at(name) and spec.numel):
            continue
        share = 1.0 if rescaler == "global" else 1.0 / spec.numel
        for rows in row_blocks(spec.shape) if unified.in_rows(name) else [None]:
            shared = unified.read(name, rows)
            for task, vector in vectors.items():
                deltas = deltas_like(shared, vector, name, rows)
                if nonfinite_count(deltas):
                    raise NonFinite(f"{task}: {name!r} holds values that are NaN or infinite")
                kept = shared[_agrees(deltas, shared)]
                sizes[task] += share * float(deltas.abs().sum(dtype=torch.float64))
                left[task] += share * float(kept.abs().sum(dtype=torch.float64))
    return {task: sizes[task] / left[task] if left[task] else 1.0 for task in vectors}


def _check_tasks(where: str, vectors: Mapping[str, TaskVector]) -> None:
    if not vectors:
        raise InputError(f"{where}: no task vectors, expected at least one")
    for task in vectors:
        if not task or "#" in task:
            raise InputError(f"{where}: a task is called {task!r}, expected a name without '#'")
