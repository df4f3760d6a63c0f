"""Models seen under other names, in wider dtypes, or without some of their tensors."""

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor

from taskvec.weights.blocks import TensorSpec
from taskvec.weights.dtypes import EDITABLE
from taskvec.weights.lazy import Lazy, Weights


class Picked(Weights):
    """Some tensors of a model, under other names, or in a wider dtype.

    Args:
        names: name here -> name in the model.
        dtypes: name here -> the dtype it is read in, where that is not the model's own.
        tied: alias -> name here; by default the aliases of tensors that keep their names.
    """

    def __init__(
        self,
        model: Weights,
        names: Mapping[str, str],
        dtypes: Mapping[str, torch.dtype] | None = None,
        tied: Mapping[str, str] | None = None,
    ) -> None:
        dtypes = dtypes or {}
        here = ((name, model.spec(stored)) for name, stored in names.items())
        kept = {
            alias: kept
            for alias, kept in model.tied.items()
            if names.get(kept) == kept and alias not in names
        }
        super().__init__(
            model.ref,
            {name: TensorSpec(spec.shape, dtypes.get(name, spec.dtype)) for name, spec in here},
            ("picked", model.identity, tuple(names.items()), tuple(dtypes.items())),
            parts=[model],
            tied=kept if tied is None else tied,
        )
        self._model, self._names = model, dict(names)

    def _read(self, name: str, rows: slice | None) -> Tensor:
        return self._model.read(self._names[name], rows).to(self._specs[name].dtype)

    def made_of(self, name: str) -> Sequence[tuple[Lazy, str]]:
        """The tensor of the model."""
        return [(self._model, self._names.get(name, name))]


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
