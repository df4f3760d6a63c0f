"""Task vectors written as LoRA adapters: the nearest matrix of low rank for every linear layer."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskvec._version import __version__
from taskvec.arguments import checked
from taskvec.errors import InputError, NonFinite
from taskvec.names import is_lookup, select_names
from taskvec.progress import Watch, unwatched
from taskvec.reading import local_path
from taskvec.vectors.delta import Delta
from taskvec.vectors.geometry import norm_of
from taskvec.vectors.lora.fit import bias_of, is_transposed, kind, orientations
from taskvec.vectors.lora.lowrank import factoring_bytes, leading
from taskvec.vectors.stored.files import is_changed
from taskvec.vectors.vector import TaskVector
from taskvec.weights import save_weights
from taskvec.weights.dtypes import check_editable, nonfinite_count
from taskvec.weights.staging import FOREIGN, MANIFEST, check_space, check_target, files_in, staged
from taskvec.weights.writer import nonfinite_message
from taskvec.writing import write_json


@dataclass(frozen=True)
class Extraction:
    """What an adapter that was made of a task vector holds of it.

    Attributes:
        path: its folder.
        rank: of every matrix.
        errors: for each matrix, the norm of what the factors miss, relative to its own norm.
        matrices_error: the same over all matrices together.
        error: the same over the whole task vector: what was left out is missed too.
        left_out: tensors that are changed and have no factors -> the norm of their change.
    """

    path: Path
    rank: int
    errors: Mapping[str, float]
    matrices_error: float
    error: float
    left_out: Mapping[str, float]


@checked
def save_adapter(
    vector: TaskVector,
    path: str | Path,
    *,
    rank: int,
    only: str = "all",
    dtype: torch.dtype | None = None,
    task: str | None = None,
    force: bool = False,
    watch: Watch = unwatched,
) -> Extraction:
    """Write the linear layers of a task vector as a LoRA adapter that PEFT loads.

    What is no matrix of a linear layer is left out, and reported: biases, norms, embeddings, convolutions,
    and weights that serve two layers. The scaling is 1, whatever the rank.

    Args:
        path: a folder.
        rank: of the factors; those of a matrix that has a smaller one are filled up with zeros.
        only: which matrices, as for ``select_names``: ``all``, ``attention``, ``mlp`` or ``re:PATTERN`` on
            whole names. The others are left out.
        dtype: element type of the factors; float32 by default, float64 for float64 models.
        task: what the fine-tuning was for; kept in the manifest.
        force: replace an output that exists.
        watch: told of each matrix.

    Raises: InputError where nothing is left; OutputExists; DiskFull; NonFinite.
    Cost: the memory of all factors and of the largest matrix a few times; of large matrices a few products
        with thin ones, see ``leading``.
    """
    target = local_path(path)
    _check(target, rank, dtype)
    check_target(target, force=force, inputs=vector.files)
    chosen, others = _choose(vector, only)
    largest = max(min(vector.specs[name].shape) for name in chosen)
    if rank > largest:
        raise InputError(f"rank: {rank}, expected at most {largest}, that of the largest matrix")
    known = orientations({name: spec.shape for name, spec in vector.specs.items()})
    turned = {name: _is_turned(vector, name, known) for name in chosen}
    specs = [vector.specs[name] for name in chosen]
    check_space(target, sum(rank * sum(spec.shape) * (dtype or spec.dtype).itemsize for spec in specs))
    factors: dict[str, Tensor] = {}
    norms: dict[str, tuple[float, float]] = {}
    for done, name in enumerate(chosen, start=1):
        (b, a), norms[name] = _factor(vector, name, turned[name], rank, dtype)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        factors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        watch("factors", done, len(chosen))
    sizes = {name: norm_of(vector, name) for name in others}
    made = _extraction(target, rank, norms, {name: size for name, size in sizes.items() if size})
    with staged(target, folder=True, force=force, inputs=vector.files) as work:
        save_weights(factors, work / "adapter_model.safetensors")
        write_json(work / "adapter_config.json", _config(vector, turned, rank))
        write_json(work / MANIFEST, {**_manifest(vector, made, only, task), "files": files_in(work)})
    return made


def _factor(
    vector: Delta, name: str, turned: bool, rank: int, dtype: torch.dtype | None
) -> tuple[tuple[Tensor, Tensor], tuple[float, float]]:
    """The factors (out, rank) and (rank, in) of a matrix; its norm, and that of what they miss.

    Raises: NonFinite.
    """
    delta = vector.read(name)
    bad = nonfinite_count(delta)
    if bad:
        raise NonFinite(nonfinite_message(vector.ref, {name: bad}))
    change = delta.T if turned else delta
    b, a = (half.to(dtype or half.dtype).contiguous() for half in leading(change, rank))
    missed = torch.linalg.vector_norm(change - b.to(delta.dtype) @ a.to(delta.dtype))
    return (b, a), (float(torch.linalg.vector_norm(delta, dtype=torch.float64)), float(missed))


def _extraction(
    target: Path, rank: int, norms: Mapping[str, tuple[float, float]], left_out: Mapping[str, float]
) -> Extraction:
    """What the factors hold, from the norms of the matrices and of what they miss of each."""
    sizes, missed, rest = [s for s, _ in norms.values()], [m for _, m in norms.values()], left_out.values()
    return Extraction(
        target,
        rank,
        {name: _ratio(miss, size) for name, (size, miss) in norms.items()},
        _ratio(math.hypot(*missed), math.hypot(*sizes)),
        _ratio(math.hypot(*missed, *rest), math.hypot(*sizes, *rest)),
        left_out,
    )


def working_bytes(vector: Delta, rank: int, only: str = "all") -> Iterator[tuple[str, int]]:
    """The bytes that it takes to factor each matrix that is chosen, all factors included."""
    chosen, _ = _choose(vector, only)
    shapes = [(name, vector.specs[name]) for name in chosen]
    held = sum(rank * sum(spec.shape) * spec.dtype.itemsize for _, spec in shapes)
    for name, spec in shapes:
        yield name, held + vector.working_bytes(name) + factoring_bytes(spec.shape, rank, spec.dtype)


def _check(target: Path, rank: int, dtype: torch.dtype | None) -> None:
    if rank < 1:
        raise InputError(f"rank: {rank}, expected 1 or more")
    if target.suffix.casefold() in FOREIGN:
        raise InputError(f"{target}: an adapter is a folder, expected a name without {target.suffix}")
    check_editable(target, dtype)


def _choose(vector: Delta, only: str) -> tuple[list[str], list[str]]:
    """The matrices to be factored, and the other tensors that are changed."""
    tied = set() if vector.base.weights is None else set(vector.base.weights.tied.values())
    linear = [name for name in vector if _is_linear(vector, name) and name not in tied]
    if not linear:
        raise InputError(
            f"{vector.ref}: has no matrix of a linear layer, expected some to make an adapter of"
        )
    wanted = linear if only == "all" else set(select_names(linear, only, vector.ref))
    changed = [name for name in vector if is_changed(vector, name)]
    chosen = [name for name in changed if name in wanted]
    if not chosen:
        raise InputError(f"{vector.ref}: changes none of {len(linear)} linear layers that were asked for")
    return chosen, [name for name in changed if name not in wanted]


def _is_linear(vector: Delta, name: str) -> bool:
    shape = vector.specs[name].shape
    if len(shape) != 2 or 0 in shape or not name.endswith(".weight") or name.count(".") < 1:
        return False
    return bias_of(name) in vector.specs or not is_lookup(kind(name))


def _is_turned(vector: Delta, name: str, known: Mapping[str, set[bool]]) -> bool:
    """Whether a matrix is stored as (in, out), which only layers with a bias are."""
    if bias_of(name) not in vector.specs:
        return False
    transposed = is_transposed(name, known, default=False)
    if transposed is None:
        raise InputError(
            f"{vector.ref}: {name!r}: layers of the model have both orientations, and none of this kind "
            "tells its own, expected one with a bias; leave it out with only (--only)"
        )
    return transposed


def _config(vector: Delta, turned: Mapping[str, bool], rank: int) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": vector.base.ref,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": all(turned.values()),
        "init_lora_weights": True,
        "target_modules": [name.removesuffix(".weight") for name in turned],
    }


def _manifest(vector: Delta, made: Extraction, only: str, task: str | None) -> dict[str, Any]:
    return {
        "created_by": f"taskvec {__version__}",
        "kind": "LoRA adapter",
        "task": task or vector.info.task,
        "rank": made.rank,
        "only": only,
        "relative_error": made.error,
        "relative_error_of_matrices": made.matrices_error,
        "relative_errors": dict(made.errors),
        "left_out": dict(made.left_out),
        "vector": vector.info.model_dump(mode="json", exclude={"unchanged"}),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
