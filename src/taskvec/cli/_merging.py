"""A model written by ``apply`` or ``merge``: checked, planned or made, and reported."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from taskvec.cli._common import print_facts, print_json, print_table, say, watching
from taskvec.cli._editing import workers
from taskvec.cli._writing import Writing

if TYPE_CHECKING:
    from taskvec.edits.merge import Merge
    from taskvec.weights import Weights

DryRun = Annotated[bool, Parameter(negative=(), help="Check everything, print the plan, write nothing.")]
Resume = Annotated[
    bool,
    Parameter(
        negative=(),
        help="Keep the finished shards of a run that was interrupted, if it was writing the same.",
    ),
]


def check_output(writing: Writing, inputs: Sequence["Weights"], *, resume: bool) -> None:
    """Refuse what can be refused before anything but headers is read.

    Raises: InputError; OutputExists.
    """
    from taskvec.edits.inputs import check_outside
    from taskvec.weights.staging import check_target

    check_outside(writing.output, inputs)
    files = [file for weights in inputs for file in weights.files]
    check_target(writing.output, force=writing.force or resume, inputs=files)
    writing.bound(())


def write(
    made: "Merge",
    writing: Writing,
    *,
    dry_run: bool,
    resume: bool,
    facts: Mapping[str, object] | None = None,
    footnote: str = "",
) -> None:
    """Write a merge, or show its plan; notes go to standard error.

    Args:
        facts: printed with those of the model written.
        footnote: printed below them.
    """
    from taskvec.edits.inputs import check_outside
    from taskvec.edits.opening import save_merge
    from taskvec.edits.outcome import note_identity
    from taskvec.weights.staging import check_target

    output, force = writing.output, writing.force
    check_outside(output, made.inputs.values())
    check_target(output, force=force or resume, inputs=(*made.weights.files, *made.like.files))
    say(made.notes)
    memory = writing.bound((name, made.weights.working_bytes(name)) for name in made.weights)
    if dry_run:
        _show_plan(made, writing, memory)
        return
    begun = perf_counter()
    with watching(writing.quiet) as watch:
        processes = workers(made.weights)
        save_merge(made, output, force=force, memory=memory, processes=processes, resume=resume, watch=watch)
    say(note_identity(made.weights, made.inputs))
    print_facts("edited model", _facts(made, output, begun, facts or {}), json=writing.json, note=footnote)


def _facts(made: "Merge", output: Path, begun: float, more: Mapping[str, object]) -> dict[str, object]:
    """What is printed of an edited model; ``begun``, by ``perf_counter``, is when writing began."""
    from taskvec.edits.outcome import summarize_change
    from taskvec.edits.plan import count_edited

    weights = made.weights
    edited = count_edited(weights)
    return {
        "path": str(output),
        **more,
        "edited tensors": edited,
        "copied tensors": len(weights) - edited,
        **summarize_change(weights.changes),
        "bytes": weights.nbytes,
        "seconds": round(perf_counter() - begun, 3),
    }


def _show_plan(made: "Merge", writing: Writing, memory: float) -> None:
    from taskvec.edits.plan import make_plan

    expected = make_plan(made, writing.output, memory=memory, force=writing.force)
    if writing.json:
        print_json({"path": str(writing.output), **asdict(expected)})
        return
    again = f", {expected.passes} times over" if expected.passes > 1 else ""
    work = "read, computing comes on top" if expected.ahead else "read and compute"
    rows = [
        ("edited tensors", f"{expected.edited:,}"),
        ("copied tensors", f"{expected.copied:,}"),
        ("read", _size(expected.read) + again),
        ("write", f"{_size(expected.written)}, of {_size(expected.free)} free"),
        ("shards", f"{len(expected.shards)}, the largest {_size(max(expected.shards))}"),
        ("largest tensor", f"{expected.largest}, {_size(expected.largest_bytes)}"),
        ("memory", f"about {_size(expected.memory)} for blocks at work"),
        ("time", f"{_duration(expected.seconds)} to {work}, estimated from a sample"),
    ]
    print_table(None, ["plan", str(writing.output)], rows, "Nothing was written.")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB" if count < 1000 else f"{count:,.0f} GB"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "less than 1 s"
    if seconds < 100:
        return f"about {seconds:.2g} s"
    return f"about {seconds / 60:.0f} min" if seconds < 6000 else f"about {seconds / 3600:.1f} h"
