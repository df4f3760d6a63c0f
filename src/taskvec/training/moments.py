"""What an optimizer remembers, handed from one training to the next."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Moments:
    """The state of an optimizer, by the place of a leaf: empty before the first step, and without momentum.

    A training that is given some goes on with them, and leaves there what they are at its end.
    """

    held: Mapping[int, Mapping[str, Tensor]] = field(default_factory=dict)

    def into(self, optimizer: torch.optim.Optimizer) -> None:
        """Have an optimizer of the same leaves go on with them."""
        state = {place: {name: t.clone() for name, t in of.items()} for place, of in self.held.items()}
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def take(self, optimizer: torch.optim.Optimizer) -> None:
        """Hold those of an optimizer, which is done."""
        state = optimizer.state_dict()["state"]
        self.held = {place: {name: t.cpu() for name, t in of.items()} for place, of in state.items()}

    def digest(self) -> list[float]:
        """What tells them from others in a checkpoint's signature."""
        return [float(t.double().sum()) for of in self.held.values() for t in of.values()]
