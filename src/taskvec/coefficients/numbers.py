"""Coefficients as numbers to learn, whatever is made with them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from taskvec.coefficients.merge import Merge
from taskvec.coefficients.scopes import Groups
from taskvec.coefficients.settings import CoefficientSettings


class Numbers(Merge):
    """A coefficient for each vector and group, in its box.

    Args:
        labels: of the vectors.
    """

    def __init__(self, labels: Sequence[str], groups: Groups, settings: CoefficientSettings) -> None:
        self._labels, self._groups, self._settings = labels, groups, settings
        rows = 1 if settings.tie else len(labels)
        numbers = torch.full((rows, len(groups.names)), settings.start, dtype=torch.float64)
        self.leaves = {"coefficients": numbers.requires_grad_()}

    def coefficients(self) -> Tensor:
        """(vector, group), float64, as the model is built with; differentiable in the leaves."""
        numbers, settings = self.leaves["coefficients"], self._settings
        if settings.box == "clamp":
            numbers = numbers.clamp(*settings.bounds)
        if settings.normalise:
            numbers = numbers / numbers.sum(0, keepdim=True)
        return numbers.expand(len(self._labels), -1)

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
