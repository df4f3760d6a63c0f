"""What is learned about the coefficients of a merge, from what, and how."""

from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from taskvec.config import Config
from taskvec.tasks.source import SplitName

Scope = Literal["task", "layer", "tensor", "partition", "rank"]

SignalName = Literal["entropy", "labels", "agreement"]


class CoefficientSettings(Config, use_attribute_docstrings=True):
    """One point in the space that AdaMerging, aTLAS and supervised coefficients are points of."""

    scope: Scope = "task"
    """What has a coefficient of its own in each vector: the whole `task`, a `layer` (block), a `tensor`, or a
    random `partition` of the entries of each tensor. With `rank` a tensor has, and singular directions of
    matrices are kept or left out besides."""
    partitions: PositiveInt = 2
    """With scope `partition`, into how many parts each tensor is split."""
    ratio: float = Field(default=1.0, ge=0, le=1)
    """With scope `rank`, the share of each matrix's directions that is kept at first, the largest."""
    start: float = 0.3
    """All coefficients, before the first step."""
    box: Literal["none", "clamp", "projected"] = "none"
    """What keeps coefficients inside the bounds: `clamp` cuts them where the model is built, and one outside
    has no gradient any more; `projected` moves them back after each step."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """Of the box."""
    tie: bool = False
    """One coefficient for all vectors in each part of the model."""
    normalise: bool = False
    """Divide coefficients by their sum over the vectors, so that it is 1 in each part of the model."""
    penalty: NonNegativeFloat = 0.0
    """Times the mean, over the vectors, of the norm of their coefficients; added to the objective."""
    penalty_power: float = Field(default=1.0, ge=1)
    """p of that norm."""
    trim: float | None = Field(default=None, gt=0, le=1)
    """Share of its largest entries that each vector keeps, of which only those stay that agree with the sign
    of their sum over the vectors."""
    signal: SignalName = "entropy"
    """What is minimised, summed over the tasks: the `entropy` of predictions; the loss of the `labels`; the
    cross entropy to the tasks' own models where these are to be believed (`agreement`)."""
    split: SplitName = "validation"
    """Whose examples are read."""
    allow_test_inputs: bool = False
    """Let the test split be read, without its labels; results say so."""
    steps: NonNegativeInt = 100
    batch: PositiveInt = 16
    """Examples a task in each batch."""
    batches: PositiveInt = 1
    """Batches a task in each step; their means are added up."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: PositiveFloat = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    """Of Adam and AdamW."""
    weight_decay: NonNegativeFloat = 0.0
    clip: PositiveFloat | None = None
    """Largest norm of the gradient over all coefficients."""
    keep: Literal["last", "best"] = "last"
    """The coefficients of the `last` step; or the `best` of some twenty steps, by the loss on a fifth of the
    split that is held out for that."""

    @model_validator(mode="after")
    def _honest(self) -> Self:
        if self.split == "test" and self.signal == "labels":
            raise ValueError("split: labels of 'test' are for measuring alone; take validation or train")
        if self.split == "test" and not self.allow_test_inputs:
            raise ValueError(
                "split: 'test' is for measuring, and learning would read its inputs; take validation, or set "
                "allow_test_inputs: true, and results will say so"
            )
        return self

    @model_validator(mode="after")
    def _possible(self) -> Self:
        low, high = self.bounds
        if not low < high:
            raise ValueError(f"bounds: {low:g} to {high:g}, expected the smaller one first")
        if self.normalise and (self.tie or self.start == 0):
            given = "tie" if self.tie else "start: 0"
            raise ValueError(f"normalise: does not go with {given}, as coefficients sum to 1; leave one out")
        if self.scope != "partition" and self.partitions != 2:
            raise ValueError(f"partitions: belongs to scope partition, and the scope is {self.scope}")
        if self.scope != "rank" and self.ratio != 1:
            raise ValueError(f"ratio: belongs to scope rank, and the scope is {self.scope}")
        if self.keep == "best" and self.signal != "labels":
            raise ValueError(f"keep: best goes by the loss of labels, and the signal is {self.signal}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("betas: expected two numbers from 0 up to, and without, 1")
        return self

    @property
    def consumes(self) -> tuple[str, ...]:
        """What results must say that the coefficients were learned from."""
        what = f"{self.split} labels" if self.signal == "labels" else f"unlabelled {self.split} inputs"
        return (what,)
