"""``taskvec analyze``: one subcommand an analysis, whose options are the analysis' fields."""

from collections.abc import Callable, Sequence
from inspect import Parameter as Argument
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from cyclopts import App, Parameter
from cyclopts.validators import Number

from taskvec.cli._common import AllowCode, Force, Json, Quiet, print_json, watching
from taskvec.cli._running import print_tables
from taskvec.cli._standard import say_line
from taskvec.code import allowing_code
from taskvec.studies import ANALYSES
from taskvec.studies.analysis import Analysis

Output = Annotated[
    Path,
    Parameter(name=["--output", "-o"], help="A folder for record.json, table.md and figure.png."),
]
LETTERS = {"model": "-m", "suite": "-s", "task": "-t", "vector": "-v"}


# Cyclopts could flatten the fields by itself, but would give items of pairs one by one to pydantic, and its
# errors name no option.
def _command(analysis: type[Analysis]) -> Callable[..., None]:
    def command(
        *first: object,
        output: Output,
        force: Force = False,
        allow_code: AllowCode = False,
        json: Json = False,
        quiet: Quiet = False,
        **fields: object,
    ) -> None:
        from taskvec.reports.analyses import check_folder, write_analysis
        from taskvec.studies.store import versions

        check_folder(output, force=force)
        with allowing_code(allow_code), watching(quiet) as watch:
            given = dict.fromkeys([_unnamed(analysis)], first[0]) if first else {}
            asked = analysis(**given, **fields)
            record = asked.measure(watch, say_line)
        plain = {**record.model_dump(), **record.given, "versions": versions(), **_place(asked)}
        tables = list(record.tables())
        written = write_analysis(plain, tables, record.figures, output, force=force)
        if json:
            print_json(plain)
        else:
            print_tables(tables, ", ".join(map(str, written)))

    shared = [each for each in signature(command).parameters.values() if each.kind is Argument.KEYWORD_ONLY]
    command.__doc__ = analysis.__doc__
    command.__signature__ = Signature([*_arguments(analysis), *shared])  # type: ignore[attr-defined]
    return command


def _place(asked: Analysis) -> dict[str, str]:
    """What computed, where a model was run."""
    from taskvec.place import describe_device, find_device

    device = getattr(asked, "device", None)
    return {} if device is None else {"device": describe_device(find_device(device))}


def _arguments(analysis: type[Analysis]) -> list[Argument]:
    """The fields as arguments of a command: names, defaults, bounds and help are the fields' own."""
    arguments = []
    for name, field in analysis.model_fields.items():
        unnamed, several = name == _unnamed(analysis), _holds_several(field.annotation)
        option = f"--{name.replace('_', '-')}"
        parameter = Parameter(
            name=None if unnamed else [option, LETTERS[name]] if name in LETTERS else option,
            help=field.description,
            negative=None if field.default is True else (),
            consume_multiple=several and not unnamed,
        )
        default = Argument.empty if field.is_required() else field.default
        by_place = Argument.POSITIONAL_ONLY if several else Argument.POSITIONAL_OR_KEYWORD
        kind = by_place if unnamed else Argument.KEYWORD_ONLY
        annotation: Any = _bounded(field.annotation, field.metadata)
        arguments.append(Argument(name, kind, annotation=Annotated[annotation, parameter], default=default))
    return sorted(arguments, key=lambda argument: argument.kind)


def _unnamed(analysis: type[Analysis]) -> str:
    """The field that is given without its name."""
    return "vectors" if "vectors" in analysis.model_fields else "model"


def _holds_several(annotation: object) -> bool:
    """Whether an option takes any number of words, a value each."""
    item, *more = (*get_args(annotation), None)
    if more[:1] == [...]:
        return get_origin(item) is not tuple
    return any(map(_holds_several, get_args(annotation)))


def _bounded(annotation: Any, constraints: Sequence[object] = ()) -> Any:
    """A type whose constraints, and those of its items, are checked as the command line checks options."""
    if get_origin(annotation) is Annotated:
        [field] = annotation.__metadata__
        return _bounded(annotation.__origin__, field.metadata)
    if get_origin(annotation) is tuple:
        annotation = tuple[tuple(map(_bounded, get_args(annotation)))]  # type: ignore[misc]
    bounds = [Number(gte=getattr(each, "ge", None), gt=getattr(each, "gt", None)) for each in constraints]
    return Annotated[annotation, Parameter(validator=bounds)] if bounds else annotation


analyze = App(name="analyze", help="Explain task vectors: a record, a table and a figure in a folder.")
for _name in ANALYSES:
    analyze.command(_command(ANALYSES[_name]), name=_name)
