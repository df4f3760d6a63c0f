"""What a combiner is: inner products of the tasks' vectors -> the weight of each.

The vectors are gradients in joint training and task vectors where models are merged. Every combiner is tested
against these laws (``tests/combiners/test_every_combiner.py``):

- a pure function of the Gram matrix, of the parameters and, where it draws, of the seed;
- finite weights for finite Gram matrices of any rank and size, float32 noise included; what is not finite is
  refused;
- equivariant to the order of tasks and of degree 0 in the size of the vectors (``Combiner.breaks`` names
  those of these that do not hold).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
        entries: the combination of single entries, for combiners that no weights express: vectors
            (task, *shape) and uniform random numbers (*shape) in [0, 1) -> (*shape).
        sums: whether without conflicts this is the sum, rather than of the size of one vector.
        breaks: laws that do not hold: it matters which task comes first (``order``), or the weights are not
            the same for longer vectors (``scale``).
    """

    name: str
    function: Callable[..., Array]
    params: Mapping[str, Any] = field(default_factory=dict)
    entries: Callable[[Tensor, Tensor], Tensor] | None = None
    sums: bool = False
    breaks: tuple[Law, ...] = ()

    @torch.no_grad()
    def chosen(self, gram: Tensor, seed: int = 0) -> Tensor:
        """The weight of each task, (task,) float64 on the device of ``gram``.

        Args:
            gram: inner products of the vectors, (task, task).
            seed: of combiners that draw; nothing else is drawn from.

        Raises: NonFinite, InputError if ``gram`` is not square or a parameter is for another number of tasks.
        """
        given = checked(gram)
        check_numbers(self.params, len(given), self._where, "task")
        drawn = {"_seed": seed} if self.draws else {}
        return torch.from_numpy(self.function(given, **self.params, **drawn)).to(gram.device)

    def merge(self, stack: Tensor, uniform: Tensor) -> Tensor:
        """Vectors (task, *shape) and uniform random numbers (*shape) in [0, 1) -> the combination (*shape).

        Only for a combiner that has ``entries``; weights do not express it.
        """
        assert self.entries is not None, f"{self.name} gives weights"
        return self.entries(stack, uniform)

    def with_params(self, params: Mapping[str, Any]) -> "Combiner":
        """The same with other parameters. Raises: InputError for one that is unknown or does not fit."""
        settled = settle(self._schema, {**self.params, **params}, self._where)
        changed = {name: value for name, value in settled.items() if value != self.defaults()[name]}
        return Combiner(self.name, self.function, changed, self.entries, self.sums, self.breaks)

    def defaults(self) -> dict[str, Any]:
        """The names of all parameters and their defaults."""
        return {name: each.get_default() for name, each in self._schema.model_fields.items()}

    @property
    def draws(self) -> bool:
        """Whether the weights depend on a seed."""
        return "_seed" in keywords_of(self.function)

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    @cached_property
    def _schema(self) -> Schema:
        return schema_of(self.name, keywords_of(self.function))

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
