"""GradDrop: entries of one sign, drawn."""

import torch
from torch import Tensor

from taskvec.combiners.combiner import Combiner


def graddrop(stack: Tensor, uniform: Tensor) -> Tensor:
    """Draw a sign for each entry, the likelier the more speaks for it, and add the entries that have it.

        P = 1/2 (1 + sum_t g_t / sum_t |g_t|),      U uniform in [0, 1)
        result = sum of the positive g_t  where U < P,  of the negative ones elsewhere

    Where all tasks have the same sign this is the sum.
    Source: Chen et al. 2020, arXiv:2010.06808.
    """
    total, size = stack.sum(0, dtype=torch.float64), stack.abs().sum(0, dtype=torch.float64)
    positive = 2 * size * uniform < size + total
    kept = torch.where(positive, stack.clamp(min=0), stack.clamp(max=0)).sum(0)
    return torch.where(size.isfinite(), kept, size.to(kept.dtype))


GRADDROP = Combiner("graddrop", graddrop, entries=True, sums=True)
