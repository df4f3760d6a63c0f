"""One model as it is, or its weights scaled."""

from torch import Tensor

from taskvec.rules.rule import Rule, present


def passthrough(deltas: Tensor, *, scale: float = 1.0, _base: Tensor | None = None) -> Tensor:
    """Take the only model there is, its weights multiplied by a number.

        merged = scale (base + tau) - base

    Args:
        deltas: (1, *shape).
        scale: of the weights, not of the task vector.

    Source: mergekit (passthrough).
    """
    if scale == 1:
        return deltas[0].clone()
    return scale * deltas[0] + (scale - 1) * present(_base)


PASSTHROUGH = Rule("passthrough", passthrough, "element", consumes="deltas, base", tasks=(1, 1))
