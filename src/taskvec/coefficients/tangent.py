"""Coefficients in tangent space: every example's outputs once, then no pass through the network."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taskvec.coefficients.affine import Affine, affine_outputs
from taskvec.coefficients.numbers import Numbers
from taskvec.coefficients.passes import Passes
from taskvec.coefficients.scopes import Groups
from taskvec.coefficients.settings import CoefficientSettings
from taskvec.coefficients.signals import Signal
from taskvec.evaluation.evaluator import Evaluator
from taskvec.models.heads import Head
from taskvec.tasks.loaders import in_batches
from taskvec.tasks.objective import Batch, Objective, Prepared
from taskvec.tasks.split import Split
from taskvec.vectors import TaskVector

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult  # type: ignore[import-untyped]

_LINEAR = (nn.Linear, nn.Identity, nn.Dropout, nn.Sequential)


class InTangent(Numbers):
    """Coefficients, of which outputs are affine functions: to the loop they are the whole model."""

    def __init__(self, labels: Sequence[str], groups: Groups, settings: CoefficientSettings) -> None:
        super().__init__(labels, groups, settings)
        self.model = {"coefficients": torch.zeros(len(labels), len(groups.names)).requires_grad_()}

    @torch.no_grad()
    def write(self) -> None:
        """The numbers, in the box."""
        self.model["coefficients"].copy_(self.coefficients())

    def pull(self) -> None:
        """Back through the box."""
        slope = self.model["coefficients"].grad
        if slope is not None:
            torch.autograd.backward(self.coefficients(), slope.double())
        self.model["coefficients"].grad = None


class Kept(Passes):
    """Passes over outputs that were computed once, see :class:`Affine`."""

    def __init__(
        self,
        evaluator: Evaluator,
        splits: Mapping[str, Split],
        settings: CoefficientSettings,
        signal: Signal,
        seed: int,
        vectors: Mapping[str, TaskVector],
        groups: Groups,
    ) -> None:
        super().__init__(evaluator, splits, settings, signal, seed)
        self._affine = {
            task: affine_outputs(evaluator, task, in_batches(of, evaluator.batch_size), vectors, groups)
            for task, (_, of) in self._asked.items()
        }

    def fingerprints(self) -> list[list[object]]:
        """What is asked, and of which outputs."""
        sums = [of.base.double().sum() + of.slopes.double().abs().sum() for of in self._affine.values()]
        return [[*asked, float(total)] for asked, total in zip(super().fingerprints(), sums, strict=True)]

    def is_convex(self) -> bool:
        """Whether all that is asked for is a minimum of what is convex in the coefficients: the loss of
        labels behind heads that are affine."""
        settings = self._settings
        if settings.signal != "labels" or settings.normalise or settings.penalty or settings.keep == "best":
            return False
        return all(is_affine(objective) for objective, _ in self._asked.values())

    def minimum(self, numbers: Numbers) -> list[float]:
        """Move the numbers to where the objective of all examples is smallest, by L-BFGS in float64, within
        the box; the objective at the start and after each iteration.

        It is the global minimum where the objective is convex.
        """
        settings, whole = self._settings, _Whole(numbers, self._wholes())
        start = numbers.leaves["coefficients"].detach().numpy().ravel().copy()
        if not settings.steps:
            return []
        trace = [whole(start)[0]]

        from scipy.optimize import minimize  # takes long to import

        def note(intermediate_result: "OptimizeResult") -> None:
            trace.append(float(intermediate_result.fun))

        found = minimize(
            whole,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=None if settings.box == "none" else [settings.bounds] * len(start),
            callback=note,
            options={"maxiter": settings.steps, "ftol": 1e-14, "gtol": 1e-9},
        )
        whole.place(found.x)
        return trace

    def _batch(self, prepared: Prepared, places: Tensor) -> Batch:
        return Batch({}, *prepared.targets(places)).on(self._backbone.device)

    def _outputs(self, model: Mapping[str, Tensor], task: str, batch: Batch) -> Tensor:
        outputs = self._affine[task].at(model["coefficients"], batch.index.cpu())
        return outputs.to(self._backbone.device)

    def _wholes(self) -> list[Callable[[Tensor], Tensor]]:
        """Each task's objective of all its examples, of the coefficients, in float64."""
        here = torch.device("cpu")
        return [
            partial(self._of_all, task, _double(asked.on(here)), self._affine[task].double(), of)
            for task, (asked, of) in self._asked.items()
        ]

    def _of_all(
        self, task: str, asked: Objective, affine: Affine, prepared: Prepared, coefficients: Tensor
    ) -> Tensor:
        batch = Batch({}, *prepared.targets(torch.arange(len(prepared.sizes))))
        return self._signal(task, asked, affine.at(coefficients), batch)


class _Whole:
    """The objective of all examples, and its gradient in the numbers, as scipy asks for them."""

    def __init__(self, numbers: Numbers, objectives: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self._numbers, self._objectives = numbers, objectives
        self._leaf = numbers.leaves["coefficients"]

    def __call__(self, at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        self.place(at)
        chosen = self._numbers.coefficients()
        total = torch.stack([objective(chosen) for objective in self._objectives]).sum()
        [slope] = torch.autograd.grad(total, self._leaf)
        return total.item(), slope.numpy().ravel()

    @torch.no_grad()
    def place(self, at: NDArray[np.float64]) -> None:
        self._leaf.copy_(torch.from_numpy(at).view_as(self._leaf))


def is_affine(objective: Objective) -> bool:
    """Whether logits are affine in the model's outputs: there is no head, or one that does not normalise and
    whose layers are all linear."""
    head = getattr(objective, "head", None)
    if not isinstance(head, Head):
        return objective.outputs == "tokens"
    layers = head.before.modules() if head.before else ()
    return not head.normalize and all(isinstance(layer, _LINEAR) for layer in layers)


def _double(objective: Objective) -> Objective:
    """The same for outputs in float64."""
    other = copy(objective)
    modules = {name: held for name, held in vars(other).items() if isinstance(held, nn.Module)}
    vars(other).update({name: deepcopy(module).double() for name, module in modules.items()})
    return other
