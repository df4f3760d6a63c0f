"""A model written by ``apply`` or ``merge``: checked, planned or made, and reported."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import gettempdir
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from taskvec.cli._common import print_facts, print_json, print_table, say, watching
from taskvec.cli._editing import workers
from taskvec.cli._writing import Writing, check_place
from taskvec.errors import InputError
from taskvec.urls import said

if TYPE_CHECKING:
    from taskvec.edits.merge import Merge
    from taskvec.weights import Weights
    from taskvec.weights.parts import Part

DryRun = Annotated[bool, Parameter(negative=(), help="Check everything, print the plan, write nothing.")]
Resume = Annotated[
    bool,
    Parameter(
        negative=(),
        help="Keep the finished shards of a run that was interrupted, if it was writing the same.",
    ),
]
PartOption = Annotated[
    str | None,
    Parameter(
        name="--part",
        help="Write part `3/8`: the third of eight shares of the shards, of about as many bytes each. Run "
        "all parts, at once or in any order, here or on machines that share the disk; the last one completes "
        "OUT. A part that was interrupted goes on when it is run again.",
    ),
]

OnCluster = Annotated[
    str | None,
    Parameter(
        name="--ray",
        help="Write the shards on the nodes of a Ray cluster, which share the disk: at `HOST:PORT`; without "
        "a value the one of `RAY_ADDRESS`, else one that runs here, else a new one with the cores of this "
        "machine.",
    ),
]


def refuse_beside(option: str, given: Mapping[str, object]) -> None:
    """Refuse options that make no sense together. Raises: InputError."""
    if names := [name for name, value in given.items() if value]:
        raise InputError(f"{option}: given with {names[0]}, expected one of them; leave the other out")


def write_on_cluster(
    address: str,
    recipe: Path,
    output: Path | str,
    options: Mapping[str, object],
    *,
    json: bool,
) -> None:
    """Write a merge in parts on a cluster, as many as it has cores.

    Raises: MissingExtra; InputError; TaskvecError for a part that failed.
    """
    from taskvec.runs.executors.shares import write_parts

    if isinstance(output, str):
        raise InputError(f"{said(output)}: a URL, expected a folder that all nodes see; or leave --ray out")
    words = [f"{name}={value}" for name, value in options.items() if value not in (None, False, True)]
    words += [name for name, value in options.items() if value is True]
    place = output.absolute()
    command = ["merge", str(recipe.absolute()), f"--output={place}", *words, "--json", "--quiet"]
    begun = perf_counter()
    facts = write_parts(address, command, place)
    of = facts["part"].partition("/")[2]
    shown = {key: value for key, value in facts.items() if key not in _OF_A_PART}
    facts = {**shown, "parts": int(of), "seconds": round(perf_counter() - begun, 3)}
    print_facts("edited model", {key.replace("_", " "): value for key, value in facts.items()}, json=json)


_OF_A_PART = ("part", "shards_of_the_part", "bytes_of_the_part", "done", "waiting", "complete")
"""What is printed of a part, and says nothing of the whole."""


def check_output(writing: Writing, inputs: Sequence["Weights"], *, goes_on: bool) -> None:
    """Refuse what can be refused before anything but headers is read.

    Args:
        goes_on: whether what exists may be what an earlier run has written.

    Raises: InputError; OutputExists.
    """
    from taskvec.edits.inputs import check_outside

    check_outside(writing.output, inputs)
    files = [file for weights in inputs for file in weights.files]
    check_place(writing.output, force=writing.force or goes_on, inputs=files)
    writing.bound(())


def write(
    made: "Merge",
    writing: Writing,
    *,
    dry_run: bool,
    resume: bool,
    part: str | None = None,
    facts: Mapping[str, object] | None = None,
    footnote: str = "",
) -> None:
    """Write a merge, or a part of it, or show its plan; notes go to standard error.

    Args:
        part: such as ``3/8``.
        facts: printed with those of the model written.
        footnote: printed below them.
    """
    from taskvec.edits.inputs import check_outside
    from taskvec.edits.opening import save_merge
    from taskvec.edits.outcome import note_identity
    from taskvec.weights.parts import Part

    chosen = None if part is None else Part.parse(part)
    output, force = writing.output, writing.force
    goes_on = resume or part is not None
    check_outside(output, made.inputs.values())
    check_place(output, force=force or goes_on, inputs=(*made.weights.files, *made.like.files))
    say(made.notes)
    memory = writing.bound((name, made.weights.working_bytes(name)) for name in made.weights)
    if dry_run:
        _show_plan(made, writing, memory, chosen)
        return
    if chosen is not None:
        _write_part(made, chosen, writing, memory, facts or {}, footnote)
        return
    begun = perf_counter()
    with watching(writing.quiet) as watch:
        processes = workers(made.weights)
        save_merge(made, output, force=force, memory=memory, processes=processes, resume=resume, watch=watch)
    say(note_identity(made.weights, made.inputs))
    print_facts("edited model", _facts(made, output, begun, facts or {}), json=writing.json, note=footnote)


def _write_part(
    made: "Merge", part: "Part", writing: Writing, memory: float, more: Mapping[str, object], footnote: str
) -> None:
    """Write one part of a merge; what is printed says how far the whole is."""
    from taskvec.edits.opening import save_part
    from taskvec.edits.outcome import note_identity
    from taskvec.weights.parts import listed

    begun = perf_counter()
    with watching(writing.quiet) as watch:
        processes = workers(made.weights)
        progress = save_part(
            made, writing.output, part, force=writing.force, memory=memory, processes=processes, watch=watch
        )
    if not progress.shards:
        say([_idle(part, made)])
    facts: dict[str, object] = {
        "part": str(part),
        "shards of the part": progress.shards,
        "bytes of the part": progress.bytes,
        "done": list(progress.done),
        "waiting": list(progress.waiting),
        "complete": progress.complete,
    }
    words = {"done": f"{len(progress.done)} of {part.of}", "waiting": listed(progress.waiting) or "none"}
    if made.weights.changes is None:  # somebody else completed it, or will
        facts = {"path": said(str(writing.output)), **facts, "seconds": round(perf_counter() - begun, 3)}
    else:
        say(note_identity(made.weights, made.inputs))
        facts = _facts(made, writing.output, begun, {**more, **facts})
    note = f"{footnote}\n{progress}".strip()
    print_facts(f"part {part.number} of {part.of}", facts, json=writing.json, words=words, note=note)


def _idle(part: "Part", made: "Merge") -> str:
    """Words for a part without shards."""
    enough = made.weights.nbytes / part.of / 1e9
    return (
        f"part {part} has nothing to write: there are fewer shards than parts; with a smaller --max-shard-gb "
        f"for all parts, such as {enough:.2g}, there are more"
    )


def _facts(made: "Merge", output: Path | str, begun: float, more: Mapping[str, object]) -> dict[str, object]:
    """What is printed of an edited model; ``begun``, by ``perf_counter``, is when writing began."""
    from taskvec.edits.outcome import summarize_change
    from taskvec.edits.plan import count_edited

    weights = made.weights
    edited = count_edited(weights)
    return {
        "path": said(str(output)),
        **more,
        "edited tensors": edited,
        "copied tensors": len(weights) - edited,
        **summarize_change(weights.changes),
        "bytes": weights.nbytes,
        "seconds": round(perf_counter() - begun, 3),
    }


def _show_plan(made: "Merge", writing: Writing, memory: float, part: "Part | None") -> None:
    from taskvec.edits.plan import make_plan
    from taskvec.weights.plan import share_out

    # What goes elsewhere is made on this machine first.
    remote = isinstance(writing.output, str)
    target = Path(gettempdir()) / Path(said(str(writing.output))).name if remote else Path(writing.output)
    expected = make_plan(made, target, memory=memory, force=writing.force or remote)
    mine = share_out(expected.shards, part.of)[part.number - 1] if part else ()
    sizes = [expected.shards[place] for place in mine]
    if writing.json:
        share = {"part": str(part), "shards_of_the_part": sizes} if part else {}
        print_json({"path": said(str(writing.output)), **asdict(expected), **share})
        return
    again = f", {expected.passes} times over" if expected.passes > 1 else ""
    work = "read, computing comes on top" if expected.ahead else "read and compute"
    rows = [
        ("edited tensors", f"{expected.edited:,}"),
        ("copied tensors", f"{expected.copied:,}"),
        ("read", _size(expected.read) + again),
        ("write", _size(expected.written) + ("" if remote else f", of {_size(expected.free)} free")),
        ("shards", f"{len(expected.shards)}, the largest {_size(max(expected.shards))}"),
        ("largest tensor", f"{expected.largest}, {_size(expected.largest_bytes)}"),
        ("memory", f"about {_size(expected.memory)} for blocks at work"),
        ("time", f"{_duration(expected.seconds)} to {work}, estimated from a sample"),
    ]
    if part:
        rows.insert(5, (f"part {part}", f"{len(sizes)} of the shards, {_size(sum(sizes))}"))
    print_table(None, ["plan", said(str(writing.output))], rows, "Nothing was written.")


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
