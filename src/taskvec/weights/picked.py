"""Models seen under other names, in wider dtypes, in another layout, with fewer tensors or with more rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, NamedTuple

from taskvec.later import torch
from taskvec.weights.blocks import TensorSpec, rows_of
from taskvec.weights.dtypes import EDITABLE, dtype_of
from taskvec.weights.lazy import Lazy, Weights

if TYPE_CHECKING:
    from torch import Tensor

_KEPT = 2
"""Groups of tensors that stay in memory, as several are read of one group in turn."""

Tensors = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class Step:
    """Tensors that are made of others, all at once: stacked, split or turned.

    Attributes:
        sources: their names in the model.
        targets: names of what is made -> their specs.
    """

    sources: tuple[str, ...]
    targets: Mapping[str, TensorSpec]
    make: Callable[[Tensors], Tensors]


class Picked(Weights):
    """Some tensors of a model, under other names, or in a wider dtype; some made of several others.

    Args:
        names: name here -> name in the model.
        dtypes: name here -> the dtype it is read in, where that is not the model's own.
        tied: alias -> name here; by default the aliases of tensors that keep their names.
        steps: how the tensors are made that are none of the model's.
    """

    def __init__(
        self,
        model: Weights,
        names: Mapping[str, str],
        dtypes: "Mapping[str, torch.dtype] | None" = None,
        tied: Mapping[str, str] | None = None,
        steps: Sequence[Step] = (),
    ) -> None:
        dtypes = dtypes or {}
        here = ((name, model.spec(stored)) for name, stored in names.items())
        specs = {name: TensorSpec(spec.shape, dtypes.get(name, spec.code)) for name, spec in here}
        self._made = {name: place for place, step in enumerate(steps) for name in step.targets}
        for step in steps:
            specs |= step.targets
        if tied is None:
            tied = {alias: kept for alias, kept in model.tied.items() if names.get(kept) == kept}
        made = tuple((step.sources, tuple(step.targets)) for step in steps)
        super().__init__(
            model.ref,
            specs,
            ("picked", model.identity, tuple(names.items()), tuple(dtypes.items()), made),
            parts=[model],
            tied={alias: kept for alias, kept in tied.items() if kept in specs and alias not in specs},
        )
        self._model, self._names, self._steps = model, dict(names), steps
        # A cache cannot be pickled, nor could steps.
        self._group: Callable[[int], Tensors] = lru_cache(_KEPT)(self._make) if steps else self._make

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        if name in self._made:
            tensor = rows_of(self._group(self._made[name])[name], rows)
        else:
            tensor = self._model.read(self._names[name], rows)
        return tensor.to(self._specs[name].dtype)

    def _make(self, place: int) -> Tensors:
        step = self._steps[place]
        return step.make({name: self._model.read(name) for name in step.sources})

    def _step(self, name: str) -> Step | None:
        place = self._made.get(self._stored_name(name))
        return None if place is None else self._steps[place]

    def made_of(self, name: str) -> Sequence[tuple[Lazy, str]]:
        """The tensors of the model."""
        step, stored = self._step(name), self._stored_name(name)
        names = [self._names[stored]] if step is None else step.sources
        return [(self._model, there) for there in names]

    def in_rows(self, name: str) -> bool:
        """Whether rows can be had by themselves: not those of tensors that are made."""
        return self._step(name) is None and super().in_rows(name)

    def own_bytes(self, name: str) -> int:
        """Bytes of all that is made with a tensor, or of one of its blocks."""
        step = self._step(name)
        if step is None:
            return super().own_bytes(name)
        return sum(spec.nbytes for spec in step.targets.values())


def widen(models: Sequence[Weights]) -> list[Weights]:
    """The models with their floating-point tensors in the narrowest dtypes that hold them all exactly."""
    wide: dict[str, torch.dtype] = {}
    for name in models[0]:
        codes = {model.spec(name).code for model in models if name in model}
        if len(codes) > 1 and codes <= EDITABLE:
            wide[name] = reduce(torch.promote_types, map(dtype_of, codes))
    return [_widened(model, wide) for model in models]


def _widened(model: Weights, wide: "Mapping[str, torch.dtype]") -> Weights:
    wider = {name: dtype for name, dtype in wide.items() if name in model and model.spec(name).dtype != dtype}
    return Picked(model, {name: name for name in model}, wider) if wider else model


class Added(NamedTuple):
    """Rows that are put behind the first ``kept`` of a tensor: where they are read."""

    weights: Weights
    name: str
    rows: Sequence[int]
    kept: int

    @property
    def size(self) -> int:
        """Of the tensor then."""
        return self.kept + len(self.rows)


class Grown(Weights):
    """A model with rows added to some of its tensors, in the dtype of these, or without their last rows.

    Args:
        texts: files of its folder that say something else of the model as it is now.

    Attributes:
        before: the model as it is in its files.
    """

    def __init__(
        self, before: Weights, added: Mapping[str, Added], texts: Mapping[str, str] | None = None
    ) -> None:
        givers = tuple(dict.fromkeys(each.weights for each in added.values()))
        specs = {name: before.spec(name) for name in before}
        for name, each in added.items():
            specs[name] = TensorSpec((each.size, *specs[name].shape[1:]), specs[name].code)
        sizes = {name: each.size for name, each in added.items()}
        super().__init__(
            before.ref,
            specs,
            ("grown", before.identity, *(giver.identity for giver in givers), *sorted(sizes.items())),
            parts=(before, *givers),
            tied=before.tied,
        )
        self.before, self._added = before, dict(added)
        self.texts = {**before.texts, **(texts or {})}

    def made_of(self, name: str) -> Sequence[tuple[Lazy, str]]:
        """The tensor, and the one that gives it rows."""
        stored = self._stored_name(name)
        added = self._added.get(stored)
        return [(self.before, stored), *([] if added is None else [(added.weights, added.name)])]

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        added = self._added.get(name)
        if added is None:
            return self.before.read(name, rows)
        held = added.kept
        first, last, step = (rows or slice(None)).indices(self._specs[name].shape[0])
        if step != 1:
            return self._read(name, None)[rows]
        old = self.before.read(name, slice(min(first, held), min(last, held)))
        new = added.rows[max(first - held, 0) : max(last - held, 0)]
        read = (added.weights.read(added.name, slice(row, row + 1)) for row in new)
        return torch.cat([old, *(row.to(old.dtype) for row in read)])
