"""``taskvec apply``."""

from collections.abc import Collection
from functools import partial
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from taskvec.cli._adapters import AS_MODEL, AsAdapter, write_edit
from taskvec.cli._common import assignments, flattened
from taskvec.cli._editing import AllowOther, Expression, Patterns, Vectors, known_model, load_vectors
from taskvec.cli._merging import DryRun, PartOption, Resume, check_output, write
from taskvec.cli._writing import Writing
from taskvec.errors import InputError

_TANGENT = (
    "Trained in tangent space: {}. The model written is an ordinary one; "
    "`taskvec eval --space tangent` evaluates the edit in tangent space."
)

Pairs = tuple[str, ...]


def apply(
    base: str,
    /,
    *,
    vector: Vectors,
    expression: Expression = None,
    rule: str | None = None,
    param: Annotated[Pairs, Parameter(name=["--param", "-p"], negative=())] = (),
    stats: Annotated[Pairs, Parameter(negative=())] = (),
    scale: float = 1.0,
    rename: Patterns = (),
    include: Patterns = (),
    exclude: Patterns = (),
    allow_other_base: AllowOther = False,
    allow_nonfinite: Annotated[bool, Parameter(negative=())] = False,
    precision: Literal["float32", "float64"] = "float32",
    dry_run: DryRun = False,
    resume: Resume = False,
    part: PartOption = None,
    adapter: Annotated[AsAdapter, flattened()] = AS_MODEL,
    writing: Annotated[Writing, flattened()],
) -> None:
    """Write the model that a base and task vectors make.

    Examples: `taskvec apply BASE -v a=A -v b=B -e "0.4*a + 0.4*b" -o OUT`, forgetting with
    `taskvec apply BASE -v toxic=A -e "-0.5*toxic" -o OUT`, and a rule with
    `taskvec apply BASE -v a=A -v b=B --rule ties --param keep=0.2 --scale 0.5 -o OUT`. A folder also gets
    what lies beside the weights of BASE, such as config and tokenizer.

    Args:
        base: The weights that the vectors were taken from: a folder, a file, a hub id, a known
            name, or `file.py:function` that gives a model of your own.
        vector: `name=PATH` of a task vector or a LoRA adapter, once for each.
        expression: A linear expression over the names, with + - * / and parentheses. One vector needs none.
        rule: A combination rule instead of an expression (`taskvec rules`), over all vectors; or a chain of
            rules, such as `dare+ties` or `tsv+lines`.
        param: `name=value` for the rule.
        stats: `name=PATH` of the statistics (`taskvec stats`) of each vector, for rules that use them.
        scale: The scaling coefficient of the whole edit.
        rename: `OLD=NEW` for names in vectors that are others in BASE, such as
            `model.*=language_model.model.*`; any number, the first that matches wins.
        include: Only tensors whose name matches: a part of it, all of it with `*` for any characters, or
            `re:PATTERN`. Any number.
        exclude: No tensors whose name matches; BASE keeps its own. They need no equal shape.
        allow_other_base: Apply vectors that were taken from another base, or from an unknown one.
        allow_nonfinite: Write NaN and infinities instead of refusing them.
        precision: What deltas, rules and sums are computed in, before the result is rounded once. Tensors of
            float64 always take float64.
    """
    from taskvec.edits.recipe import Recipe, build
    from taskvec.weights.selecting import parse_renames

    unused = {"--dry-run": dry_run, "--resume": resume, "--part": part, "--allow-nonfinite": allow_nonfinite}
    adapter.check(unused)
    loaded = load_vectors(vector)  # which refuses, in words of the option, what no recipe could hold
    _check_options(loaded, expression, rule, param, stats)
    fields = {
        "base": base,
        "vectors": assignments(vector, "--vector"),
        "expression": expression,
        "rule": rule,
        "parameters": _parameters(param),
        "statistics": _statistics(stats, loaded),
        "scale": scale,
        "rename": dict(parse_renames(rename).given),
        "include": include,
        "exclude": exclude,
        "precision": precision,
        "max_shard_gb": writing.max_shard_gb,
        "allow_other_base": allow_other_base,
        "allow_nonfinite": allow_nonfinite,
    }
    check = partial(check_output, writing, goes_on=resume or part is not None)
    made = build(Recipe.parse("", fields), known=known_model, check=check)
    if adapter.as_adapter:
        from taskvec.edits.adapters import edit_of

        write_edit(edit_of(made), adapter, writing)
        return
    edit = expression or (f"{rule}({', '.join(loaded)})" if rule else next(iter(loaded)))
    tangent = ", ".join(name for name, vector in loaded.items() if vector.info.space == "tangent")
    footnote = _TANGENT.format(tangent) if tangent else ""
    facts = {"edit": edit, "scale": scale}
    write(made, writing, dry_run=dry_run, resume=resume, part=part, facts=facts, footnote=footnote)


def _check_options(
    names: Collection[str], expression: str | None, rule: str | None, param: Pairs, stats: Pairs
) -> None:
    """Refuse options that contradict each other."""
    from taskvec.vectors.expression import names_in

    if expression is not None and rule is not None:
        raise InputError("--rule: given together with --expression, expected one of them")
    for option, given in (("--param", param), ("--stats", stats)):
        if given and rule is None:
            raise InputError(f"{option}: given without --rule")
    if expression is None and rule is None and len(names) > 1:
        raise InputError('several vectors need an expression, such as -e "0.5*a + 0.5*b", or a --rule')
    used = set(names if expression is None else names_in(expression))
    unused = [name for name in names if name not in used]
    if unused and used <= set(names):
        raise InputError(f"--vector: {unused[0]!r} is not in the expression {expression!r}; leave it out")


def _statistics(pairs: Pairs, names: Collection[str]) -> dict[str, str]:
    """The statistics of each vector."""
    paths = assignments(pairs, "--stats")
    for name in [*paths, *names] if paths else []:
        if name not in names or name not in paths:
            known = "no statistics, expected some for each vector" if name in names else "no such vector"
            raise InputError(f"--stats: {name!r}: {known}; vectors: {', '.join(names)}")
    return paths


def _parameters(pairs: Pairs) -> dict[str, Any]:
    from taskvec.config import parse_yaml

    given = assignments(pairs, "--param")
    return {name: parse_yaml(text, f"--param {name}") for name, text in given.items()}
