"""A merge with numbers to learn, as the loop knows it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

Model = Mapping[str, Tensor]
"""The parameters of the merged model that the merge writes; each holds its gradient after a pass."""


class Merge(ABC):
    """A model as a function of a few numbers, written in place, and the gradient carried back to them.

    Attributes:
        leaves: the numbers, by name; what the optimizer moves.
        model: by checkpoint name, tensors of its own that ``write`` fills. What is not in it stays as it is
            in the network.
    """

    leaves: dict[str, Tensor]
    model: dict[str, Tensor]

    @abstractmethod
    def write(self) -> None:
        """Fill ``model`` at the present numbers."""

    @abstractmethod
    def pull(self) -> None:
        """Add what the gradient of ``model`` is in the numbers to theirs; the model's is let go."""

    def penalty(self) -> float:
        """What the numbers themselves add to the objective; its gradient is added to theirs."""
        return 0.0

    def settle(self) -> None:  # noqa: B027  most have no box
        """Bring the numbers back to where they may be, after a step."""
