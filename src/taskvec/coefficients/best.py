"""The best numbers so far, by examples that are held out."""

import math

import torch
from torch import Tensor

from taskvec.coefficients.merge import Merge
from taskvec.coefficients.passes import Passes

_LOOKS = 20
"""How often the examples are looked at."""


class Best:
    """Keeps the numbers of a merge at the step where held-out examples cost least.

    Attributes:
        state: what it goes on from when it is filled; empty where nothing is held out.
    """

    def __init__(self, merge: Merge, held: Passes | None, steps: int) -> None:
        self._merge, self._held, self._every = merge, held, max(1, steps // _LOOKS)
        self.state: dict[str, Tensor] = {}
        if held is not None:
            self.state = {f"best {name}": leaf.detach().clone() for name, leaf in merge.leaves.items()}
            self.state["lowest"] = torch.tensor(math.inf, dtype=torch.float64)

    def look(self, step: int) -> None:
        """Measure the model as it is written, if a look is due."""
        if self._held is None or step % self._every:
            return
        found = self._held.measure(self._merge.model)
        if found < self.state["lowest"]:
            self.state["lowest"].fill_(found)
            for name, leaf in self._merge.leaves.items():
                self.state[f"best {name}"].copy_(leaf.detach())

    @torch.no_grad()
    def settle(self) -> None:
        """A last look, and the best numbers in the place of the last ones."""
        if self._held is not None:
            self._merge.write()
            self.look(0)
            for name, leaf in self._merge.leaves.items():
                leaf.copy_(self.state[f"best {name}"])
