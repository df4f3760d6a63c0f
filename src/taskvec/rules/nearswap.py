"""NearSwap: no weight moves further than t."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from taskvec.rules.rule import Rule


def nearswap(deltas: Tensor, *, t: Annotated[float, Field(gt=0)] = 1e-4) -> Tensor:
    """Take over a fine-tuned weight where it is near the base's, and go t towards it elsewhere; then add.

        clipped_t = tau_t clamped to [-t, t]

    Args:
        deltas: (task, *shape).
        t: the largest change of a weight. Not homogeneous: it is a distance between weights.

    Source: mergekit (nearswap; min(1, t / |tau|) tau, which is the same), for one vector.
    """
    return deltas.clamp(-t, t).add_(deltas - deltas)  # which is 0, but NaN where a change is not finite


NEARSWAP = Rule("nearswap", nearswap, "element", stage="each", breaks=("scale",))
