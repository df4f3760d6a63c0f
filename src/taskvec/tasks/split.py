"""Examples of one split of a task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from taskvec.arguments import checked
from taskvec.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


@checked
@dataclass(frozen=True)
class Split:
    """Examples of one split.

    Args:
        inputs: texts, pairs of texts, a uint8 tensor (N, H, W, 3), or images read on access.
        labels: (N,): what is wanted of each input, as its kind of task has it: int64 places in the classes.
    """

    inputs: Sequence[Any]
    labels: "Tensor"

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: "Tensor") -> list[Any]:
        """The inputs at some places, in the order given."""
        return [self.inputs[place] for place in places.tolist()]

    def first(self, limit: int | None) -> "Split":
        """The first ``limit`` examples; all for none."""
        if limit is None or limit >= len(self):
            return self
        return Split(self.inputs[:limit], self.labels[:limit])

    def draw(self, count: int, seed: int) -> "Split":
        """Some examples, drawn without replacement; all of them, shuffled, if there are fewer."""
        import torch

        places = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        return self.at(places)

    def at(self, places: "Tensor") -> "Split":
        """The examples at some places, in the order given."""
        return Split(taken(self.inputs, places.tolist()), self.labels[places])


def held_out_split(train: Split, share: float = 0.1, most: int = 5000) -> tuple[Split, Split]:
    """A training split cut into train and validation by a permutation of seed 0.

    Source: the ``...Val`` data sets of the task-arithmetic code, arXiv:2212.04089.
    """
    import torch

    count = min(int(share * len(train)), most)
    if count == 0:
        raise InputError(f"{len(train)} training rows are too few to hold out a validation split; give one")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    return train.at(order[:-count]), train.at(order[-count:])


def taken(inputs: Sequence[Any], places: Sequence[int]) -> Sequence[Any]:
    """Inputs at some places, of the same kind as given: a list of a list, an array of an array."""
    if isinstance(inputs, list):
        return [inputs[place] for place in places]
    several: Any = inputs
    return several[list(places)]  # type: ignore[no-any-return]
