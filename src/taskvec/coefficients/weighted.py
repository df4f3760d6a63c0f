"""Sums of task vectors with coefficients to learn, by group."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from taskvec.coefficients.merge import Merge
from taskvec.coefficients.scopes import Groups
from taskvec.coefficients.settings import CoefficientSettings
from taskvec.coefficients.streaming import Stream, add_scaled, products


class Weighted(Merge):
    """``theta_0 + sum_t a[t, group] tau_t``, and ``dL/da[t, group] = <dL/dtheta, tau_t>`` over a group.

    Args:
        base: the tensors that vectors may change; read, never written.
        stream: the vectors.
        groups: of their tensors; those that are not in ``base`` too.
        fixed: tensors through which no gradient goes.
    """

    def __init__(
        self,
        base: Mapping[str, Tensor],
        stream: Stream,
        groups: Groups,
        settings: CoefficientSettings,
        fixed: Iterable[str] = (),
    ) -> None:
        self._base, self._stream, self._groups, self._settings = base, stream, groups, settings
        self.model = {name: torch.empty(base[name].shape).to(base[name]) for name in stream.changed}
        for name in self.model.keys() - set(fixed):
            self.model[name].requires_grad_()
        rows = 1 if settings.tie else len(stream.labels)
        numbers = torch.full((rows, len(groups.names)), settings.start, dtype=torch.float64)
        self.leaves = {"coefficients": numbers.requires_grad_()}

    def coefficients(self) -> Tensor:
        """(vector, group), float64, as the model is built with; differentiable in the leaves."""
        numbers, settings = self.leaves["coefficients"], self._settings
        if settings.box == "clamp":
            numbers = numbers.clamp(*settings.bounds)
        if settings.normalise:
            numbers = numbers / numbers.sum(0, keepdim=True)
        return numbers.expand(len(self._stream.labels), -1)

    @torch.no_grad()
    def write(self) -> None:
        """The base, and each vector times its coefficients."""
        chosen = self.coefficients()
        for name, value in self.model.items():
            value.copy_(self._base[name])
            factors = chosen[:, self._groups.of(name)]
            add_scaled(self._stream, name, value, factors, self._groups.partition(value.shape))

    def pull(self) -> None:
        """Inner products of the model's gradient with each vector, summed over groups."""
        slopes = torch.zeros(len(self._stream.labels), len(self._groups.names), dtype=torch.float64)
        for name, value in self.model.items():
            if value.grad is not None:
                parts = self._groups.partition(value.shape)
                found = products(self._stream, name, value.grad, parts, self._groups.parts)
                slopes[:, self._groups.of(name)] += found
                value.grad = None
        torch.autograd.backward(self.coefficients(), slopes)

    def penalty(self) -> float:
        """The norm of coefficients, see the settings."""
        settings = self._settings
        if not settings.penalty:
            return 0.0
        norms = torch.linalg.vector_norm(self.coefficients(), settings.penalty_power, dim=1)
        cost = settings.penalty * norms.mean()
        torch.autograd.backward(cost)
        return float(cost.detach())

    @torch.no_grad()
    def settle(self) -> None:
        """Back into the box, of a projected one."""
        if self._settings.box == "projected":
            self.leaves["coefficients"].clamp_(*self._settings.bounds)
