"""Regression: a number for each example, behind a frozen head; correlations and the mean squared error."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import FiniteFloat, PositiveInt, model_validator

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.reading import shown
from taskvec.tasks import intervals
from taskvec.tasks.headed import HeadedTask
from taskvec.tasks.objective import Batch, Objective, Tally
from taskvec.tasks.score import Score
from taskvec.tasks.source import Rows, SplitName
from taskvec.tasks.split import Split

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from taskvec.models.backbone import Backbone
    from taskvec.models.heads import Head
    from taskvec.tasks.loaders import Examples

Metric = Literal["pearson", "spearman", "mse"]


class Regression(HeadedTask):
    """Examples with a number each, such as the similarity of two sentences, behind a frozen head."""

    kind: Literal["regression"] = "regression"
    range: tuple[FiniteFloat, FiniteFloat] | None = None
    """Smallest and largest number that a label may be; none takes any."""
    head: Literal["linear-probe", "own"] = "linear-probe"
    """A ridge regression on the pre-trained features, or the checkpoint's own."""
    metric: Metric = "pearson"
    max_length: PositiveInt | None = None
    """Tokens that a text is cut to."""
    epochs: PositiveInt | None = None
    """Epochs of the usual fine-tuning recipe, where one is established."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"range: {list(self.range)}, expected the smallest label before the largest")
        return self

    def objective(self, backbone: "Backbone") -> "Regressing":
        from taskvec.models.heads import ridge_probe
        from taskvec.models.lending import trained_head
        from taskvec.tasks.loaders import training_features

        if self.head == "own":
            head: Head = trained_head(backbone, self.lender).number()
        else:
            head = ridge_probe(*training_features(backbone, self), self.name)
        return Regressing(head, self.metric, self.max_length)

    def examples(self, split: SplitName, rows: Rows) -> Split:
        """Rows with their labels as float32 numbers."""
        import torch

        labels = [self._number(label, rows, row) for row, label in enumerate(rows.labels)]
        inputs: Any = torch.from_numpy(rows.inputs) if isinstance(rows.inputs, np.ndarray) else rows.inputs
        return Split(inputs, torch.tensor(labels, dtype=torch.float32))

    def _number(self, label: int | float | str, rows: Rows, row: int) -> float:
        try:
            number = float(label)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{rows.where(row)}: label {shown(label)}, expected a finite number")
        if self.range is not None and not self.range[0] <= number <= self.range[1]:
            low, high = self.range
            raise InputError(
                f"{rows.where(row)}: label {shown(label)} is outside the range {low:g} to {high:g} of "
                f"{self.name!r}"
            )
        return number


@dataclass(frozen=True, eq=False)
class Regressing(Objective):
    """The mean squared error of a frozen head's number.

    Args:
        head: of one row.
        max_length: tokens that a text is cut to.
    """

    head: "Head"
    metric: str = "pearson"
    max_length: int | None = None
    outputs: ClassVar = "features"

    def prepare(self, backbone: "Backbone", split: Split) -> "Examples":
        from taskvec.tasks.loaders import Examples

        return Examples(backbone, split, self.max_length)

    def loss(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        from torch.nn.functional import mse_loss

        predicted = self.head(outputs).squeeze(-1)
        return mse_loss(predicted, batch.labels.to(predicted))

    def tally(self, outputs: "Tensor", batch: Batch) -> Tally:
        return {"predicted": self.head(outputs).squeeze(-1), "labels": batch.labels}

    def score(self, tally: Tally) -> "RegressionScore":
        return score(tally["predicted"], tally["labels"], self.metric)

    def at(self, params: Mapping[str, "Tensor"]) -> "Regressing":
        return replace(self, head=self.head.at(params))

    def moving(self, params: Mapping[str, "Tensor"]) -> "Regressing":
        return replace(self, head=self.head.moving(params))

    def fingerprint(self) -> str:
        return self.head.fingerprint()


@dataclass(frozen=True)
class RegressionScore(Score):
    """All figures of a regression on one split."""

    metric: str
    value: float
    interval: tuple[float, float] | None
    """95 % of the value: by Fisher's z of a correlation, by the bootstrap of an error."""
    pearson: float | None
    """Correlation of predictions and labels; none where all labels are the same."""
    spearman: float | None
    """The same of their ranks."""
    mse: float
    """Mean squared error, in the labels' unit squared."""
    examples: int


@checked
def score(predicted: "Tensor", labels: "Tensor", metric: str = "pearson") -> RegressionScore:
    """Compare predictions (N,) with labels (N,), any float dtypes.

    The correlation of a constant prediction is 0: it tells nothing of the labels.

    Raises: InputError for no examples, or a correlation with labels that are all the same.
    """
    found, wanted = predicted.double().numpy(), labels.double().numpy()
    if len(wanted) == 0:
        raise InputError("nothing to score: the split is empty")
    correlations = {"pearson": pearson(found, wanted), "spearman": pearson(_ranks(found), _ranks(wanted))}
    errors = (found - wanted) ** 2
    value = {**correlations, "mse": float(errors.mean())}[metric]
    if value is None:
        raise InputError(
            f"metric {metric!r}: undefined, as all {len(wanted)} labels are {wanted[0]:g}; take more "
            "examples, or metric: mse"
        )
    interval = intervals.of_mean(errors) if metric == "mse" else fisher(value, len(wanted), metric)
    return RegressionScore(
        metric=metric,
        value=value,
        interval=interval,
        **correlations,
        mse=float(errors.mean()),
        examples=len(wanted),
    )


def pearson(found: "NDArray[np.float64]", wanted: "NDArray[np.float64]") -> float | None:
    """Pearson's correlation of (N,) with (N,); none if ``wanted`` is constant, 0 if ``found`` is."""
    if np.ptp(wanted) == 0:
        return None
    if np.ptp(found) == 0:
        return 0.0
    x, y = found - found.mean(), wanted - wanted.mean()
    return float(np.clip((x / np.linalg.norm(x)) @ (y / np.linalg.norm(y)), -1.0, 1.0))


def fisher(correlation: float, n: int, metric: str, z: float = 1.959964) -> tuple[float, float] | None:
    """95 % interval of a correlation by Fisher's z; none for three examples or fewer.

    The variance of a rank correlation is that of Bonett and Wright 2000, (1 + r² / 2) / (n - 3).
    """
    if n <= 3:
        return None
    if abs(correlation) == 1:
        return (correlation, correlation)
    spread = 1 + correlation**2 / 2 if metric == "spearman" else 1.0
    middle, half = math.atanh(correlation), z * math.sqrt(spread / (n - 3))
    return math.tanh(middle - half), math.tanh(middle + half)


def _ranks(values: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Ranks (N,), the mean of them for equal values."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[place])
