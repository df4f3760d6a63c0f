"""``taskvec diff``."""

import math
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from taskvec.cli._adapters import write_adapter
from taskvec.cli._common import Count, flattened, print_facts, say
from taskvec.cli._editing import Patterns
from taskvec.cli._writing import Dtype, Writing, element_type
from taskvec.errors import InputError

if TYPE_CHECKING:
    from taskvec.weights import Weights
    from taskvec.weights.selecting import Renames


def diff(
    base: str,
    tuned: str,
    /,
    *,
    task: Annotated[str | None, Parameter(name=["--task", "-t"])] = None,
    dtype: Dtype = None,
    on_extra: Literal["error", "drop"] = "error",
    on_missing: Literal["error", "zero"] = "error",
    rename: Patterns = (),
    include: Patterns = (),
    exclude: Patterns = (),
    allow_partial: Annotated[bool, Parameter(negative=())] = False,
    vocab: Literal["base"] | None = None,
    rank: Count | None = None,
    only: str | None = None,
    writing: Annotated[Writing, flattened()],
) -> None:
    """Extract a task vector: what fine-tuning changed; with --rank as a LoRA adapter.

    Examples: `taskvec diff ./bert-base ./bert-sst2 -o sst2.safetensors --task sst2`, and for an adapter that
    PEFT loads `taskvec diff ./bert-base ./bert-sst2 --rank 16 -o sst2-lora`. Integer and boolean tensors are
    no part of a task vector; an edit keeps those of its base. Where TUNED has other names than BASE, those of
    BASE are looked for; a note says what was found.

    Args:
        base: The pre-trained weights: a folder, a safetensors or .bin file, an index, a hub id, a known name.
        tuned: The weights fine-tuned from them, or a LoRA adapter for them.
        task: What the fine-tuning was for; kept in the file.
        on_extra: What to do with tensors that only TUNED has: refuse, or drop them.
        on_missing: What to do with tensors that TUNED lacks: refuse, or take them as unchanged.
        rename: `OLD=NEW` for names in TUNED that are others in BASE, such as
            `model.*=language_model.model.*`; any number, the first that matches wins.
        include: Only tensors whose name matches: a part of it, all of it with `*` for any characters, or
            `re:PATTERN`. Any number.
        exclude: No tensors whose name matches. They need no partner and no equal shape.
        allow_partial: Take a difference of less than a tenth of BASE's tensors.
        vocab: `base` matches the rows of embeddings by token, for a model of another vocabulary: tokens that
            only TUNED has are left out, those that it lacks are unchanged.
        rank: Write a LoRA adapter of this rank instead: the nearest matrix for each linear layer, with the
            error.
        only: With --rank, which matrices: `attention`, `mlp` or `re:PATTERN`; all by default.
    """
    from taskvec.cli._editing import open_model, workers
    from taskvec.edits import contradictions
    from taskvec.edits.inputs import check_outside, check_sound
    from taskvec.edits.outcome import summarize_change
    from taskvec.vectors import TaskVector
    from taskvec.vectors.checks import Fit, differing_buffers, note_left_out
    from taskvec.vectors.opening import between, difference
    from taskvec.weights.change import total
    from taskvec.weights.selecting import Choice, parse_renames

    start, end = check_sound(open_model(base)), check_sound(open_model(tuned))
    check_outside(writing.output, [start, end])
    notes = contradictions.compare_models([start, end], like=None)
    notes += _left_behind(start, end)
    renames = parse_renames(rename) if rename else None
    fit = Fit(on_extra, on_missing, Choice(include, exclude), allow_partial)
    if end.adapter is not None:
        if vocab is not None:
            raise InputError(
                f"--vocab: {end.ref} is an adapter, whose tokens are those of its base; leave it out"
            )
        vector = TaskVector.of(between(start, end, fit, renames))
    else:
        end, remarks = _seen(start, end, renames, vocab)
        fit.choice.check_used([*start, *end])
        vector = TaskVector.of(difference(start, end, fit))
        notes += [*remarks, *note_left_out(start, end, fit)]
    if rank is None and only is not None:
        raise InputError("--only: given without --rank")
    say(notes + contradictions.note_distances(start, {end.ref: vector}))
    element = element_type(dtype)
    if rank is not None:
        write_adapter(vector, writing, rank, only, task=task, dtype=element)
        return
    memory = writing.bound((name, vector.working_bytes(name)) for name in vector)
    written = writing.write(vector.save, memory, processes=workers(end), task=task, dtype=element)
    kept = differing_buffers(start, end)
    moved = summarize_change(vector.changes)
    if not moved["changed tensors"]:
        say([f"{end.ref}: the same weights as {start.ref}: the task vector is zero"])
    facts = {
        "path": written.ref,
        **moved,
        "unchanged tensors": len(vector) - len(written),
        "norm": math.sqrt(total((vector.changes or {}).values()).distance),
        "bytes": written.nbytes,
        "base fingerprint": start.fingerprint(),
        "integer tensors left to the base": kept,
    }
    words = {"integer tensors left to the base": ", ".join(kept) or "none differ"}
    print_facts("task vector", facts, json=writing.json, words=words)


def _seen(
    base: "Weights", tuned: "Weights", renames: "Renames | None", vocab: Literal["base"] | None
) -> "tuple[Weights, list[str]]":
    """The fine-tuned model under the names, and if asked for in the vocabulary, of the base; notes on it."""
    from taskvec.edits.tokens import check_in_order
    from taskvec.edits.vocabulary import align
    from taskvec.vectors.checks import check_point
    from taskvec.weights.matched import all_names, see_as

    for weights in (base, tuned):
        check_point(weights)
    if renames is not None:
        renames.check_used(all_names(tuned), tuned.ref)
    named = see_as(base, tuned, renames)
    if vocab is None:
        return named.weights, [*named.notes, *check_in_order(base, named.weights)]
    aligned = align(base, [named.weights])
    return aligned.tuned[0], [*named.notes, *aligned.notes]


def _left_behind(base: "Weights", tuned: "Weights") -> list[str]:
    """A note on what the tokenizer of the fine-tuned model says, and that of the base does not."""
    from taskvec.edits.roles import describe_left

    left = describe_left(tuned.folder, base.folder)
    way = f"a task vector has none, copy it from {tuned.folder} to what the vector is applied to"
    return [f"{tuned.ref}: left behind with its tokenizer: {left}; {way}"] if left else []
