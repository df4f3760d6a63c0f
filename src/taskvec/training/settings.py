"""The recipe of one fine-tuning."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
)

from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.place import Precision
from taskvec.training.penalties.settings import Penalties

Rate = Annotated[
    Annotated[PositiveFloat, Tag("float")] | Annotated[Literal["auto"], Tag("str")],
    Discriminator(lambda given: "str" if given == "auto" else "float"),
]
"""A learning rate; the tags keep what is wrong with a number the one complaint."""


class TrainSettings(Config, use_attribute_docstrings=True):
    """Optimizer, schedule and length of one fine-tuning.

    The defaults are those of the task-arithmetic papers for CLIP (SGD steps of 128 examples, lr 1e-5, weight
    decay 0.1, clipping at 1.0, linear warm-up and cosine to zero), with a warm-up of a tenth of the steps in
    place of 500 steps so that short runs reach the peak. Dropout is off: the function trained is the one
    evaluated, and the one that the tangent regime linearizes.
    """

    lr: Rate = 1e-5
    """Peak learning rate. `auto` finds it on validation data before training, in short trainings that cost as
    much as one or two of the whole."""
    epochs: PositiveInt = 1
    """Passes over the training split."""
    steps: PositiveInt | None = None
    """Optimizer steps, in place of epochs."""
    batch_size: PositiveInt = 128
    """Examples a step; more than the split holds means all of it."""
    accumulation: PositiveInt = 1
    """Micro-batches that a step is cut into, to save memory; the step is the same."""
    checkpoint_activations: bool = False
    """Keep the inputs of layers alone and run each again in the backward pass, to save memory for time;
    gradients are the same."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay of AdamW."""
    decay_towards: Literal["zero", "pretrained"] = "zero"
    """Where the decay pulls the weights: to `zero` as AdamW does (in tangent space too), or to the
    `pretrained` ones, which shrinks the task vector alone."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises, linearly."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""
    clip: Annotated[NonNegativeFloat | None, AfterValidator(lambda norm: norm or None)] = 1.0
    """Largest global gradient norm; 0 leaves gradients alone."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """`sgd` is without momentum and weight decay."""
    precision: Precision = "float32"
    """`bf16` and `fp16` compute matrix products in bfloat16 and float16; weights and optimizer stay in
    float32. `fp16`, for devices without bfloat16, scales the loss and is not for tangent space."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Order of the examples, and whatever a regime draws."""
    validations: NonNegativeInt = 2
    """How often the validation split is measured on the way; 0 for never."""
    penalty: Penalties = ()
    """What is added to the loss for the displacement itself; see ``docs/penalties.md``."""
    combiner_memory: NonNegativeFloat | None = None
    """Gigabytes that gradients may take while a combiner makes one of them; half of the device's memory where
    it is not said. Where those of all tasks take more, they are computed again and again, for a group of
    parameters after the other."""

    young: ClassVar[frozenset[str]] = frozenset({"penalty", "combiner_memory"})
    """Settings that are not told at their defaults, so that trainings from before them are the same ones."""

    @property
    def rate(self) -> float:
        """The peak learning rate, which is a number by now. Raises: InputError for ``auto``."""
        if self.lr == "auto":
            raise InputError(
                "lr: auto is found by finetune and atm before they train, expected a number here; set one"
            )
        return self.lr

    def told(self, but: set[str] | None = None) -> dict[str, Any]:
        """The settings as plain data, for keys, provenance and checkpoints."""
        usual = {name for name in self.young if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude={*usual, *(but or ())})
