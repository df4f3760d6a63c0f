"""What a combiner is: inner products of the tasks' vectors -> the weight of each.

The vectors are gradients in joint training and task vectors where models are merged. Every combiner is tested
against these laws (``tests/combiners/test_every_combiner.py``):

- a pure function of the Gram matrix, of the parameters and, where it draws, of the seed;
- finite weights for finite Gram matrices of any rank and size, float32 noise included; what is not finite is
  refused;
- equivariant to the order of tasks and of degree 0 in the size of the vectors (``Combiner.breaks`` names
  those of these that do not hold).
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskvec.errors import InputError, NonFinite
from taskvec.parameters import Schema, check_numbers, keywords_of, schema_of, settle

Array = NDArray[np.float64]
Law = Literal["order", "scale"]


@dataclass(frozen=True)
class Combiner:
    """How the vectors of several tasks become one: ``sum_t w_t vector_t``, or entry by entry.

    Attributes:
        name: as in the registry.
        function: Gram matrix (task, task), symmetric, and keyword parameters -> weights (task,). Pure. A
            parameter that is a list has one value for each task; ``_seed`` is that of random draws.
        params: values of parameters; the others have their defaults.
        entries: whether no weights express it. ``function`` is then one of vectors (task, *shape) and of
            uniform random numbers in [0, 1) for each entry (*shape).
        sums: whether without conflicts this is the sum, rather than of the size of one vector.
        breaks: laws that do not hold: it matters which task comes first (``order``), or the weights are not
            the same for longer vectors (``scale``).
        check: number of tasks (``None`` if unknown) and parameters -> what is wrong with them together.
    """

    name: str
    function: Callable[..., Any]
    params: Mapping[str, Any] = field(default_factory=dict)
    entries: bool = False
    sums: bool = False
    breaks: tuple[Law, ...] = ()
    check: Callable[..., str | None] | None = None

    @torch.no_grad()
    def chosen(self, gram: Tensor, seed: int = 0) -> Tensor:
        """The weight of each task, (task,) float64 on the device of ``gram``.

        Args:
            gram: inner products of the vectors, (task, task).
            seed: of combiners that draw; nothing else is drawn from.

        Raises: NonFinite; InputError if ``gram`` is not square, a parameter does not fit the number of tasks,
            or the combiner works on entries.
        """
        if self.entries:
            raise InputError(f"{self._where}: works on single entries, expected one that gives weights")
        given = checked(gram)
        self.check_tasks(len(given))
        drawn = {"_seed": seed} if self.draws else {}
        return torch.from_numpy(self.function(given, **self.params, **drawn)).to(gram.device)

    @torch.no_grad()
    def merge(self, stack: Tensor, uniform: Tensor) -> Tensor:
        """Combine entry by entry: vectors (task, *shape) and random numbers in [0, 1) (*shape) -> (*shape).

        Raises: InputError if the combiner gives weights.
        """
        if not self.entries:
            raise InputError(f"{self._where}: gives weights, expected one that works on single entries")
        return self.function(stack, uniform, **self.params)  # type: ignore[no-any-return]

    def with_params(self, params: Mapping[str, Any]) -> "Combiner":
        """The same with other parameters. Raises: InputError for one that is unknown or does not fit."""
        settled = settle(self._schema, {**self.params, **params}, self._where)
        defaults = self.defaults()
        made = replace(self, params={key: value for key, value in settled.items() if value != defaults[key]})
        made._complain(None)
        return made

    def check_tasks(self, tasks: int) -> None:
        """Refuse parameters that are not for so many tasks. Raises: InputError."""
        check_numbers(self.params, tasks, self._where, "task")
        self._complain(tasks)

    def _complain(self, tasks: int | None) -> None:
        complaint = self.check(tasks, **{**self.defaults(), **self.params}) if self.check else None
        if complaint:
            raise InputError(f"{self._where}: {complaint}")

    def defaults(self) -> dict[str, Any]:
        """The names of all parameters and their defaults."""
        return {name: each.get_default() for name, each in self._schema.model_fields.items()}

    @property
    def draws(self) -> bool:
        """Whether the weights depend on a seed."""
        return "_seed" in self._all_keywords

    @property
    def keywords(self) -> dict[str, inspect.Parameter]:
        """The user's parameters in the signature of the function."""
        return {name: each for name, each in self._all_keywords.items() if not name.startswith("_")}

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    @cached_property
    def _all_keywords(self) -> dict[str, inspect.Parameter]:
        return keywords_of(self.function)

    @cached_property
    def _schema(self) -> Schema:
        return schema_of(self.name, self._all_keywords)

    @property
    def _where(self) -> str:
        return f"combiner {self.name!r}"


def checked(gram: Tensor) -> Array:
    """A Gram matrix as float64, symmetric to the bit.

    Raises: InputError if it is not square, NonFinite.
    """
    if gram.dim() != 2 or gram.shape[0] != gram.shape[1] or not len(gram):
        raise InputError(f"gram: shape {tuple(gram.shape)}, expected (tasks, tasks)")
    given = gram.detach().to("cpu", torch.float64).numpy()
    if not np.isfinite(given).all():
        row = int(np.flatnonzero(~np.isfinite(given).all(1))[0])
        raise NonFinite(f"gram: inner products of vector {row} are NaN or infinite, expected finite ones")
    return given / 2 + given.T / 2
