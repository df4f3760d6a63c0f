"""The parameters of a function of ours: its keyword arguments, checked by their annotations."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from taskvec.errors import InputError
from taskvec.registry import nearest

Schema = type[BaseModel]
"""What the values of parameters are checked by."""


def keywords_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function, those that begin with ``_`` included."""
    parameters = inspect.signature(function).parameters
    return {name: each for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}


def schema_of(name: str, keywords: Mapping[str, inspect.Parameter]) -> Schema:
    """The schema of parameters; those that begin with ``_`` are not the user's."""
    fields: dict[str, Any] = {
        each: (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
        for each, parameter in keywords.items()
        if not each.startswith("_")
    }
    closed = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
    return create_model(name, __config__=closed, **fields)


def settle(schema: Schema, params: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Every parameter with its value, defaults included; ``where`` opens the message of what is wrong.

    Raises: InputError for a parameter that is unknown (with the nearest name) or does not fit.
    """
    try:
        return dict(schema.model_validate(dict(params)).model_dump())
    except ValidationError as error:
        raise InputError(f"{where}: {_first(error, schema)}") from None


def check_numbers(settings: Mapping[str, Any], tasks: int, where: str, what: str) -> None:
    """Refuse a list that does not have one value for each task. Raises: InputError."""
    for name, value in settings.items():
        if isinstance(value, list | tuple) and len(value) != tasks:
            raise InputError(f"{where}: {name}: {len(value)} values, expected {tasks}, one for each {what}")


def _first(error: ValidationError, schema: Schema) -> str:
    complaint = max(error.errors(), key=lambda each: len(each["loc"]))  # of alternatives the nearest
    first, *inner = complaint["loc"]
    name = ".".join(map(str, (first, *(part for part in inner if isinstance(part, int)))))
    if complaint["type"] == "extra_forbidden":
        return f"unknown parameter {name!r}; {nearest(name, schema.model_fields)}"
    what = complaint["msg"].removeprefix("Value error, ")
    return f"{name} is {complaint['input']!r}: {what[:1].lower()}{what[1:]}"
