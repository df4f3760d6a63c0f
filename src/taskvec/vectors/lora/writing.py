"""Task vectors written as LoRA adapters: the nearest matrix of low rank for every linear layer, or the sum of
adapters as one."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec._version import __version__
from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.later import torch
from taskvec.progress import Watch, unwatched
from taskvec.reading import local_path
from taskvec.vectors.delta import Delta
from taskvec.vectors.geometry import norm_of
from taskvec.vectors.info import BaseInfo, VectorInfo
from taskvec.vectors.lora.factoring import AdapterPart, Matrix
from taskvec.vectors.lora.selecting import Selection, select
from taskvec.vectors.lora.targets import Target
from taskvec.vectors.vector import TaskVector
from taskvec.weights import save_weights
from taskvec.weights.dtypes import check_editable
from taskvec.weights.staging import FOREIGN, MANIFEST, check_space, check_target, files_in, staged
from taskvec.writing import write_json

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Extraction:
    """What an adapter that was made of a task vector holds of it.

    Attributes:
        path: its folder.
        rank: of every matrix; of an exact sum, the largest.
        errors: for each matrix, the norm of what the factors miss, relative to its own norm.
        matrices_error: the same over all matrices together.
        error: the same over the whole task vector: what was left out is missed too.
        left_out: tensors that are changed and have no factors -> the norm of their change.
        notes: on the names of its layers, and on what may not read it.
    """

    path: Path
    rank: int
    errors: Mapping[str, float]
    matrices_error: float
    error: float
    left_out: Mapping[str, float]
    notes: tuple[str, ...] = ()


@checked
def save_adapter(
    vector: TaskVector,
    path: str | Path,
    *,
    rank: int | None = None,
    only: str = "all",
    dtype: "torch.dtype | None" = None,
    task: str | None = None,
    record: Mapping[str, Any] | None = None,
    force: bool = False,
    watch: Watch = unwatched,
) -> Extraction:
    """Write the linear layers of a task vector as a LoRA adapter that PEFT loads.

    What PEFT cannot adapt is left out, and reported: biases, norms, weights that serve two layers; and so
    are embeddings and convolutions, unless they are the vector's as factors of adapters. The scaling is 1,
    whatever the rank.

    Args:
        path: a folder.
        rank: of the factors; those of a matrix that has a smaller one are filled up with zeros. Without one,
            a weighted sum of adapters is written exactly: the ranks of a layer add up.
        only: which matrices, as for ``select_names``: ``all``, ``attention``, ``mlp`` or ``re:PATTERN`` on
            whole names. The others are left out.
        dtype: element type of the factors; float32 by default, float64 for float64 models.
        task: what the fine-tuning was for; kept in the manifest.
        record: more for the manifest.
        force: replace an output that exists.
        watch: told of each matrix.

    Raises: InputError where nothing is left, or without a rank for what is no sum of plain adapters;
        OutputExists; DiskFull; NonFinite.
    Cost: the memory of all factors and of the largest matrix a few times; of large matrices a few products
        with thin ones, see ``leading``. Sums of adapters are never multiplied out.
    """
    target = local_path(path)
    _check(target, rank, dtype)
    check_target(target, force=force, inputs=vector.files)
    selection = select(vector, only, exact=rank is None)
    held = _matrices(vector, selection, rank)
    largest = max(min(item.target.matrix) for item in held)
    if rank is not None and rank > largest:
        raise InputError(f"rank: {rank}, expected at most {largest}, that of the largest matrix")
    ranks = [item.rank for item in held]
    settings = _describe(vector, selection, ranks)
    check_space(target, sum(item.nbytes(dtype) for item in held))
    modules = selection.modules
    tensors: dict[str, Tensor] = {}
    norms: dict[str, tuple[float, float]] = {}
    for done, item in enumerate(held, start=1):
        made = item.factor(dtype)
        norms[item.target.name] = made.size, made.missed
        tensors |= made.tensors(item, modules[item.target.place])
        watch("factors", done, len(held))
    extraction = _extraction(target, max(ranks), norms, vector, selection)
    with staged(target, folder=True, force=force, inputs=vector.files) as work:
        save_weights(tensors, work / "adapter_model.safetensors")
        write_json(work / "adapter_config.json", settings)
        info = _provenance(vector, selection)
        manifest = {**_manifest(info, extraction, only, task), **(record or {})}
        write_json(work / MANIFEST, {**manifest, "files": files_in(work)})
    return extraction


def _extraction(
    target: Path,
    rank: int,
    norms: Mapping[str, tuple[float, float]],
    vector: TaskVector,
    selection: Selection,
) -> Extraction:
    """What the factors hold, from the norms of the matrices and of what they miss of each."""
    sizes = {name: norm_of(vector, name) for name in selection.left_out}
    left_out = {name: size for name, size in sizes.items() if size}
    whole, missed, rest = [s for s, _ in norms.values()], [m for _, m in norms.values()], left_out.values()
    return Extraction(
        target,
        rank,
        {name: _ratio(miss, size) for name, (size, miss) in norms.items()},
        _ratio(math.hypot(*missed), math.hypot(*whole)),
        _ratio(math.hypot(*missed, *rest), math.hypot(*whole, *rest)),
        left_out,
        tuple(selection.notes),
    )


def working_bytes(vector: Delta, rank: int | None, only: str = "all") -> Iterator[tuple[str, int]]:
    """The bytes that it takes to factor each matrix that is chosen, all factors included."""
    matrices = _matrices(vector, select(vector, only, exact=rank is None), rank)
    held = sum(matrix.nbytes(None) for matrix in matrices)
    for matrix in matrices:
        yield matrix.target.name, held + matrix.working_bytes


def _matrices(vector: Delta, selection: Selection, rank: int | None) -> list[Matrix]:
    return [Matrix(vector, item, selection.factors.get(item.name), rank) for item in selection.targets]


def _check(target: Path, rank: int | None, dtype: "torch.dtype | None") -> None:
    if rank is not None and rank < 1:
        raise InputError(f"rank: {rank}, expected 1 or more")
    if target.suffix.casefold() in FOREIGN:
        raise InputError(f"{target}: an adapter is a folder, expected a name without {target.suffix}")
    check_editable(target, dtype)


def _describe(vector: Delta, selection: Selection, ranks: Sequence[int]) -> dict[str, Any]:
    """The settings of an adapter, by which PEFT finds its layers; every scaling is 1.

    Args:
        ranks: of the targets.

    Raises: InputError where PEFT would miss a layer.
    """
    targets = selection.targets
    others = [] if selection.network is None else selection.network.check_reached(targets)
    r, pattern = _patterns(targets, ranks)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": vector.base.ref,
        "inference_mode": True,
        "r": r,
        "lora_alpha": r,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": _is_turned(selection),
        "init_lora_weights": True,
        "target_modules": [target.address for target in targets if target.form != "parameter"],
        **_given("target_parameters", [target.address for target in targets if target.form == "parameter"]),
        **_given("exclude_modules", others),
        **_given("rank_pattern", pattern),
        **_given("alpha_pattern", pattern),
    }


def _given(field: str, value: Sequence[str] | Mapping[str, int]) -> dict[str, Any]:
    return {field: value} if value else {}


def _is_turned(selection: Selection) -> bool:
    """Whether the linear layers are stored as (in, out); PEFT sets it right for each as it meets them."""
    linear = [target for target in selection.targets if target.form == "linear"]
    parts = [part for factors in selection.factors.values() for part in factors.parts]
    said = any(isinstance(p, AdapterPart) and p.adapter.contents.settings.fan_in_fan_out for p in parts)
    return bool(linear) and (said or all(target.turned for target in linear))


def _patterns(targets: Sequence[Target], ranks: Sequence[int]) -> tuple[int, dict[str, int]]:
    """The commonest rank, and the others: of all layers whose names end alike, or else of single layers."""
    ((usual, _),) = Counter(sorted(ranks, reverse=True)).most_common(1)
    kinds: dict[str, dict[str, int]] = {}
    for target, rank in zip(targets, ranks, strict=True):
        kinds.setdefault(target.address.rpartition(".")[2], {})[target.address] = rank
    pattern: dict[str, int] = {}
    for ending, layers in kinds.items():
        if len(set(layers.values())) == 1:
            layers = {re.escape(ending): next(iter(layers.values()))}
        else:
            layers = {f"^{re.escape(name)}": rank for name, rank in layers.items()}
        pattern |= {name: rank for name, rank in layers.items() if rank != usual}
    return usual, pattern


def _provenance(vector: TaskVector, selection: Selection) -> VectorInfo:
    """That of the vector; for sums of factors the base, which they do not need, is not read for it."""
    if not all(target.name in selection.factors for target in selection.targets):
        return vector.info
    recorded = vector.recorded or VectorInfo(tuned=vector.ref)
    base = BaseInfo(ref=vector.base.ref, fingerprint=vector.base.recorded)
    return recorded.model_copy(update={"base": base})


def _manifest(info: VectorInfo, made: Extraction, only: str, task: str | None) -> dict[str, Any]:
    return {
        "created_by": f"taskvec {__version__}",
        "kind": "LoRA adapter",
        "task": task or info.task,
        "rank": made.rank,
        "only": only,
        "relative_error": made.error,
        "relative_error_of_matrices": made.matrices_error,
        "relative_errors": dict(made.errors),
        "left_out": dict(made.left_out),
        "vector": info.model_dump(mode="json", exclude={"unchanged"}),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
