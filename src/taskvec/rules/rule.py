"""What a rule declares about itself, and how its parameters are checked.

Every rule, and every chain of them, is tested against these laws (``tests/rules/test_every_rule.py``):

- what it is given stays as it was; shape and dtype are kept, and float32 gives what float64 gives;
- the order of the tasks is irrelevant, and the result scales with its inputs (``Rule.breaks`` names those of
  these two that do not hold);
- zeros give zeros, for any shape, scalars and empty tensors too; finite entries give finite ones, and what is
  not finite is refused or shows in the result;
- pieces, their order and threads change no bit, and the size of blocks no more than the order of sums;
- random numbers come from ``seed`` and the place of an entry alone;
- integer tensors never reach it; wrong parameters and numbers of task vectors are refused before reading;
- the docstring has one line, the equation, every parameter and the source, and ``docs/rules.md`` a section
  with the command and the call.
"""

import inspect
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from taskvec.errors import InputError
from taskvec.later import torch
from taskvec.parameters import Schema, check_numbers, keywords_of, schema_of, settle
from taskvec.rules.pairs import Deltas

if TYPE_CHECKING:
    from torch import Tensor

Scope = Literal["linear", "element", "model", "tensor", "matrix"]
Stage = Literal["each", "merge", "after"]
Consumes = Literal["deltas", "deltas, base", "deltas, unlabelled inputs"]
Law = Literal["order", "scale"]


@dataclass(frozen=True)
class Place:
    """Where deltas lie in the model, for rules that go by names or draw random numbers.

    Attributes:
        name: of the tensor.
        first: index within the tensor, row-major, of the first element at hand.
        axes: how many axes the tensor has; ``None`` for as many as what is at hand. Rows are those of the
            last axis, so some of them have at most two.
    """

    name: str = ""
    first: int = 0
    axes: int | None = None


ANYWHERE = Place()
"""The place of deltas that belong to no model."""


Fraction = Annotated[float, Field(gt=0, le=1)]
"""A share of the entries, above 0 and up to 1."""

Seed = Annotated[int, Field(ge=0)]
"""What random numbers depend on; rules of a chain share it."""

Piece = tuple[Any, Mapping[str, Any]]
"""Deltas (task, *rows), a tensor or for rules that take them ``Pairs``; and what goes with them: ``_place``,
and where rules ask ``_base`` and ``_stats``."""


