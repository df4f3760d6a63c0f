"""``taskvec inspect``."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from taskvec.cli._common import Json, print_json, print_table
from taskvec.cli._editing import AllowOther, Memory, bound

if TYPE_CHECKING:
    from taskvec.vectors import TaskVector
    from taskvec.weights import Weights

Kind = Literal["weights", "vector", "masks", "adapter", "relative adapter"]


def inspect(
    paths: Annotated[tuple[str, ...], Parameter(negative=(), allow_leading_hyphen=False)],
    /,
    *,
    headers: Annotated[bool, Parameter(name="--headers", negative=())] = False,
    allow_other_base: AllowOther = False,
    memory: Memory = None,
    json: Json = False,
) -> None:
    """Show what checkpoints, task vectors and LoRA adapters hold: sizes, origin, norms by layer, angles.

    Args:
        paths: Models, task vectors and LoRA adapters, any number.
        headers: Read headers only: no norms, fingerprints or angles.
        allow_other_base: Compare vectors of different bases all the same.
    """
    from taskvec.cli._editing import open_model

    opened = [open_model(path) for path in paths]
    kinds = [_kind_of(weights) for weights in opened]
    if not headers:
        bound(memory, _needs(opened, kinds))
    facts = [_FACTS[kind](weights, headers) for weights, kind in zip(opened, kinds, strict=True)]
    vectors = [weights for weights, kind in zip(opened, kinds, strict=True) if kind in ("vector", "adapter")]
    cosines = None
    if len(vectors) > 1 and not headers and "relative adapter" not in kinds:
        cosines = _cosines(vectors, allow_other_base)
    if json:
        table = [[_finite(value) for value in row] for row in cosines or ()]
        print_json({"files": facts, **({"cosines": table} if cosines else {})})
        return
    for entry in facts:
        _print_file(entry)
    if cosines:
        names = [f"{number}" for number in range(1, len(vectors) + 1)]
        rows = [
            [f"{name}: {weights.ref}", *(f"{value:.4f}" for value in row)]
            for name, weights, row in zip(names, vectors, cosines, strict=True)
        ]
        print_table("cosines", ["vector", *names], rows)


def _print_file(facts: dict[str, Any]) -> None:
    layers = facts.pop("norms_by_layer", {})
    path = facts.pop("path")
    rows = [(key.replace("_", " "), _format(value)) for key, value in facts.items() if value is not None]
    print_table(None, ["path", path], rows)
    if layers:
        norms = [(layer, "not finite" if norm is None else f"{norm:.4g}") for layer, norm in layers.items()]
        print_table(None, ["layer", "norm"], norms)


def _kind_of(weights: "Weights") -> Kind:
    """What a file holds; of a relative adapter, norms and angles are known with its base alone."""
    from taskvec.vectors.info import has_info, read_info
    from taskvec.vectors.lora.reading import read_contents

    if weights.adapter is not None:
        return "relative adapter" if read_contents(weights).relative else "adapter"
    if not has_info(weights):
        return "weights"
    return "vector" if read_info(weights).masks is None else "masks"


def _needs(opened: Sequence["Weights"], kinds: Sequence[Kind]) -> Iterator[tuple[str, int]]:
    """The bytes that norms and angles of each tensor take."""
    from taskvec.vectors import TaskVector, geometry
    from taskvec.weights.lazy import THREADS

    vectors = []
    for weights, kind in zip(opened, kinds, strict=True):
        if kind in ("vector", "adapter"):
            vectors.append(TaskVector.opened(weights))
        else:
            # Of so many tensors at a time for digests, and of one in float64 for its norm.
            yield from ((name, (THREADS + 4) * weights.working_bytes(name)) for name in weights)
    for name in {name: None for vector in vectors for name in vector}:
        yield name, geometry.working_bytes(vectors, name)


def _masked_facts(weights: "Weights", headers: bool) -> dict[str, Any]:
    from taskvec.vectors.stored.masked import MaskedVectors

    masked = MaskedVectors.opened(weights)
    unified, base = masked.unified, masked.unified.base
    facts = {
        **_sizes(weights, "masked task vectors"),
        "unchanged_tensors": sum(not unified.terms_at(name) for name in unified),
        "base": base.ref,
        "base_fingerprint": base.fingerprint() or "not recorded",
        "method": masked.info.method,
        **{name: value for name, value in masked.info.settings.items() if name in ("lam", "rescaler")},
        "factors": masked.info.factors,
    }
    norms = {} if headers else {task: _finite(masked.vector(task).norm()) for task in masked.tasks}
    return {**facts, **({"norms": norms} if norms else {})}


def _weights_facts(weights: "Weights", headers: bool) -> dict[str, Any]:
    from taskvec.vectors.statistics import read_statistics
    from taskvec.weights.summary import tensor_norms

    facts = {**_sizes(weights, "weights"), "tied": dict(weights.tied) or None}
    statistics = read_statistics(weights)
    if statistics is not None:
        origin = statistics.model_dump(mode="json", exclude={"format", "kind"}, exclude_none=True)
        facts |= {"kind": f"statistics ({statistics.kind})", **origin}
    if headers:
        return facts
    weights.fingerprint_while_reading()
    norms = tensor_norms(weights)
    return {**facts, "fingerprint": weights.fingerprint(), **_norm_facts(norms)}


def _vector_facts(weights: "Weights", headers: bool) -> dict[str, Any]:
    from taskvec.vectors import TaskVector
    from taskvec.weights.summary import tensor_norms

    vector = TaskVector.opened(weights)
    info = vector.info.model_dump(mode="json", exclude={"unchanged", "format", "dtype", "compact", "masks"})
    base, compact = info.pop("base"), vector.info.compact
    adapter = weights.adapter is not None
    if adapter:
        del info["created_by"]  # which is of us, once it is stored as a vector
    facts = {
        **_sizes(weights, _kind_of_adapter(info["training"]) if adapter else "task vector"),
        "unchanged_tensors": None if adapter else sum(not vector.terms_at(name) for name in vector),
        "base": base["ref"],
        "base_fingerprint": base["fingerprint"] or "not recorded",
        **info,
    }
    if compact:
        facts |= {
            "tensors": len(compact.errors),
            "elements": sum(vector.specs[name].numel for name in compact.errors),
            "form": compact.form,
            **compact.settings,
            "relative_error": compact.error,
        }
    if headers:
        return facts
    if adapter or compact:
        return {**facts, **_norm_facts(vector.norms())}
    stored = tensor_norms(weights)  # without torch, which the norms of what is computed need
    return {**facts, **_norm_facts({name: stored.get(name, 0.0) for name in vector})}


def _kind_of_adapter(training: dict[str, Any]) -> str:
    kind = training["peft"]["peft_type"]
    return "LoRA adapter" if kind == "LORA" else f"adapter ({kind})"


def _relative_facts(weights: "Weights", headers: bool) -> dict[str, Any]:
    note = "known with its base alone: taskvec diff BASE ADAPTER -o VECTOR"
    return {**_vector_facts(weights, True), **({} if headers else {"norm": None, "note": note})}


def _norm_facts(norms: Mapping[str, float]) -> dict[str, Any]:
    from taskvec.weights.summary import by_layer

    layers = {layer: _finite(norm) for layer, norm in by_layer(norms).items()}
    return {"norm": _finite(math.hypot(*norms.values())), "norms_by_layer": layers}


_FACTS: dict[Kind, Callable[["Weights", bool], dict[str, Any]]] = {
    "weights": _weights_facts,
    "vector": _vector_facts,
    "masks": _masked_facts,
    "adapter": _vector_facts,
    "relative adapter": _relative_facts,
}
"""What is shown of a file: of all of it, or of its headers alone."""


def _sizes(weights: "Weights", kind: str) -> dict[str, Any]:
    from taskvec.weights.dtypes import name_of

    specs = [weights.spec(name) for name in weights]
    return {
        "path": weights.ref,
        "kind": kind,
        "files": len(weights.files),
        "tensors": len(specs),
        "elements": sum(spec.numel for spec in specs),
        "bytes": weights.nbytes,
        "dtypes": sorted({name_of(spec.code) for spec in specs}),
    }


def _cosines(opened: Sequence["Weights"], allow_other_base: bool) -> list[list[float]]:
    from taskvec.errors import BaseMismatch
    from taskvec.vectors import TaskVector, similarity

    adapter = next((weights for weights in opened if weights.adapter is not None), None)
    other = next((weights for weights in opened if weights.adapter is None), None)
    if adapter is not None and other is not None and not allow_other_base:
        raise BaseMismatch(
            f"{adapter.ref}: an adapter, which records no base, is not compared with {other.ref} unless "
            "--allow-other-base says so; or make it a vector with: taskvec diff BASE ADAPTER -o VECTOR"
        )
    vectors = [TaskVector.opened(weights) for weights in opened]
    if allow_other_base:
        base = next((vector.base for vector in vectors if vector.base.unbound), vectors[0].base)
        vectors = [_named_as(vectors[0], vector).rebased(base) for vector in vectors]
    return [[float(value) for value in row] for row in similarity(vectors)]


def _named_as(first: "TaskVector", vector: "TaskVector") -> "TaskVector":
    """A vector under the names of another, as those of models with and without a head differ."""
    from taskvec.vectors import TaskVector
    from taskvec.vectors.fitting import Deltas, under_names_of

    alone = vector is first or first.base.unbound or vector.base.unbound
    return vector if alone else TaskVector.of(under_names_of(Deltas(first), vector))


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _format(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_format(content)}" for key, content in value.items())
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)
    )
