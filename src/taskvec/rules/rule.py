"""What a rule declares about itself, and how its parameters are checked."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from torch import Tensor

from taskvec.errors import InputError
from taskvec.registry import nearest

Scope = Literal["linear", "element", "tensor", "model"]
Stacks = Callable[[], Iterator[tuple[str, Tensor]]]
"""Gives, each time it is called, every tensor name with its deltas (task, *shape)."""


@dataclass(frozen=True)
class Rule:
    """A combination rule.

    Attributes:
        name: as in the registry.
        function: deltas (task, *shape), float32 or float64, and keyword parameters -> (*shape). Pure.
        scope: how much one output element depends on: ``linear`` (a fixed weight for each task),
            ``element``, the whole ``tensor``, or the whole ``model``.
        consumes: what the rule needs beside the deltas; rules of different kinds are not ranked together.
        coefficients: for linear rules, number of tasks and parameters -> the weight of each task.
        prepare: a first pass over all tensors -> keyword arguments of ``function`` for each tensor, which
            it adds to the parameters; ``None`` when these parameters need no such pass.
    """

    name: str
    function: Callable[..., Tensor]
    scope: Scope
    consumes: str = "deltas"
    coefficients: Callable[..., list[float]] | None = None
    prepare: Callable[..., Mapping[str, Mapping[str, Any]] | None] | None = None

    def __call__(self, deltas: Tensor, **params: Any) -> Tensor:
        """Combine one stack of deltas, (task, *shape) -> (*shape)."""
        return self.function(deltas, **params)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def description(self) -> str:
        """The docstring: equation, parameters, source."""
        return inspect.getdoc(self.function) or ""

    def parameters(self) -> dict[str, Any]:
        """The names of all parameters and their defaults."""
        return {name: field.get_default() for name, field in self._schema.model_fields.items()}

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Every parameter with its value, defaults included; what is recorded with a result.

        Raises: InputError for a parameter that is unknown (with the nearest name) or does not fit.
        """
        try:
            return dict(self._schema.model_validate(dict(params)).model_dump())
        except ValidationError as error:
            raise InputError(f"rule {self.name!r}: {self._first(error)}") from None

    def _first(self, error: ValidationError) -> str:
        complaint = error.errors()[0]
        name = ".".join(map(str, complaint["loc"]))
        if complaint["type"] == "extra_forbidden":
            return f"unknown parameter {name!r}; {nearest(name, self._schema.model_fields)}"
        what = complaint["msg"].removeprefix("Value error, ")
        return f"{name} is {complaint['input']!r}: {what[:1].lower()}{what[1:]}"

    @cached_property
    def _schema(self) -> type[BaseModel]:
        fields: dict[str, Any] = {
            name: (parameter.annotation, ... if parameter.default is parameter.empty else parameter.default)
            for name, parameter in inspect.signature(self.function).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and not name.startswith("_")
        }
        closed = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
        return create_model(self.name, __config__=closed, **fields)
