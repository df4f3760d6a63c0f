"""How far the vectors of several tasks agree: facts to log."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taskvec.combiners.combiner import checked
from taskvec.combiners.gram import units


@dataclass(frozen=True)
class Conflicts:
    """What the inner products of several vectors say.

    Attributes:
        cosines: of all pairs, (task, task) float64; 0 with a zero vector.
        rate: share of the pairs whose inner product is negative, 0 of a single vector.
        mean, least: of the cosines of different vectors, 1 of a single one.
    """

    cosines: Tensor
    rate: float
    mean: float
    least: float


def conflicts(gram: Tensor) -> Conflicts:
    """The conflicts in a Gram matrix (task, task). Raises: NonFinite, InputError if it is not square."""
    _, cosines = units(checked(gram))
    pairs = cosines[np.triu_indices(len(cosines), 1)]
    if not len(pairs):
        return Conflicts(torch.from_numpy(cosines), 0.0, 1.0, 1.0)
    return Conflicts(
        torch.from_numpy(cosines), float((pairs < 0).mean()), float(pairs.mean()), float(pairs.min())
    )
