"""``taskvec diff``."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from taskvec.cli._common import Count, Force, Json, Quiet, print_facts, print_json, print_table, say, watching
from taskvec.cli._editing import Dtype, Memory, Output, ShardSize
from taskvec.errors import InputError

if TYPE_CHECKING:
    from taskvec.vectors import Extraction
    from taskvec.weights import Weights


def diff(
    base: str,
    tuned: str,
    /,
    *,
    output: Output,
    task: Annotated[str | None, Parameter(name=["--task", "-t"])] = None,
    dtype: Dtype | None = None,
    on_extra: Literal["error", "drop"] = "error",
    on_missing: Literal["error", "zero"] = "error",
    vocab: Literal["base"] | None = None,
    rank: Count | None = None,
    only: str | None = None,
    max_shard_gb: ShardSize = 5.0,
    memory: Memory = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Extract a task vector: what fine-tuning changed; with --rank as a LoRA adapter.

    Examples: `taskvec diff ./bert-base ./bert-sst2 -o sst2.safetensors --task sst2`, and for an adapter that
    PEFT loads `taskvec diff ./bert-base ./bert-sst2 --rank 16 -o sst2-lora`. Integer and boolean tensors are
    no part of a task vector; an edit keeps those of its base.

    Parameters
    ----------
    base
        The pre-trained weights: a folder, a safetensors or .bin file, an index, a hub id, a known name.
    tuned
        The weights fine-tuned from them, or a LoRA adapter for them.
    output
        A .safetensors file, or a folder.
    task
        What the fine-tuning was for; kept in the file.
    dtype
        Element type of the stored deltas; float32 by default, float64 for float64 models.
    on_extra
        What to do with tensors that only TUNED has: refuse, or drop them.
    on_missing
        What to do with tensors that TUNED lacks: refuse, or take them as unchanged.
    vocab
        `base` matches the rows of embeddings by token, for a model of another vocabulary: tokens that only
        TUNED has are left out, those that it lacks are unchanged.
    rank
        Write a LoRA adapter of this rank instead: the nearest matrix for each linear layer, with the error.
    only
        With --rank, which matrices: `attention`, `mlp` or `re:PATTERN`; all by default.
    """
    import torch

    from taskvec.cli._editing import bound, open_model, workers
    from taskvec.edits import contradictions
    from taskvec.edits.inputs import check_outside, check_sound
    from taskvec.edits.outcome import change_record
    from taskvec.edits.tokens import check_in_order
    from taskvec.vectors import TaskVector, save_adapter
    from taskvec.vectors.checks import differing_buffers
    from taskvec.vectors.lora.writing import working_bytes as adapter_needs
    from taskvec.weights import open_weights
    from taskvec.weights.change import total

    start, end = check_sound(open_model(base)), check_sound(open_model(tuned))
    check_outside(output, [start, end])
    notes = contradictions.of_models([start, end], like=None)
    if vocab is not None:
        end, said = _in_vocabulary_of(start, end)
        notes += said
    elif end.adapter is None:
        notes += check_in_order(start, end)
    vector = TaskVector.between(start, end, on_extra=on_extra, on_missing=on_missing)
    element = getattr(torch, dtype) if dtype else None
    if rank is None and only is not None:
        raise InputError("--only: given without --rank")
    say(notes + contradictions.of_distances(start, {end.ref: vector}))
    if rank is not None:
        bound(memory, adapter_needs(vector, rank, only or "all"))
        with watching(quiet) as watch:
            made = save_adapter(
                vector,
                output,
                rank=rank,
                only=only or "all",
                dtype=element,
                task=task,
                force=force,
                watch=watch,
            )
        _show_adapter(made, json)
        return
    size = bound(memory, ((name, vector.working_bytes(name)) for name in vector))
    with watching(quiet) as watch:
        path = vector.save(
            output,
            dtype=element,
            force=force,
            task=task,
            max_shard_size=max_shard_gb * 1e9,
            memory=size,
            processes=workers(end),
            watch=watch,
        )
    written = open_weights(path)
    kept = differing_buffers(start, end)
    moved = change_record(vector.changes)
    if not moved["changed tensors"]:
        say([f"{end.ref}: the same weights as {start.ref}: the task vector is zero"])
    facts = {
        "path": str(path),
        **moved,
        "unchanged tensors": len(vector) - len(written),
        "norm": math.sqrt(total((vector.changes or {}).values()).distance),
        "bytes": sum(written.spec(name).nbytes for name in written),
        "base fingerprint": start.fingerprint(),
        "integer tensors left to the base": kept,
    }
    words = {"integer tensors left to the base": ", ".join(kept) or "none differ"}
    print_facts("task vector", facts, json=json, words=words)


def _in_vocabulary_of(base: "Weights", tuned: "Weights") -> "tuple[Weights, list[str]]":
    """The fine-tuned model with the rows of the base's tokens, and what is to be said of it."""
    from taskvec.edits.vocabulary import align

    if tuned.adapter is not None:
        raise InputError(
            f"--vocab: {tuned.ref} is an adapter, whose tokens are those of its base; leave it out"
        )
    seen = align(base, [tuned])
    return seen.tuned[0], list(seen.facts["notes"])


def _show_adapter(made: "Extraction", json: bool) -> None:
    facts = {
        "path": str(made.path),
        "rank": made.rank,
        "matrices": len(made.errors),
        "relative error of the matrices": made.matrices_error,
        "relative error of the task vector": made.error,
    }
    if json:
        facts |= {"relative errors": dict(made.errors), "left out": dict(made.left_out)}
        print_json({key.replace(" ", "_"): value for key, value in facts.items()})
        return
    shown = [(key, f"{value:.4g}" if isinstance(value, float) else value) for key, value in facts.items()]
    print_table(None, ["LoRA adapter", str(made.path)], [*shown[1:], ("left out", _names(made.left_out))])
    print_table(None, ["matrix", "relative error"], [(n, f"{error:.4g}") for n, error in made.errors.items()])


def _names(found: Mapping[str, float]) -> str:
    """The first few names, and how many more."""
    names = list(found)
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return (", ".join(names[:6]) + more) or "nothing"
