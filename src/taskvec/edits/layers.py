"""Models made of other models' layers: tensors renamed, picked from several, put one after the other."""

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from taskvec.weights import TensorSpec, Weights
from taskvec.weights.blocks import rows_of
from taskvec.weights.change import Change
from taskvec.weights.dtypes import EDITABLE
from taskvec.weights.lazy import Lazy


class Picked(Weights):
    """Some tensors of a model, under other names, or in a wider dtype.

    Args:
        names: name here -> name in the model.
        dtypes: name here -> the dtype it is read in, where that is not the model's own.
    """

    def __init__(
        self, model: Weights, names: Mapping[str, str], dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        dtypes = dtypes or {}
        here = ((name, model.spec(stored)) for name, stored in names.items())
        super().__init__(
            model.ref,
            {name: TensorSpec(spec.shape, dtypes.get(name, spec.dtype)) for name, spec in here},
            ("picked", model.identity, tuple(names.items()), tuple(dtypes.items())),
            parts=[model],
            tied={
                alias: kept
                for alias, kept in model.tied.items()
                if names.get(kept) == kept and alias not in names
            },
        )
        self._model, self._names = model, dict(names)

    def _read(self, name: str, rows: slice | None) -> Tensor:
        return self._model.read(self._names[name], rows).to(self._specs[name].dtype)

    def made_of(self, name: str) -> Sequence[tuple[Lazy, str]]:
        """The tensor of the model."""
        return [(self._model, self._names.get(name, name))]


class Origin(Weights):
    """A base of zeros, from which the task vector of a model is its weights.

    Integers are those of the model, as no edit changes them.
    """

    def __init__(self, model: Weights) -> None:
        super().__init__(
            "zero",
            {name: model.spec(name) for name in model},
            ("origin", model.identity),
            parts=[model],
            tied=model.tied,
        )
        self._model = model

    def _read(self, name: str, rows: slice | None) -> Tensor:
        spec = self._specs[name]
        if spec.dtype not in EDITABLE:
            return self._model.read(name, rows)
        zeros = torch.zeros((), dtype=spec.dtype).expand(spec.shape)
        return rows_of(zeros, rows)


class Joined(Weights):
    """Several sets of weights that have no tensor in common, as one."""

    def __init__(self, parts: Sequence[Weights]) -> None:
        self._owner = {name: part for part in parts for name in part}
        super().__init__(
            " | ".join(dict.fromkeys(part.ref for part in parts)),
            {name: part.spec(name) for name, part in self._owner.items()},
            ("joined", *(part.identity for part in parts)),
            parts=parts,
            tied={alias: kept for part in parts for alias, kept in part.tied.items()},
        )

    def _read(self, name: str, rows: slice | None) -> Tensor:
        return self._owner[name].read(name, rows)

    def read_with_change(self, name: str, rows: slice | None = None) -> tuple[Tensor, Change | None]:
        """That of the part that has it."""
        return self._owner[name].read_with_change(name, rows)

    def change_to(self, name: str, rows: slice | None, made: Tensor) -> Change | None:
        """That of the part that has it."""
        return self._owner[name].change_to(name, rows, made)

    def made_of(self, name: str) -> Sequence[tuple[Lazy, str]]:
        """The part that has it."""
        return [(self._owner[self._stored_name(name)], name)]

    def own_bytes(self, name: str) -> int:
        """None: what was read is passed on."""
        return 0


def widen(models: Sequence[Weights]) -> list[Weights]:
    """The models with their floating-point tensors in the narrowest dtypes that hold them all exactly."""
    wide: dict[str, torch.dtype] = {}
    for name in models[0]:
        dtypes = {model.spec(name).dtype for model in models if name in model}
        if len(dtypes) > 1 and dtypes <= EDITABLE:
            wide[name] = reduce(torch.promote_types, dtypes)
    return [_widened(model, wide) for model in models]


def _widened(model: Weights, wide: Mapping[str, torch.dtype]) -> Weights:
    wider = {name: dtype for name, dtype in wide.items() if name in model and model.spec(name).dtype != dtype}
    return Picked(model, {name: name for name in model}, wider) if wider else model
