"""What a task asks of a model: its batches, its loss, and what its figures are made of."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from taskvec.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from taskvec.models.backbone import Backbone, Outputs
    from taskvec.tasks.score import Score
    from taskvec.tasks.source import SplitName
    from taskvec.tasks.split import Split

LOGITS = 1 << 26
"""Numbers that the outputs of one pass may hold; a vocabulary of 50,000 has as many for 1300 tokens."""

Tally = Mapping[str, "Tensor"]
"""What figures are made of, by name, an entry an example in the first dimension."""


@dataclass(frozen=True)
class Batch:
    """A collated piece of a split.

    Args:
        inputs: keyword arguments of the backbone.
        labels: (R,), the target of each row of the backbone's outputs; encoders give a row an example.
        index: (R,), int64, the example that each row belongs to, as its place in the split.
    """

    inputs: dict[str, "Tensor"]
    labels: "Tensor"
    index: "Tensor"

    def on(self, device: "torch.device") -> "Batch":
        """The same on a device; what is in pinned memory is copied while the processor goes on."""
        inputs = {key: value.to(device, non_blocking=True) for key, value in self.inputs.items()}
        labels, index = (value.to(device, non_blocking=True) for value in (self.labels, self.index))
        return Batch(inputs, labels, index)

    def pinned(self) -> "Batch":
        """The same in memory that a CUDA device can read by itself."""
        inputs = {key: value.pin_memory() for key, value in self.inputs.items()}
        return Batch(inputs, self.labels.pin_memory(), self.index.pin_memory())


class Prepared(ABC):
    """A split made ready once: texts are tokenised; images stay where they are, as all would not fit.

    Attributes:
        sizes: (N,), int64, what each example costs, relative to the others.
        rows: (N,), int64, rows of output that each example gives.
    """

    sizes: "Tensor"
    rows: "Tensor"
    together: int | None = None
    """Most examples that go through a model at once, for the memory of their outputs; none for no bound."""

    @abstractmethod
    def inputs(self, places: "Tensor") -> dict[str, "Tensor"]:
        """The examples at some places as keyword arguments of the backbone."""

    @abstractmethod
    def targets(self, places: "Tensor") -> tuple["Tensor", "Tensor"]:
        """Labels and index of the rows that these examples give, see :class:`Batch`."""

    def batch(self, places: "Tensor") -> Batch:
        """The examples at some places."""
        return Batch(self.inputs(places), *self.targets(places))


class Objective(ABC):
    """What a task asks of a model's outputs; frozen, and made once, with the pre-trained model."""

    outputs: ClassVar["Outputs"]
    """What it reads: features, one row an example, or logits, one row a scored token."""
    writes: ClassVar[bool] = False
    """Whether its figures are of texts that the model writes, see ``measure``, and no outputs hold them."""
    guided: ClassVar[bool] = False
    """Whether the model reads the labels, as it does answers that it is asked the likelihood of."""
    metric: str

    @abstractmethod
    def prepare(self, backbone: "Backbone", split: "Split") -> Prepared:
        """A split as batches of this kind of task."""

    def examples(self, backbone: "Backbone", split: "Split") -> "Split":
        """The split with an entry for each example; of texts these may be windows, cut when tokenised."""
        return split

    def check(self, name: str, split: "Split") -> None:  # noqa: B027  most have nothing to refuse
        """Refuse a training split that would train nonsense. Raises: InputError that opens with ``name``."""

    def training(self) -> "Objective":
        """The same without what only its figures need."""
        return self

    @property
    def predicts(self) -> bool:
        """Whether outputs are a distribution over classes or tokens, which ``logits`` gives."""
        return type(self).logits is not Objective.logits

    @abstractmethod
    def loss(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        """The mean over the batch's rows, of outputs (R, d) in float32 or more; differentiable."""

    @abstractmethod
    def tally(self, outputs: "Tensor", batch: Batch) -> Tally:
        """What the figures of these examples are made of; outputs (R, d) as for the loss."""

    @abstractmethod
    def score(self, tally: Tally) -> "Score":
        """All figures of the examples tallied.

        Raises: InputError for no examples; TaskvecError for a metric that gives no finite number.
        """

    def value(self, tally: Tally) -> float:
        """The task's own metric alone."""
        return self.score(tally).value

    def measure(self, backbone: "Backbone", split: "Split", name: "SplitName" = "test") -> "Score":
        """All figures of what the backbone writes as it is, in place of ``tally`` and ``score``.

        Args:
            name: of the split; what is drawn for one is not drawn for another.
        """
        raise NotImplementedError

    def at(self, params: Mapping[str, "Tensor"]) -> "Objective":
        """What is asked of a model with these parameters: a trained head is part of the model."""
        return self

    def moving(self, params: Mapping[str, "Tensor"]) -> "Objective":
        """The same as ``at``, and gradients flow into the parameters of a trained head."""
        return self

    def logits(self, outputs: "Tensor") -> "Tensor":
        """Logits (R, C) that are a distribution over classes or tokens, of outputs (R, d); differentiable.

        Raises: InputError for a kind of task that predicts none.
        """
        raise InputError(
            f"a task with the metric {self.metric} predicts no distribution, so it has no entropy; take "
            "signal: labels"
        )

    @abstractmethod
    def fingerprint(self) -> str:
        """Digest of what it holds, such as a head's weights; the same on every device."""

    def on(self, device: "torch.device") -> Self:
        """The same for outputs on a device: a copy, if it holds modules or tensors elsewhere."""
        moved = {name: on_device(value, device) for name, value in vars(self).items()}
        if all(value is vars(self)[name] for name, value in moved.items()):
            return self
        other = copy(self)
        vars(other).update(moved)
        return other


def on_device(held: Any, device: "torch.device") -> Any:
    """A module or tensor on a device, the same if it is there or of any other type; modules are copied."""
    import torch

    if isinstance(held, torch.Tensor):
        return held.to(device)
    if not isinstance(held, torch.nn.Module):
        return held
    there = all(value.device == device for value in (*held.parameters(), *held.buffers()))
    return held if there else deepcopy(held).to(device)
