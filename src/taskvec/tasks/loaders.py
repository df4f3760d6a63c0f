"""From splits to batches, features and heads."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from taskvec.models.backbone import Backbone, evaluating
from taskvec.models.heads import Head, linear_probe, zero_shot_head
from taskvec.models.lending import trained_head
from taskvec.tasks.objective import Batch, Prepared
from taskvec.tasks.source import SplitName
from taskvec.tasks.split import Split


class Examples(Prepared):
    """Inputs of an encoder, one row of features each."""

    def __init__(self, backbone: Backbone, split: Split, max_length: int | None = None) -> None:
        self._backbone, self._labels = backbone, split.labels
        self._inputs = backbone.prepare(split.inputs, max_length)
        self.sizes = torch.tensor([backbone.size(prepared) for prepared in self._inputs], dtype=torch.int64)
        self.rows = torch.ones_like(self.sizes)

    def inputs(self, places: Tensor) -> dict[str, Tensor]:
        """Stacked by the backbone."""
        return self._backbone.stack([self._inputs[place] for place in places.tolist()])

    def targets(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Labels as the split has them."""
        return self._labels[places], places


class Batches(Sequence[Batch]):
    """The batches of a split in a fixed order, stacked when asked for; a slice gives fewer of them."""

    def __init__(self, prepared: Prepared, places: Sequence[Tensor]) -> None:
        self._prepared, self._places = prepared, places

    @property
    def labels(self) -> Tensor:
        """Labels (R,) of all rows, in the order of the batches."""
        return self.targets()[0]

    def targets(self) -> tuple[Tensor, Tensor]:
        """Labels and index (R,) of all rows, in the order of the batches; no input is stacked for them."""
        return self._prepared.targets(self._order)

    @property
    def rows(self) -> int:
        """R, rows of output of all batches."""
        return int(self._prepared.rows[self._order].sum())

    def picked(self, rows: Tensor) -> "Batches":
        """Batches of fewer examples, which give one row each, by their places (M,) in the order of these."""
        size = max(1, *(len(batch) for batch in self._places)) if self._places else 1
        return Batches(self._prepared, torch.split(self._order[rows], size) if len(rows) else [])

    @property
    def _order(self) -> Tensor:
        return torch.cat([torch.arange(0), *self._places])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return Batches(self._prepared, self._places[at])
        return self._prepared.batch(self._places[at])


def batches(
    backbone: Backbone,
    split: Split,
    batch_size: int = 64,
    *,
    max_length: int | None = None,
    sort: bool = True,
) -> Batches:
    """The inputs of an encoder, tokenised once and cut into batches, see :func:`in_batches`."""
    return in_batches(Examples(backbone, split, max_length), batch_size, sort=sort)


def in_batches(prepared: Prepared, batch_size: int, *, sort: bool = True) -> Batches:
    """A split, made ready once, cut into batches.

    Args:
        sort: put inputs of similar size together, so that little is padded; ``index`` tells where they were.
    """
    order = prepared.sizes.argsort(stable=True) if sort else torch.arange(len(prepared.sizes))
    size = min(batch_size, prepared.together or batch_size)
    return Batches(prepared, torch.split(order, size) if len(order) else [])


@torch.no_grad()
def features(backbone: Backbone, of: Sequence[Batch]) -> Tensor:
    """Features (N, d) of all batches, in the order of the split, on the CPU."""
    with evaluating(backbone):
        parts = [backbone(**batch.on(backbone.device).inputs).cpu() for batch in of]
    result = torch.empty(sum(map(len, parts)), backbone.dim)
    result[torch.cat([batch.index for batch in of])] = torch.cat(parts).float()
    return result


class Headed(Protocol):
    """A classification that declares how its frozen head is made."""

    @property
    def head(self) -> str:
        """``zero-shot``, ``linear-probe`` or ``own``."""

    @property
    def lender(self) -> str | None:
        """The checkpoint that lends its own."""

    @property
    def classes(self) -> Sequence[str]:
        """Names."""

    @property
    def templates(self) -> Sequence[str]:
        """Prompts."""

    @property
    def wordings(self) -> Mapping[str, Sequence[str]]:
        """What stands in a prompt for a class."""

    @property
    def max_length(self) -> int | None:
        """Tokens that a text is cut to."""

    def split(self, split: SplitName, limit: int | None = None) -> Split:
        """Its examples."""


class Trained(Protocol):
    """A task with a training split."""

    @property
    def max_length(self) -> int | None:
        """Tokens that a text is cut to."""

    def split(self, split: SplitName, limit: int | None = None) -> Split:
        """Its examples."""


def training_features(backbone: Backbone, task: Trained, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """Features (N, d) and labels (N,) of the whole training split, which a probe is fitted on."""
    train = task.split("train")
    prepared = batches(backbone, train, batch_size, max_length=task.max_length)
    return features(backbone, prepared), train.labels


def head_for(backbone: Backbone, task: Headed, *, batch_size: int = 64) -> Head:
    """The frozen head that a task declares, made with the pre-trained backbone.

    A linear probe is fitted on the whole training split, however little of it a fine-tuning sees: all vectors
    of a task share one head.
    """
    if task.head == "zero-shot":
        return zero_shot_head(backbone, task.classes, task.templates, task.wordings)
    if task.head == "own":
        return trained_head(backbone, task.lender).head(task.classes, task.wordings)
    return linear_probe(*training_features(backbone, task, batch_size), task.classes)
