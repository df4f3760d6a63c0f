"""One set of parameters, moved from coefficient to coefficient in place."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from taskvec.errors import InputError, KeyMismatch


class Points:
    """``base + sum_t coefficient_t * vector_t``, evaluated at one point after another.

    Deltas are held dense in float32, one copy of the edited parameters is reused: a move costs a copy and a
    fused multiply-add a vector. Every move starts from the base, so rounding does not accumulate.

    Args:
        base: all parameters a vector may touch, by name; read, never written.
        vectors: by name, each a mapping of deltas; tensors that a vector lacks stay as they are.

    Raises: KeyMismatch if a vector names a tensor that the base lacks, or of another shape.
    """

    def __init__(self, base: Mapping[str, Tensor], vectors: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._base = {name: value.detach().float() for name, value in base.items()}
        self._deltas = {label: self._dense(label, vector) for label, vector in vectors.items()}
        self._params = {name: value.clone() for name, value in self._base.items()}

    def _dense(self, label: str, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name in vector:
            if name not in self._base:
                raise KeyMismatch(
                    f"vector {label!r}: {name!r} is not among the parameters of the model's encoder; "
                    "was the vector made from another model?"
                )
        deltas = {name: vector[name].detach().float() for name in vector}
        for name, delta in deltas.items():
            if delta.shape != self._base[name].shape:
                raise KeyMismatch(
                    f"vector {label!r}: {name!r} has shape {tuple(delta.shape)}, expected "
                    f"{tuple(self._base[name].shape)} as in the model"
                )
        return deltas

    def at(self, coefficients: Mapping[str, float]) -> Mapping[str, Tensor]:
        """The parameters at a point; valid until the next call, read-only for the caller."""
        for label in coefficients:
            if label not in self._deltas:
                raise InputError(f"no vector called {label!r} among {', '.join(self._deltas)}")
        names = list(self._params)
        torch._foreach_copy_([self._params[n] for n in names], [self._base[n] for n in names])
        for label, coefficient in coefficients.items():
            touched = list(self._deltas[label])
            if coefficient and touched:
                torch._foreach_add_(
                    [self._params[n] for n in touched],
                    [self._deltas[label][n] for n in touched],
                    alpha=coefficient,
                )
        return self._params

    def shared(self, labels: Sequence[str], coefficient: float) -> Mapping[str, Tensor]:
        """The parameters with the same coefficient on every vector in ``labels``."""
        return self.at(dict.fromkeys(labels, coefficient))
