"""``taskvec merge``."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from taskvec.cli._common import Force, Json, Quiet, print_facts, print_json, print_table, say, watching
from taskvec.cli._editing import Memory, Resume, ShardSize, bound, facts_of, known_ref, needs_of, workers
from taskvec.errors import InputError

if TYPE_CHECKING:
    from taskvec.edits.merge import Merge

Flag = Annotated[bool, Parameter(negative=())]


def merge(
    recipe: Path | None = None,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    dry_run: Flag = False,
    scale: float | None = None,
    vocab: Literal["base", "union", "intersection"] | None = None,
    memory: Memory = None,
    max_shard_gb: ShardSize | None = None,
    allow_nonfinite: Flag = False,
    resume: Resume = False,
    schema: Flag = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the model that a recipe describes.

    Examples: `taskvec merge recipe.yaml -o OUT`, `taskvec merge recipe.yaml -o OUT --dry-run` for what it
    would read, write and cost, and `taskvec merge --schema > recipe.schema.json` for editors. YAML files of
    mergekit are read as they are.

    Parameters
    ----------
    recipe
        A YAML file; docs/recipes.md describes it. Paths in it are relative to it, in files of mergekit to the
        working directory.
    output
        A folder, which also gets the config and tokenizer files of the base, or a .safetensors file.
    dry_run
        Check everything, print the plan, write nothing.
    scale
        The scaling coefficient, in place of the recipe's.
    vocab
        Bring models of different vocabularies to that of the base, or to the union or intersection of all, in
        place of the recipe's.
    allow_nonfinite
        Write NaN and infinities instead of refusing them.
    schema
        Print the JSON schema of recipes and end.
    """
    from taskvec.edits.inputs import check_outside
    from taskvec.edits.opening import save_merge
    from taskvec.edits.outcome import identity_notes
    from taskvec.weights.staging import check_target

    if schema:
        _print_schema()
        return
    if recipe is None or output is None:
        missing = "RECIPE" if recipe is None else "--output (-o)"
        raise InputError(f"{missing}: missing, expected taskvec merge RECIPE.yaml -o OUT")
    check_target(output, force=force or resume, inputs=[recipe.resolve()])
    made = _opened(recipe, {"scale": scale, "vocab": vocab}, max_shard_gb, allow_nonfinite)
    check_outside(output, made.inputs.values())
    check_target(output, force=force or resume, inputs=(*made.weights.files, *made.like.files))
    say(made.notes)
    size = bound(memory, needs_of(made.weights))
    if dry_run:
        _show_plan(made, output, memory=size, force=force, json=json)
    else:
        begun = perf_counter()
        with watching(quiet) as watch:
            save_merge(
                made,
                output,
                force=force,
                memory=size,
                processes=workers(made.weights),
                resume=resume,
                watch=watch,
            )
        say(identity_notes(made.weights, made.inputs))
        print_facts("edited model", facts_of(output, made.weights, begun), json=json)


def _print_schema() -> None:
    from taskvec.edits.recipe import Recipe

    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()})


def _opened(
    path: Path, instead: Mapping[str, object], max_shard_gb: float | None, allow_nonfinite: bool
) -> "Merge":
    from taskvec.edits.opening import open_recipe

    made = open_recipe(path, known=known_ref, **instead)
    if max_shard_gb is not None:
        made = replace(made, max_shard_size=max_shard_gb * 1e9)
    return replace(made, allow_nonfinite=made.allow_nonfinite or allow_nonfinite)


def _show_plan(made: "Merge", output: Path, *, memory: float, force: bool, json: bool) -> None:
    from taskvec.edits.plan import plan

    found = plan(made, output, memory=memory, force=force)
    if json:
        print_json({"path": str(output), **asdict(found)})
        return
    again = f", {found.passes} times over" if found.passes > 1 else ""
    work = "read, computing comes on top" if found.ahead else "read and compute"
    rows = [
        ("edited tensors", f"{found.edited:,}"),
        ("copied tensors", f"{found.copied:,}"),
        ("read", _size(found.read) + again),
        ("write", f"{_size(found.written)}, of {_size(found.free)} free"),
        ("shards", f"{len(found.shards)}, the largest {_size(max(found.shards))}"),
        ("largest tensor", f"{found.largest}, {_size(found.largest_bytes)}"),
        ("memory", f"about {_size(found.memory)} for blocks at work"),
        ("time", f"{_duration(found.seconds)} to {work}, estimated from a sample"),
    ]
    print_table(None, ["plan", str(output)], rows, "Nothing was written.")


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
