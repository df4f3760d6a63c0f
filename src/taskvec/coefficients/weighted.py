"""Sums of task vectors with coefficients to learn, by group."""

from collections.abc import Mapping

import torch
from torch import Tensor

from taskvec.coefficients.numbers import Numbers
from taskvec.coefficients.scopes import Groups
from taskvec.coefficients.settings import CoefficientSettings
from taskvec.coefficients.streaming import Stream, add_scaled, products


class Weighted(Numbers):
    """``theta_0 + sum_t a[t, group] tau_t``, and ``dL/da[t, group] = <dL/dtheta, tau_t>`` over a group.

    Args:
        base: the tensors that vectors may change; read, never written.
        stream: the vectors.
        groups: of their tensors; those that are not in ``base`` too.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        stream: Stream,
        groups: Groups,
        settings: CoefficientSettings,
    ) -> None:
        super().__init__(stream.labels, groups, settings)
        self._base, self._stream = base, stream
        self.model = {
            name: torch.empty(base[name].shape).to(base[name]).requires_grad_() for name in stream.changed
        }

    @torch.no_grad()
    def write(self) -> None:
        """The base, and each vector times its coefficients."""
        chosen = self.coefficients()
        for name, value in self.model.items():
            value.copy_(self._base[name])
            self._add(name, value, chosen[:, self._groups.of(name)])

    def pull(self) -> None:
        """Inner products of the model's gradient with each vector, summed over groups."""
        slopes = torch.zeros(len(self._stream.labels), len(self._groups.names), dtype=torch.float64)
        for name, value in self.model.items():
            if value.grad is not None:
                slopes[:, self._groups.of(name)] += self._along(name, value.grad)
                value.grad = None
        torch.autograd.backward(self.coefficients(), slopes)

    def _add(self, name: str, into: Tensor, factors: Tensor) -> None:
        """Add to a tensor what is merged of it, at factors (vector, part)."""
        add_scaled(self._stream, name, into, factors, self._groups.partition(into.shape))

    def _along(self, name: str, gradient: Tensor) -> Tensor:
        """The gradient in those factors, from that of the merged tensor."""
        parts = self._groups.partition(gradient.shape)
        return products(self._stream, name, gradient, parts, self._groups.parts)
