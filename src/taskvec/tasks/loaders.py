"""From splits to batches, features and heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskvec.models.backbone import Backbone, evaluating
from taskvec.models.heads import Head, linear_probe, zero_shot_head
from taskvec.tasks.task import Split, Task


@dataclass(frozen=True)
class Batch:
    """A collated piece of a split.

    Args:
        inputs: keyword arguments of the backbone.
        labels: (n,), int64.
        index: (n,), int64, places in the split.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    index: Tensor

    def inputs_on(self, device: torch.device) -> dict[str, Tensor]:
        """The inputs, on a device."""
        return {key: value.to(device) for key, value in self.inputs.items()}


class Prepared:
    """A split whose texts are tokenised, once; images stay where they are, as all of them would not fit.

    Attributes:
        labels: (N,), int64.
        sizes: (N,), int64, what each input costs, relative to the others.
    """

    def __init__(self, backbone: Backbone, split: Split, max_length: int | None = None) -> None:
        self._backbone, self.labels = backbone, split.labels
        self._inputs = backbone.prepare(split.inputs, max_length)
        self.sizes = torch.tensor([backbone.size(prepared) for prepared in self._inputs], dtype=torch.int64)

    def batch(self, places: Tensor) -> Batch:
        """The examples at some places."""
        inputs = self._backbone.stack([self._inputs[place] for place in places.tolist()])
        return Batch(inputs, self.labels[places], places)


class Batches(Sequence[Batch]):
    """The batches of a split in a fixed order, stacked when asked for; a slice gives fewer of them."""

    def __init__(self, prepared: Prepared, places: Sequence[Tensor]) -> None:
        self._prepared, self._places = prepared, places

    @property
    def labels(self) -> Tensor:
        """Labels (N,), int64, in the order of the batches."""
        return self._prepared.labels[torch.cat([torch.arange(0), *self._places])]

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
    """A split, tokenised once and cut into batches.

    Args:
        sort: put texts of similar length together, so that little is padded; ``index`` tells where they were.
    """
    prepared = Prepared(backbone, split, max_length)
    order = prepared.sizes.argsort(stable=True) if sort else torch.arange(len(split))
    return Batches(prepared, torch.split(order, batch_size) if len(split) else [])


@torch.no_grad()
def features(backbone: Backbone, of: Sequence[Batch]) -> Tensor:
    """Features (N, d) of all batches, in the order of the split, on the CPU."""
    with evaluating(backbone):
        parts = [backbone(**batch.inputs_on(backbone.device)).cpu() for batch in of]
    result = torch.empty(sum(map(len, parts)), backbone.dim)
    result[torch.cat([batch.index for batch in of])] = torch.cat(parts).float()
    return result


def head_for(backbone: Backbone, task: Task, *, batch_size: int = 64) -> Head:
    """The frozen head that a task declares, made with the pre-trained backbone.

    A linear probe is fitted on the whole training split, however little of it a fine-tuning sees: all vectors
    of a task share one head.
    """
    if task.head == "zero-shot":
        return zero_shot_head(backbone, task.classes, task.templates, task.wordings)
    train = task.split("train")
    rows = features(backbone, batches(backbone, train, batch_size, max_length=task.max_length))
    return linear_probe(rows, train.labels, task.classes)
