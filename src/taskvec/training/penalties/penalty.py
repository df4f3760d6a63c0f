"""What a penalty is, and what it may work with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from taskvec.models.backbone import Backbone
from taskvec.progress import Watch
from taskvec.training.parts import Part
from taskvec.training.settings import TrainSettings
from taskvec.training.space import Moved

Penalty = Callable[[int], Tensor]
"""The number of a step, from 0 -> a scalar, differentiable in the leaves, without the strength. What is drawn
depends on the seed and this number alone, so that a training that is resumed gives the same bits."""


@dataclass(frozen=True)
class Given:
    """One training, as penalties see it.

    Args:
        moved: the model and its displacement.
        references: other tasks, of which only the inputs are used.
        keep: a folder for what is measured once and serves other trainings too; none to keep nothing.
        trained: names of the tasks that are learned.
        seed: of what is measured once; by default that of the settings.
    """

    backbone: Backbone
    moved: Moved
    references: Sequence[Part]
    settings: TrainSettings
    keep: Path | None
    watch: Watch
    trained: Sequence[str] = ()
    seed: int | None = None

    @property
    def measuring_seed(self) -> int:
        """Of what is measured once."""
        return self.settings.seed if self.seed is None else self.seed
