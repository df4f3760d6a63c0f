"""Task vectors as gradients: how far a sum of task vectors is from multi-task gradient descent."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from taskvec.arguments import distinct
from taskvec.errors import InputError
from taskvec.progress import Watch, unwatched
from taskvec.reports.drawing import grid_of_axes, hide_spines, label_axes
from taskvec.reports.numbers import Mean
from taskvec.reports.tables import Table
from taskvec.studies.analysis import (
    AnalysisOfModel,
    AnalysisRecord,
    Say,
    describe,
)
from taskvec.studies.record import Record
from taskvec.tasks.source import SplitName

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.studies.numerics.gradients import Loss, Residual


_ROUNDING = 1e-12
"""Residual relative to the vectors below which float64 says nothing about the order."""


class GradientsAnalysis(AnalysisOfModel):
    """Measure how far a sum of task vectors is from multi-task gradient descent, on a real model in float64.

    Example: `taskvec analyze gradients builtin -s builtin8 -t gabor greek display --steps 1 3 5 -o order`
    """

    task: tuple[str, ...]
    """Two or more tasks of the suite."""
    steps: tuple[Annotated[int, Field(ge=1)], ...] = (1, 3)
    """Full-batch gradient steps of each task; 1 is exact."""
    rates: tuple[float, ...] | None = None
    """Learning rates; by default four, each half of the one before."""
    alpha: float | None = None
    """Factor of the sum of vectors; by default one over the number of tasks, their mean."""
    samples: int = Field(default=16, ge=1)
    """Examples of each task, the first ones."""
    split: SplitName = "train"
    """The examples looked at."""

    def measure(self, watch: Watch, say: Say) -> "GradientsRecord":
        """Residuals at every number of steps and rate."""
        tasks = distinct(self.task, "--task")
        evaluator, suite = self.load_evaluator(tasks, limits={self.split: self.samples})
        return self.compare(evaluator, watch).model_copy(update={"given": {"suite": suite}})

    def compare(self, evaluator: "Evaluator", watch: Watch = unwatched) -> "GradientsRecord":
        """:func:`taskvec.gradient_equivalence` of a real model; the evaluator's limit is the full batch.

        Raises: InputError for fewer than two tasks.
        """
        from torch.nn.attention import SDPBackend, sdpa_kernel

        from taskvec.studies.numerics.gradients import RATES, gradient_equivalence

        tasks, rates = self.task, self.rates or RATES
        if len(tasks) < 2:
            raise InputError(f"gradients: {' '.join(tasks)} given, expected two or more tasks")
        alpha = 1 / len(tasks) if self.alpha is None else self.alpha
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
            theta0, losses = model_losses(evaluator, tasks, self.split)
            residuals = gradient_equivalence(losses, theta0, self.steps, rates, alpha, watch)
        return GradientsRecord(
            **describe(evaluator, tasks, self.split),
            parameters=sum(value.numel() for value in theta0.values()),
            alpha=alpha,
            rates=sorted(rates),
            steps={str(k): order for k, order in orders(residuals).items()},
        )


class Order(Record):
    """Norms at one number of steps, by learning rate."""

    rates: list[float]
    vector: list[float]
    """Of the sum of task vectors."""
    first: list[float]
    """Less the gradients along the multi-task path."""
    second: list[float]
    """Less the Hessian term too."""
    exact: bool
    """Without the Hessian term nothing but rounding is left; then there are no slopes."""
    slopes: dict[Literal["first", "second"], float | None]


class GradientsRecord(AnalysisRecord):
    """What multi-task gradients leave of the sum of task vectors."""

    analysis: Literal["gradients"] = "gradients"
    model: str
    split: str
    examples: dict[str, int]
    data: dict[str, str]
    tasks: list[str]
    parameters: int
    alpha: float
    rates: list[float]
    steps: dict[str, Order]

    def tables(self) -> list[Table]:
        """One row a number of steps: what is left at the smallest rate, and the order in the rate."""
        rows = []
        for k, order in self.steps.items():
            at = order.rates.index(min(order.rates))
            length = order.vector[at] or 1
            residuals = (Mean([values[at] / length], ".1e") for values in (order.first, order.second))
            slopes = (Mean([order.slopes[kind]], ".2f") for kind in ("first", "second"))
            rows.append((k, *residuals, *slopes))
        note = (
            f"Residual of Σ τ of {', '.join(self.tasks)} over its norm, at learning rate "
            f"{min(self.rates):g}, without and with the Hessian term. Order: slope of log residual over log "
            "rate, expected 2 and 3; none where the residual is rounding. "
            f"α = {self.alpha:.3g}, {sum(self.examples.values())} examples in all."
        )
        columns = ("steps", "residual", "after the Hessian term", "order", "order after")
        return [Table("Task vectors against multi-task gradients", columns, rows, note)]

    def figures(self) -> "dict[str, Figure]":
        """What multi-task gradients leave of the sum of task vectors, against the learning rate."""
        figure, [[ax]] = grid_of_axes(1, 1, 5.0, 4.0)
        exact = [k for k, order in self.steps.items() if order.exact]
        for index, (k, order) in enumerate(self.steps.items()):
            if order.exact:
                continue
            kinds = (
                (order.first, order.slopes["first"], "o-", "gradients"),
                (order.second, order.slopes["second"], "s--", "and Hessian term"),
            )
            for values, slope, style, name in kinds:
                label = f"k = {k}, {name}" + ("" if slope is None else f": slope {slope:.2f}")
                ax.loglog(order.rates, values, style, ms=4, color=f"C{index}", label=label)
        label_axes(ax, "learning rate η", "‖ Σ τ − multi-task steps ‖")
        ax.set_xticks(self.rates, [f"{rate:g}" for rate in self.rates])
        ax.minorticks_off()
        hide_spines(ax)
        if exact:
            ax.set_title(f"nothing but rounding is left at k = {', '.join(exact)}", fontsize="medium")
        if len(exact) < len(self.steps):
            ax.legend(frameon=False, fontsize="small", loc="lower right")
        return {"figure": figure}


def orders(residuals: "Sequence[Residual]") -> dict[int, Order]:
    """By number of steps: the norms, and the slopes of both residuals."""
    steps = sorted({residual.steps for residual in residuals})
    return {k: _order([residual for residual in residuals if residual.steps == k]) for k in steps}


def _order(residuals: "Sequence[Residual]") -> Order:
    from taskvec.studies.numerics.gradients import slope

    rates = [row.rate for row in residuals]
    first, second = [row.first for row in residuals], [row.second for row in residuals]
    exact = all(row.first <= _ROUNDING * row.vector for row in residuals)
    return Order(
        rates=rates,
        vector=[row.vector for row in residuals],
        first=first,
        second=second,
        exact=exact,
        slopes={
            "first": None if exact else slope(rates, first),
            "second": None if exact else slope(rates, second),
        },
    )


def model_losses(
    evaluator: "Evaluator", tasks: Sequence[str], split: SplitName = "train"
) -> "tuple[dict[str, Tensor], list[Loss]]":
    """Encoder parameters and one mean cross entropy a task, in float64, on a copy of the model.

    Each loss is of all examples of the split that the evaluator's limits leave, in one batch.
    """
    from copy import deepcopy

    from torch.nn.functional import cross_entropy

    from taskvec.models.functional import encode

    # Before the copy: the model runs once, in its own precision, to know what its features depend on.
    theta0 = {name: value.double() for name, value in evaluator.pretrained.items()}
    model = deepcopy(evaluator.backbone).double()

    def loss_of(task: str) -> "Loss":
        rows, head = evaluator.split(task, split), deepcopy(evaluator.head(task)).double().to(model.device)
        labels = rows.labels.to(model.device)
        batch = evaluator.backbone.collate(list(rows.inputs), evaluator.task(task).max_length)
        exact = {
            name: value.double() if value.is_floating_point() else value for name, value in batch.items()
        }
        return lambda at: cross_entropy(head(encode(model, at, exact)), labels)

    return theta0, [loss_of(task) for task in tasks]
