"""``taskvec compress``."""

from typing import TYPE_CHECKING, Any, Literal

from taskvec.cli._common import Count, Force, Json, Quiet, print_json, print_table, watching
from taskvec.cli._editing import Dtype, Memory, Output, ShardSize, bound, check_vectors

if TYPE_CHECKING:
    from taskvec.vectors.info import CompactInfo

WORST = 5
"""Tensors whose errors the table shows; the JSON has all."""


def compress(
    vector: str,
    /,
    *,
    output: Output,
    form: Literal["bf16", "sparse", "low-rank", "int8", "1-bit"],
    density: float | None = None,
    rank: Count | None = None,
    group: Count | None = None,
    dtype: Dtype | None = None,
    max_shard_gb: ShardSize = 5.0,
    memory: Memory = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Store a task vector in fewer bytes, and say what is lost.

    Examples: `taskvec compress a.safetensors --form sparse --density 0.1 -o small.safetensors` and
    `taskvec compress a.safetensors --form int8 -o small.safetensors`. What is written is a task vector like
    any other; a tensor that would not get smaller is kept as it is.

    Parameters
    ----------
    vector
        A task vector: a file, a folder, or PATH#TASK of masked ones.
    output
        A .safetensors file, or a folder.
    form
        bf16 rounds; sparse keeps the largest entries of each tensor; low-rank keeps the leading singular
        vectors of each matrix; int8 and 1-bit keep integers and signs, with a scale for a group of entries.
    density
        Of sparse: the fraction of entries kept, above 0 to 1.
    rank
        Of low-rank: the number of singular vectors kept.
    group
        Of int8 (128 by default) and 1-bit (512): the number of entries that share a scale.
    dtype
        Of sparse and low-rank: element type of what is stored; float32 by default, float64 for float64
        models.
    """
    import torch

    from taskvec.vectors import TaskVector
    from taskvec.vectors.stored.compact.encoding import working_bytes
    from taskvec.vectors.stored.files import chosen_form
    from taskvec.weights import open_weights

    given = {"density": density, "rank": rank, "group": group}
    settings = {name: value for name, value in given.items() if value is not None}
    element = getattr(torch, dtype) if dtype else None
    opened = TaskVector.load(vector)
    check_vectors({"": opened}, output)
    chosen = chosen_form(form, settings, element)
    size = bound(memory, ((name, working_bytes(opened, chosen, name)) for name in opened))
    with watching(quiet) as watch:
        path = opened.save(
            output,
            form=form,
            dtype=element,
            force=force,
            max_shard_size=max_shard_gb * 1e9,
            memory=size,
            watch=watch,
            **settings,
        )
    written = open_weights(path)
    stored = TaskVector.opened(written)
    compact = stored.info.compact
    assert compact is not None  # it was saved in a form
    dense = sum(stored.specs[name].nbytes for name in compact.errors)
    size = sum(written.spec(name).nbytes for name in written)
    facts: dict[str, Any] = {
        "path": str(path),
        "form": form,
        **compact.settings,
        "tensors in the form": len(compact.coded) if form != "bf16" else len(compact.errors),
        "tensors kept as they are": len(compact.errors) - len(compact.coded) if form != "bf16" else 0,
        "bytes": size,
        "bytes before": dense,
        "ratio": round(dense / size, 2) if size else 1.0,
        "relative error": compact.error,
    }
    if json:
        print_json(
            {**{key.replace(" ", "_"): value for key, value in facts.items()}, "errors": compact.errors}
        )
        return
    print_table(None, ["task vector", str(facts.pop("path"))], list(facts.items()))
    print_table(None, ["largest errors", "relative"], _worst(compact))


def _worst(compact: "CompactInfo") -> list[tuple[str, str]]:
    found = sorted(compact.errors.items(), key=lambda error: -error[1])[:WORST]
    return [(name, f"{error:.4g}") for name, error in found]
