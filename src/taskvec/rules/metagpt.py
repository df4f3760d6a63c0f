"""MetaGPT: coefficients from norms."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from taskvec.rules import sum as addition
from taskvec.rules.rule import Rule, Stacks


def metagpt(deltas: Tensor, *, _shares: Sequence[float]) -> Tensor:
    """Weigh each task vector by its share of the squared norms.

        merged = sum_t lambda_t tau_t,      lambda_t = |tau_t|^2 / sum_s |tau_s|^2

    Args:
        deltas: (task, *shape).

    Norms are those of the whole vectors. For orthogonal vectors this minimises
    sum_t |tau_t|^2 |merged - tau_t|^2.
    Source: Zhou et al. 2024, arXiv:2406.11385.
    """
    return addition.weighted(deltas, _shares)


def measure_model(stacks: Stacks, **_: Any) -> Mapping[str, Mapping[str, Any]]:
    """The shares, from the norms over all tensors."""
    if not stacks.changed:
        return {}
    squares = torch.stack([_squares(stack) for _, stack in stacks]).sum(0)
    shares = squares / squares.sum() if squares.any() else torch.full_like(squares, 1 / len(squares))
    return {name: {"_shares": shares.tolist()} for name in stacks.changed}


def _squares(deltas: Tensor) -> Tensor:
    norms = [torch.linalg.vector_norm(delta, dtype=torch.float64) for delta in deltas]
    return torch.stack(norms) ** 2


METAGPT = Rule("metagpt", metagpt, "model", measure_model=measure_model)
