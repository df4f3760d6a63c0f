"""Features of a linearized encoder at every coefficient, from one pass over the data."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from taskvec.arguments import checked
from taskvec.group import current
from taskvec.place import Precision, autocast
from taskvec.tangent.linearization import Linearization
from taskvec.tasks.objective import Batch
from taskvec.training.loop import Params, check_precision


@checked
@dataclass(frozen=True)
class LinearFeatures:
    """Features on one set of examples, affine in the coefficients of T directions.

        f_lin(x; theta_0 + sum_t a_t tau_t) = f(x; theta_0) + sum_t a_t J(x) tau_t

    Features only: logits behind a head that normalises are not affine, so the head comes after :meth:`at`.

    Args:
        base: f(x; theta_0), (N, d), float32 or float64.
        slopes: J(x) tau_t by direction, each like ``base``.
        labels: (N,), int64, in the same order.
    """

    base: Tensor
    slopes: Mapping[Any, Tensor]
    labels: Tensor

    def at(self, coefficients: Mapping[Any, float]) -> Tensor:
        """Features (N, d) at a point; a direction that is not named has coefficient 0."""
        features = self.base.clone()
        for direction, coefficient in coefficients.items():
            if coefficient:
                features.add_(self.slopes[direction], alpha=coefficient)
        return features

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return self.base.nbytes + sum(slope.nbytes for slope in self.slopes.values())

    def joined(self, other: "LinearFeatures") -> "LinearFeatures":
        """The directions of both; base and labels are this one's."""
        return LinearFeatures(self.base, {**self.slopes, **other.slopes}, self.labels)


@checked
def linear_features(
    lin: Linearization,
    taus: Mapping[Any, Params],
    loader: Iterable[Batch],
    *,
    precision: Precision = "float32",
) -> LinearFeatures:
    """One pass over ``loader`` for f0 and ``J tau_t`` of every direction; several processes share it.

    Args:
        lin: of a function ``(params, inputs of a batch) -> features (n, d)``.
        taus: one or more directions, each naming some tensors of theta0.
        precision: "float32" or "bf16" (autocast); what is kept is float32 either way, and on the CPU.

    Cost: 1 + 2T forward passes, whatever the number of points taken from it afterwards.
    """
    check_precision(precision, "tangent")
    device = next(iter(lin.theta0.values())).device
    found: list[tuple[Tensor, list[Tensor], Tensor]] = []
    for batch in _dealt(loader):
        with autocast(precision, device):
            value, slopes = lin.jvps(list(taus.values()), batch.on(device).inputs)
        found.append((_kept(value), [_kept(slope) for slope in slopes], batch.labels))
    base, steps, labels = zip(*current().collect(found), strict=True)
    by_direction = {label: torch.cat(of) for label, of in zip(taus, zip(*steps, strict=True), strict=True)}
    return LinearFeatures(torch.cat(base), by_direction, torch.cat(labels))


def _dealt(loader: Iterable[Batch]) -> Iterable[Batch]:
    """This process's share."""
    group = current()
    if isinstance(loader, Sequence):  # which stacks no inputs of the others'
        return group.deal(loader)
    return islice(loader, group.rank, None, group.size)


def _kept(value: Tensor) -> Tensor:
    return value.detach().to(torch.promote_types(value.dtype, torch.float32)).cpu()
