"""A model in another layout: tensors stacked, split or turned when they are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from taskvec.weights.blocks import TensorSpec, rows_of
from taskvec.weights.lazy import Lazy, Weights

_KEPT = 2
"""Groups of tensors that stay in memory, as several are read of one group in turn."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Step:
    """Tensors that are made of others, all at once.

    Attributes:
        sources: their names in the model.
        targets: names of what is made -> their specs.
    """

    sources: tuple[str, ...]
    targets: Mapping[str, TensorSpec]
    make: Callable[[Tensors], Tensors]


class Converted(Weights):
    """A model of which some tensors are renamed and some are made of several others.

    Args:
        names: name here -> name in the model, of tensors that stay as they are.
        steps: how the others are made.
        tied: alias -> name here.
    """

    def __init__(
        self, model: Weights, names: Mapping[str, str], steps: Sequence[Step], tied: Mapping[str, str]
    ) -> None:
        self._made = {name: place for place, step in enumerate(steps) for name in step.targets}
        specs = {name: model.spec(stored) for name, stored in names.items()}
        for step in steps:
            specs |= step.targets
        made = tuple((step.sources, tuple(step.targets)) for step in steps)
        super().__init__(
            model.ref,
            specs,
            ("converted", model.identity, tuple(names.items()), made),
            parts=[model],
            tied={alias: kept for alias, kept in tied.items() if kept in specs and alias not in specs},
        )
        self._model, self._names, self._steps = model, dict(names), steps
        self._group: Callable[[int], Tensors] = lru_cache(_KEPT)(self._make)

    def _read(self, name: str, rows: slice | None) -> Tensor:
        if name in self._names:
            return self._model.read(self._names[name], rows)
        return rows_of(self._group(self._made[name])[name].to(self._specs[name].dtype), rows)

    def _make(self, place: int) -> Tensors:
        step = self._steps[place]
        return step.make({name: self._model.read(name) for name in step.sources})

    def made_of(self, name: str) -> Sequence[tuple[Lazy, str]]:
        """The tensors of the model."""
        stored = self._stored_name(name)
        if stored in self._names:
            return [(self._model, self._names[stored])]
        return [(self._model, source) for source in self._steps[self._made[stored]].sources]

    def in_rows(self, name: str) -> bool:
        """Whether rows can be had by themselves: not those of tensors that are made."""
        return self._stored_name(name) in self._names and super().in_rows(name)

    def own_bytes(self, name: str) -> int:
        """Bytes of all that is made with a tensor."""
        stored = self._stored_name(name)
        if stored in self._names:
            return 0
        return sum(spec.nbytes for spec in self._steps[self._made[stored]].targets.values())
