"""Penalties and the tasks they read, as options of a command."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from taskvec.cli._common import assignments, say
from taskvec.config import parse_yaml
from taskvec.errors import InputError
from taskvec.training.penalties.settings import SETTINGS, PenaltySettings, files_of, foreign, penalty_of

Penalty = Annotated[
    tuple[str, ...],
    Parameter(
        negative=(),
        help="A term of the loss on the displacement itself, `KIND` or `KIND:name=value,name=value`, such as "
        f"`tau_jp:strength=1`; several add up. Kinds: {', '.join(f'`{kind}`' for kind in SETTINGS)}.",
    ),
]
References = Annotated[
    tuple[str, ...],
    Parameter(
        consume_multiple=True,
        negative=(),
        help="Other tasks of the suite, whose training inputs penalties may use, and no labels.",
    ),
]

_NEXT = re.compile(r",(?=\s*\w+=)")
"""A comma that ends a value: values may hold others."""


def parse_penalty(text: str) -> PenaltySettings:
    """A penalty from ``KIND:name=value,name=value``; a value is YAML.

    Raises: InputError that opens with the option.
    """
    kind, _, rest = text.partition(":")
    given = assignments([pair.strip() for pair in _NEXT.split(rest)] if rest else [], "--penalty")
    values: dict[str, Any] = {
        name: parse_yaml(value, f"--penalty: {kind}: {name}") for name, value in given.items()
    }
    try:
        made: Any = penalty_of({"kind": kind, **values})
    except InputError as error:
        raise InputError(f"--penalty: {error}") from None
    parsed: PenaltySettings = made
    return parsed


def check_references(
    references: Sequence[str], tasks: Sequence[str], penalties: Sequence[PenaltySettings]
) -> list[str]:
    """The references that are no trained task; says which are.

    Raises: InputError where no penalty uses any.
    """
    if references and not foreign(penalties) and files_of(penalties):
        raise InputError(
            "--references: given, and the penalty has files in their place; leave out the one or the other"
        )
    if references and not foreign(penalties):
        raise InputError(
            "--references: given, but no --penalty uses the inputs of other tasks; leave them out, or add "
            "one, such as --penalty tau_jp"
        )
    say(f"--references: {name} is trained itself, and left out" for name in references if name in tasks)
    return [name for name in references if name not in tasks]
