"""One step of a training after another: gradients, clipping, the optimizer."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from taskvec.errors import TrainingDiverged
from taskvec.group import current
from taskvec.models.activations import recomputed
from taskvec.models.backbone import Backbone
from taskvec.models.sharding import is_sharded, local_rows
from taskvec.place import enough_memory
from taskvec.tasks.objective import Objective
from taskvec.training.gradients import Terms, Weighted, add_gradients
from taskvec.training.joint import Joint
from taskvec.training.scaling import LossScale
from taskvec.training.settings import TrainSettings
from taskvec.training.space import Moved
from taskvec.training.stream import Step

Params = Mapping[str, Tensor]


@dataclass
class Steps:
    """What moves the leaves of a model, a step at a time.

    Args:
        asked: the objective of each part.
        total: how many steps the schedule is for.
        sign: +1 descends the loss, -1 ascends it.
        label: names the training in errors.

    Attributes:
        scale: of the loss, which half precision needs.
    """

    moved: Moved
    asked: Sequence[Objective]
    penalties: Sequence[Weighted]
    settings: TrainSettings
    total: int
    joint: Joint | None
    sign: float
    label: str
    optimizer: torch.optim.Optimizer = field(init=False)
    scale: LossScale = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = _optimizer(self.settings, self.moved)
        self.scale = LossScale.of(self.settings.precision)
        own = self.moved.rates
        self._clipped = {name: leaf for name, leaf in self.moved.leaves.items() if name not in own}

    def take(self, number: int, given: Sequence[Step]) -> dict[str, float] | None:
        """Take a step on some examples: its figures; none, and no step, where ascent diverges.

        Args:
            number: of the step, from 0.

        Raises: TrainingDiverged; OutOfMemory.
        """
        lr = self._set_rate(number)
        terms = self._add_gradients(number, given, lr)
        taken = self.scale.unscale(self.moved.leaves.values())
        loss, penalty, norm = _read(terms, _clip(self._clipped, self.settings.clip))
        if not math.isfinite(loss + penalty) or (taken and not math.isfinite(norm)):
            if self.sign < 0:
                return None
            self._complain(number, {"loss": loss, "penalty": penalty, "gradient's norm": norm})
        if taken:
            if self.settings.optimizer == "adamw":
                self.moved.decay(self.settings, lr)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        penalized = {"penalty": penalty} if self.penalties else {}
        figures = {"loss": loss, "lr": lr, "gradient_norm": norm}
        return {**figures, **penalized, **terms.facts, **self.moved.facts()}

    def _set_rate(self, number: int) -> float:
        """Set the learning rates of a step; that of all leaves without one of their own."""
        factor = _schedule(number, self.total, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        return self.settings.rate * factor

    def _add_gradients(self, number: int, given: Sequence[Step], lr: float) -> Terms:
        settings, backbone = self.settings, self.moved.backbone
        at_once = f"a training step of {sum(len(step.chunk.places) for step in given)} examples"
        remedy = _remedy(settings, self.joint)
        with enough_memory(backbone.device, at_once, remedy), activations(backbone, settings):
            return add_gradients(
                self.moved,
                self.asked,
                self.penalties,
                given,
                number,
                settings,
                joint=self.joint,
                lr=lr,
                sign=self.sign,
                scale=self.scale.factor,
            )

    def _complain(self, number: int, values: Mapping[str, float]) -> None:
        """Raise for the first value that is not finite."""
        name, value = next((name, value) for name, value in values.items() if not math.isfinite(value))
        weaker = ", weaken the penalty" if any(of.strength for of in self.settings.penalty) else ""
        raise TrainingDiverged(
            f"{self.label}: the {name} is {value} at step {number + 1} of {self.total}; lower the learning "
            f"rate (now {self.settings.rate:g}){weaker} or train in float32"
        )


def _read(terms: Terms, norm: Tensor) -> tuple[float, float, float]:
    """Loss, penalties and norm of the gradient, read together when all is queued: a device stands still for
    it."""
    values = [value.to(norm.dtype) for value in (*terms.losses, *terms.penalties)]
    *read, size = torch.stack([*values, norm]).tolist()
    count = len(terms.losses)
    return sum(read[:count]), sum(read[count:]), size


def _remedy(settings: TrainSettings, joint: Joint | None) -> str:
    """What takes less memory, the first of which leaves the result as it is."""
    twice = "" if settings.checkpoint_activations else ", set checkpoint_activations"
    narrower = ", take precision bf16" if settings.precision == "float32" else ""
    fewer = "" if joint is None else f", set combiner_memory (now {joint.room / 1e9:.3g} GB)"
    return (
        f"raise accumulation (now {settings.accumulation}), which computes the same step in smaller pieces"
        f"{twice}{narrower}{fewer}, or lower batch_size (now {settings.batch_size})"
    )


def activations(backbone: Backbone, settings: TrainSettings) -> AbstractContextManager[None]:
    """Activations kept or computed twice, as the settings say."""
    return recomputed(backbone.network, backbone.ref) if settings.checkpoint_activations else nullcontext()


def _clip(leaves: Params, most: float | None) -> Tensor:
    """Clip the gradients to a global norm, if there is one; the norm before."""
    slopes = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
    if any(map(is_sharded, slopes)):
        return _clip_shards([local_rows(slope) for slope in slopes], most)
    if most is not None:
        return torch.nn.utils.clip_grad_norm_(leaves.values(), most)
    return torch.nn.utils.get_total_norm(slopes)


def _clip_shards(slopes: list[Tensor], most: float | None) -> Tensor:
    """As ``_clip``, of gradients whose other rows other processes have."""
    square = torch.nn.utils.get_total_norm(slopes).square()
    current().sum_(square)
    norm = square.sqrt()
    if most is not None:
        torch._foreach_mul_(slopes, (most / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _schedule(step: int, steps: int, settings: TrainSettings) -> float:
    """The learning rate's factor: linear warm-up, then cosine to zero or constant."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _optimizer(settings: TrainSettings, moved: Moved) -> torch.optim.Optimizer:
    """Leaves in the order of the space; ``peak`` is the largest learning rate of a group."""
    usual = [leaf for name, leaf in moved.leaves.items() if name not in moved.rates]
    own = [{"params": [moved.leaves[name]], "peak": rate} for name, rate in moved.rates.items()]
    groups = [{"params": usual, "peak": settings.rate}, *own]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.rate)
    return torch.optim.AdamW(groups, lr=settings.rate, weight_decay=0.0)  # the decay is the space's
