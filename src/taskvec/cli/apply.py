"""``taskvec apply``."""

from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from taskvec.cli._common import Force, Json, Quiet, assignments, print_facts, say, watching
from taskvec.cli._editing import (
    AllowOther,
    Expression,
    Memory,
    Output,
    Resume,
    ShardSize,
    Vectors,
    bound,
    facts_of,
    needs_of,
    workers,
)
from taskvec.errors import InputError

if TYPE_CHECKING:
    from taskvec.vectors import TaskVector
    from taskvec.weights import Weights


Stats = Annotated[tuple[str, ...], Parameter(name="--stats", negative=())]


def apply(
    base: str,
    /,
    *,
    vector: Vectors,
    output: Output,
    expression: Expression = None,
    rule: str | None = None,
    param: Annotated[tuple[str, ...], Parameter(name=["--param", "-p"], negative=())] = (),
    stats: Stats = (),
    scale: float = 1.0,
    allow_other_base: AllowOther = False,
    allow_nonfinite: Annotated[bool, Parameter(name="--allow-nonfinite", negative=())] = False,
    max_shard_gb: ShardSize = 5.0,
    precision: Literal["float32", "float64"] = "float32",
    memory: Memory = None,
    resume: Resume = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the model that a base and task vectors make.

    Examples: `taskvec apply BASE -v a=A -v b=B -e "0.4*a + 0.4*b" -o OUT`, forgetting with
    `taskvec apply BASE -v toxic=A -e "-0.5*toxic" -o OUT`, and a rule with
    `taskvec apply BASE -v a=A -v b=B --rule ties --param keep=0.2 --scale 0.5 -o OUT`.

    Parameters
    ----------
    base
        The weights that the vectors were taken from: a folder, a file, a hub id, a known name.
    vector
        `name=PATH` of a task vector or a LoRA adapter, once for each.
    output
        A folder, which also gets the config and tokenizer files of BASE, or a .safetensors file.
    expression
        A linear expression over the names, with + - * / and parentheses. One vector needs none.
    rule
        A combination rule instead of an expression (`taskvec rules`), over all vectors; or a chain of
        rules, such as `dare+ties` or `tsv+lines`.
    param
        `name=value` for the rule.
    stats
        `name=PATH` of the statistics (`taskvec stats`) of each vector, for rules that use them.
    scale
        The scaling coefficient of the whole edit.
    allow_other_base
        Apply vectors that were taken from another base, or from an unknown one.
    allow_nonfinite
        Write NaN and infinities instead of refusing them.
    precision
        What deltas, rules and sums are computed in, before the result is rounded once. Tensors of float64
        always take float64.
    """
    import torch

    from taskvec import vectors as editing
    from taskvec.cli._editing import check_vectors, load_vectors, open_model
    from taskvec.edits import contradictions
    from taskvec.edits.inputs import check_outside, check_sound
    from taskvec.edits.outcome import change_record, identity_notes
    from taskvec.rules import RULES
    from taskvec.weights import save_weights

    start = check_sound(open_model(base))
    check_outside(output, [start])
    named = load_vectors(vector, start, allow_other_base=allow_other_base)
    notes = check_vectors(named, output) + contradictions.of_models([start], like=start)
    params = _parameters(param, rule)
    edit = _edit(start, named, expression, rule, params, _statistics(stats, named, rule))
    edited = editing.apply(start, edit, scale, precision=getattr(torch, precision))
    say(notes + contradictions.of_distances(start, named))
    start.fingerprint_while_reading()
    size = bound(memory, needs_of(edited))
    begun = perf_counter()
    with watching(quiet) as watch:
        path = save_weights(
            edited,
            output,
            force=force,
            max_shard_size=max_shard_gb * 1e9,
            manifest=lambda: {
                "kind": "edited model",
                "base": {"ref": start.ref, "fingerprint": start.fingerprint()},
                "vectors": {name: _provenance(vector) for name, vector in named.items()},
                "expression": expression,
                "rule": {"name": rule, **RULES[rule].settings(params)} if rule else None,
                "scale": scale,
                "precision": precision,
                "change": change_record(edited.changes),
            },
            watch=watch,
            allow_nonfinite=allow_nonfinite,
            memory=size,
            processes=workers(edited),
            resume=resume,
        )
    done = expression or (f"{rule}({', '.join(named)})" if rule else next(iter(named)))
    tangent = [name for name, vector in named.items() if vector.info.space == "tangent"]
    note = (
        f"Trained in tangent space: {', '.join(tangent)}. The model written is an ordinary one; "
        "`taskvec eval --space tangent` evaluates the edit in tangent space."
    )
    say(identity_notes(edited, {start.ref: start}))
    facts = facts_of(path, edited, begun, edit=done, scale=scale)
    print_facts("edited model", facts, json=json, note=note if tangent else "")


def _edit(
    base: "Weights",
    named: Mapping[str, "TaskVector"],
    expression: str | None,
    rule: str | None,
    params: Mapping[str, Any],
    stats: "list[Weights] | None",
) -> "TaskVector":
    from taskvec.vectors import combine, parse_expression
    from taskvec.vectors.combining import grounded
    from taskvec.vectors.expression import names_in

    if expression is not None and rule is not None:
        raise InputError("--rule: given together with --expression, expected one of them")
    if rule is not None:
        return combine(rule, grounded(list(named.values()), base), stats=stats, **params)
    if expression is None:
        if len(named) > 1:
            raise InputError('several vectors need an expression, such as -e "0.5*a + 0.5*b", or a --rule')
        return next(iter(named.values()))
    edit = parse_expression(expression, named)
    unused = [name for name in named if name not in names_in(expression)]
    if unused:
        raise InputError(f"--vector: {unused[0]!r} is not in the expression {expression!r}; leave it out")
    return edit


def _statistics(
    pairs: tuple[str, ...], named: Mapping[str, "TaskVector"], rule: str | None
) -> "list[Weights] | None":
    """The statistics of each vector, in their order."""
    from taskvec.weights import open_weights

    if not pairs:
        return None
    if rule is None:
        raise InputError("--stats: given without --rule")
    paths = assignments(pairs, "--stats")
    for name in [*paths, *named]:
        if name not in named or name not in paths:
            known = "no statistics, expected some for each vector" if name in named else "no such vector"
            raise InputError(f"--stats: {name!r}: {known}; vectors: {', '.join(named)}")
    return [open_weights(paths[name]) for name in named]


def _parameters(pairs: tuple[str, ...], rule: str | None) -> dict[str, Any]:
    from taskvec.config import parse_yaml

    if pairs and rule is None:
        raise InputError("--param: given without --rule")
    given = assignments(pairs, "--param")
    return {name: parse_yaml(text, f"--param {name}") for name, text in given.items()}


def _provenance(vector: "TaskVector") -> dict[str, Any]:
    return {"path": vector.ref, **vector.info.model_dump(mode="json", exclude={"unchanged"})}
