"""Keeping gradients in the range of half precision."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from taskvec.errors import TaskvecError
from taskvec.place import Precision

_PATIENCE = 2000
"""Steps without an overflow after which the factor is doubled."""


@dataclass
class LossScale:
    """A factor of the loss under which gradients of float16 products neither vanish nor overflow.

    It is halved at an overflow, whose step is left out, and doubled after many steps without one. Of another
    precision it is 1 and stays so.

    Args:
        factor: a power of two, so that it changes no digit.
        calm: steps since it last changed.
    """

    factor: float = 1.0
    calm: int = 0
    fixed: bool = True

    @classmethod
    def of(cls, precision: Precision) -> "LossScale":
        """As a training begins with it."""
        return cls(2.0**16, fixed=False) if precision == "fp16" else cls()

    def unscale(self, leaves: Iterable[Tensor]) -> bool:
        """Divide the gradients by the factor; whether they are finite, and the step may be taken.

        Raises: TaskvecError when no factor makes them finite.
        """
        if self.fixed:
            return True
        slopes = [leaf.grad for leaf in leaves if leaf.grad is not None]
        torch._foreach_mul_(slopes, 1 / self.factor)
        finite = bool(torch.stack([slope.isfinite().all() for slope in slopes]).all())
        self._adapt(finite)
        return finite

    def _adapt(self, finite: bool) -> None:
        self.calm = self.calm + 1 if finite else 0
        if not finite:
            self.factor /= 2
        elif self.calm == _PATIENCE:
            self.factor, self.calm = 2 * self.factor, 0
        if self.factor < 2.0**-16:
            raise TaskvecError(
                "precision fp16: gradients are not finite, however the loss is scaled; lower the learning "
                "rate, or train in bf16 or float32"
            )
