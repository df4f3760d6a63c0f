"""The recipe of one fine-tuning."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from taskvec.config import Config


class TrainSettings(Config):
    """Optimizer, schedule and length of one fine-tuning.

    The defaults are those of the task-arithmetic papers for CLIP (SGD steps of 128 examples, lr 1e-5, weight
    decay 0.1, clipping at 1.0, linear warm-up and cosine to zero), with a warm-up of a tenth of the steps in
    place of 500 steps so that short runs reach the peak. Dropout is off: the function trained is the one
    evaluated, and the one that the tangent regime linearizes.
    """

    lr: PositiveFloat = 1e-5
    """Peak learning rate."""
    epochs: PositiveInt = 1
    """Passes over the training split."""
    steps: PositiveInt | None = None
    """Optimizer steps; overrides ``epochs``."""
    batch_size: PositiveInt = 128
    """Examples a step; larger than the split means full-batch."""
    accumulation: PositiveInt = 1
    """Micro-batches that one step is cut into; changes memory, not the step (the loss is averaged)."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled decay (AdamW); ignored by sgd."""
    decay_towards: Literal["zero", "pretrained"] = "zero"
    """Where the decay pulls the weights: to zero as AdamW does (in tangent space too, where it shrinks
    theta0 + tau); or to where training started, which shrinks the task vector alone."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises linearly."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""
    clip: PositiveFloat | None = 1.0
    """Largest global gradient norm; none to leave gradients alone."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    precision: Literal["float32", "bf16"] = "float32"
    """bf16 runs matrix products in bfloat16 (autocast); weights and optimizer stay in float32."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Order of the examples, and whatever a regime draws."""
    validations: NonNegativeInt = 2
    """How often the validation split is measured on the way; 0 for never."""