@dataclass(frozen=True)
class Stacks:
    """The deltas of a whole model, a piece of a tensor at a time; each iteration reads them anew.

    Attributes:
        shapes: of every tensor of the model, changed or not.
        changed: the names of those that have deltas.
        blocks: name -> slices of its rows (of the last axis) to read it by; ``None`` stands for the whole.
        pieces: name and rows -> their deltas, or what earlier rules of a chain made of them, in order.
        overrides: name -> parameters that this tensor has instead of those of the model.
        behind: the names of tensors in blocks behind the last layer of the model, which have no depth.
    """

    shapes: Mapping[str, Sequence[int]]
    changed: Sequence[str]
    blocks: Callable[[str], Sequence[slice | None]]
    pieces: Callable[[str, slice | None], Iterator[Piece]]
    overrides: Callable[[str], Mapping[str, Any]] = lambda name: {}
    behind: Container[str] = ()

    @classmethod
    def single(cls, deltas: Deltas, **context: Any) -> "Stacks":
        """The deltas of one tensor, called ``""``."""
        given = {"_place": ANYWHERE, **context}
        return cls({"": deltas.shape[1:]}, [""], lambda _: [None], lambda *_: iter([(deltas, given)]))

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((name, stack) for name in self.changed for stack, _ in self.pieces_of(name))

    def pieces_of(self, name: str) -> Iterator[Piece]:
        """The pieces of one tensor."""
        return (piece for rows in self.blocks(name) for piece in self.pieces(name, rows))

    def numel(self, name: str) -> int:
        """How many entries a tensor has."""
        return math.prod(self.shapes[name])

    def tasks(self, name: str) -> int:
        """How many task vectors there are."""
        row = slice(0, 1) if len(self.blocks(name)) > 1 else None
        return len(next(self.pieces(name, row))[0])

    def sample(self, name: str, number: int) -> Iterator[Piece]:
        """Rows that are spread over a tensor, of about so many entries; all if it is in one block."""
        shape = self.shapes[name]
        if len(self.blocks(name)) == 1:
            yield from self.pieces_of(name)
            return
        width = shape[-1] if len(shape) > 1 else 1
        rows = self.numel(name) // width
        run = min(rows, max(1, number // 16 // width))  # rows in a row: reading single ones takes longer
        count = min(rows // run, max(8, number // (run * width)))
        for place in range(count):
            start = place * (rows - run) // max(1, count - 1)
            yield from self.pieces(name, slice(start, start + run))


@dataclass(frozen=True)
class Rule:
    """A combination rule, or a step of one.

    Attributes:
        name: as in the registry.
        function: deltas (task, *shape), float32 or float64, and keyword parameters -> (*shape). Pure.
            A parameter that is a list has one value for each task. Those that begin with ``_`` are not the
            user's: ``_place`` is where the deltas lie,
            ``_base`` the weights (*shape) they belong to, ``_rounded`` the dtype that a chain was
            given them in, others come from the two measurements below.
        scope: what one output element depends on: its own deltas in a fixed sum (``linear``), its own
            deltas (``element``), these and numbers measured on the whole ``model``, the whole ``tensor``,
            or the singular vectors of a ``matrix``.
        stage: ``merge`` makes several vectors one. ``each`` changes every vector by itself, a stack to a
            stack, and ``after`` changes what was merged: both stand in chains (``dare+ties``).
        consumes: what the rule needs; rules that consume data are not ranked with those that do not.
        tasks: the least and the largest number of task vectors, ``None`` for any.
        coefficients: for linear rules, number of tasks and parameters -> the weight of each task.
        measure_model: a first pass over all tensors -> keyword arguments of ``function`` for each tensor,
            which it adds to the parameters; ``None`` when these parameters need no such pass.
        measure_tensor: a first pass over one tensor: ``Stacks``, its name and parameters -> keyword arguments
            of ``function``, with which rows of the result need the same rows of the deltas alone.
        in_rows: name, shape and parameters -> whether that is so for this tensor; by default it is for every
            tensor if ``scope`` says so, or if there is a ``measure_tensor``.
        check: number of tasks (``None`` if unknown) and parameters -> what is wrong with them together.
        stages: of a chain, its steps.
        takes_pairs: whether the function and its first passes take ``Pairs`` for a stack as well.
        copies: how many times the deltas of one task the function and its first passes hold at most, those
            given to them included: so many for each task, and so many besides.
        square: whether a matrix (m, n) counts there as (n, n) if that is larger.
        coefficient: what to scale the result by without a search, for several tasks: what the rule's source
            does, and 1 where it says nothing. Nothing is scaled by it unasked.
        breaks: laws of every rule that this one does not obey: it matters which task comes first (``order``),
            or sizes are not those of the vectors (``scale``).
    """

    name: str
    function: "Callable[..., Tensor]"
    scope: Scope
    stage: Stage = "merge"
    consumes: Consumes = "deltas"
    tasks: tuple[int, int | None] = (1, None)
    coefficients: Callable[..., list[float]] | None = None
    measure_model: Callable[..., Mapping[str, Mapping[str, Any]] | None] | None = None
    measure_tensor: Callable[..., Mapping[str, Any] | None] | None = None
    in_rows: Callable[..., bool] | None = None
    check: Callable[..., str | None] | None = None
    stages: tuple["Rule", ...] = ()
    takes_pairs: bool = False
    copies: tuple[float, float] = (3, 9)
    square: bool = False
    coefficient: float = 1.0
    breaks: tuple[Law, ...] = ()

    def __call__(self, deltas: Deltas, **params: Any) -> "Tensor":
        """Combine one stack of deltas by itself, (task, *shape) -> (*shape).

        Raises: InputError if the rule is not for so many tasks.
        """
        self._check_number(len(deltas))
        if self.measure_model is None and self.measure_tensor is None:
            return self.function(deltas, **params)
        values = {**self.parameters(), **params}
        alone = Stacks.single(deltas, **{name: value for name, value in params.items() if name[0] == "_"})
        if self.measure_model is not None:
            measured = self.measure_model(alone, **self.accepted_parameters(values), _given=alone)
            values |= (measured or {}).get("", {})
        if self.measure_tensor is not None:
            values |= self.measure_tensor(alone, "", **self.accepted_parameters(values)) or {}
        return self.function(deltas, **values)

    @property
    def by_rows(self) -> bool:
        """Whether some rows of any tensor of the result need the same rows of the deltas alone."""
        return self.in_rows is None and (
            self.scope in ("linear", "element", "model") or bool(self.measure_tensor)
        )

    def goes_by_rows(self, name: str, shape: Sequence[int], settings: Mapping[str, Any]) -> bool:
        """Whether some rows of this tensor of the result need the same rows of the deltas alone."""
        if self.in_rows is None:
            return self.by_rows
        return bool(shape) and self.in_rows(name, shape, **self.accepted_parameters(settings))

    @property
    def role(self) -> Stage:
        """The stage, for a rule by itself also if it was completed to a chain."""
        return next((step.stage for step in self.stages if step.name == self.name), self.stage)

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

    def settings(self, params: Mapping[str, Any], tasks: int | None = None) -> dict[str, Any]:
        """Every parameter with its value, defaults included; what is recorded with a result.

        Args:
            tasks: how many task vectors there are, if that is known already.

        Raises: InputError for a parameter that is unknown (with the nearest name) or does not fit.
        """
        where = f"rule {self.name!r}"
        settings = settle(self._schema, params, where)
        if tasks is not None:
            self._check_number(tasks)
            check_numbers(settings, tasks, where, "task vector")
        complaint = self.check(tasks, **settings) if self.check else None
        if complaint:
            raise InputError(f"rule {self.name!r}: {complaint}")
        return settings

    def looks_at_all(self, settings: Mapping[str, Any], tasks: int | None = None) -> bool:
        """Whether with these parameters the rule settles something for the whole model first.

        Args:
            tasks: how many task vectors there are, if that is known.
        """
        if self.measure_model is None:
            return False
        made_up = Stacks.single(torch.zeros(tasks or 2, 2, 2))
        return self.measure_model(made_up, **self.accepted_parameters(settings), _given=made_up) is not None

    def check_varying(self, settings: Sequence[Mapping[str, Any]], tasks: int) -> None:
        """Refuse a parameter that differs from tensor to tensor where it is settled for the whole model.

        Args:
            settings: those of every tensor.
            tasks: how many task vectors there are.

        Raises: InputError.
        """
        kinds = list({repr(sorted(values.items())): values for values in settings}.values())
        for part in self.stages or (self,):
            asked = inspect.signature(part.measure_model).parameters if part.measure_model else ()
            varying = [
                name for name in part.parameters() if any(kind[name] != kinds[0][name] for kind in kinds)
            ]
            settled = next((name for name in varying if name in asked), None)
            if settled and any(part.looks_at_all(kind, tasks) for kind in kinds):
                raise InputError(
                    f"rule {self.name!r}: {settled} differs from tensor to tensor, but {part.name!r} looks "
                    "at the whole model with it, expected one value"
                )

    def accepted_parameters(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the values that the function takes."""
        return {name: value for name, value in values.items() if name in self.keywords}

    @cached_property
    def keywords(self) -> Mapping[str, inspect.Parameter]:
        """The keyword parameters of the function, those that are not the user's included."""
        return keywords_of(self.function)

    def _check_number(self, tasks: int) -> None:
        least, most = self.tasks
        if tasks < least or (most is not None and tasks > most):
            wanted = f"{least}" if most == least else f"at least {least}"
            raise InputError(f"rule {self.name!r}: {tasks} task vectors, expected {wanted}")

    @cached_property
    def _schema(self) -> Schema:
        return schema_of(self.name, self.keywords)


def for_each(value: float | Sequence[float], tasks: int) -> list[float]:
    """A parameter that is one number for all tasks, or one for each."""
    return list(value) if isinstance(value, Sequence) else [value] * tasks


def task_by_task(*values: float | Sequence[float]) -> Iterator[tuple[float, ...]]:
    """What several such parameters are for each task; once if all are one number."""
    number = max(len(value) if isinstance(value, Sequence) else 1 for value in values)
    return zip(*(for_each(value, number) for value in values), strict=False)


def present(base: "Tensor | None") -> "Tensor":
    """The weights of the base, for a rule that acts on weights.

    Raises: InputError if they are not at hand.
    """
    if base is None:
        raise InputError(
            "a rule that acts on weights needs those of the base; give them with with_base(base)"
        )
    return base
