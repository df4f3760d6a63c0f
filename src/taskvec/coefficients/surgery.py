"""Representation surgery: what merging did to a task's features, undone by a small map of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, relu

from taskvec.arguments import checked
from taskvec.coefficients.after import SurgerySettings
from taskvec.errors import Diverged, InputError


@dataclass(frozen=True)
class Surgery:
    """A map of features (N, d) to features (N, d), for one task.

        z' = z - up relu(down z)

    Args:
        down: (r, d), float32.
        up: (d, r), float32.

    Source: Yang et al. 2024, arXiv:2402.02705.
    """

    down: Tensor
    up: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Features (N, d) as the task's own model would have them."""
        down, up = self.down.to(features), self.up.to(features)
        return features - relu(features @ down.T) @ up.T

    @property
    def numbers(self) -> int:
        """How many were learned."""
        return self.down.numel() + self.up.numel()


@checked
def identity_surgery(dim: int, rank: int = 16, seed: int = 0) -> Surgery:
    """The start of every fit: ``up`` is zero, so nothing changes; ``down`` is drawn as torch's layers are."""
    draw = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(dim)
    down = torch.empty(rank, dim).uniform_(-bound, bound, generator=draw)
    return Surgery(down, torch.zeros(dim, rank))


@dataclass(frozen=True)
class FittedSurgery:
    """A surgery with how it was found.

    Args:
        before, after: mean absolute difference to the task's own model, on all examples it was fitted on.
        trace: the same on each step's batch.
    """

    surgery: Surgery
    before: float
    after: float
    trace: Sequence[float]


@checked
def fit_surgery(
    merged: Tensor, own: Tensor, settings: SurgerySettings | None = None, *, seed: int = 0
) -> FittedSurgery:
    """The surgery that brings a merged model's features (N, d) to those of a task's own model, (N, d).

        min over down, up:   mean |surgery(z_merged) - z_own|

    Both encoders are frozen, so their features are computed once; a step is a product of small matrices.
    No label is read. Steps draw batches so that every example has come before one comes again.

    Raises: InputError if the two do not fit together, or there are none; Diverged if they are not finite.
    """
    settings = settings or SurgerySettings()
    _check(merged, own)
    given, wanted = merged.detach().cpu().float(), own.detach().cpu().float()
    start = identity_surgery(given.shape[1], settings.rank, seed)
    down, up = start.down.clone(), start.up.clone()
    optimizer = torch.optim.Adam([down, up], lr=settings.lr)
    trace = [
        _step(down, up, optimizer, given[places], wanted[places])
        for places in _draws(len(given), settings, seed)
    ]
    found = Surgery(down, up)
    before, after = (float(l1_loss(made(given), wanted)) for made in (start, found))
    return FittedSurgery(found, before, after, torch.stack([torch.zeros(()), *trace])[1:].tolist())


def _step(
    down: Tensor, up: Tensor, optimizer: torch.optim.Optimizer, given: Tensor, wanted: Tensor
) -> Tensor:
    """A step on a batch, by the gradient in closed form; the loss before it."""
    inside = given @ down.T
    active = inside.relu()
    gap = torch.addmm(given - wanted, active, up.T, alpha=-1)
    slope = gap.sign() / -gap.numel()
    up.grad, down.grad = slope.T @ active, ((slope @ up) * (inside > 0)).T @ given
    optimizer.step()
    return gap.abs().mean()


def _check(merged: Tensor, own: Tensor) -> None:
    if merged.shape != own.shape or merged.dim() != 2 or not len(merged):
        raise InputError(
            f"surgery: features {tuple(merged.shape)} of the merged model and {tuple(own.shape)} of the "
            "task's own, expected (N, d) twice, of the same examples"
        )
    if not bool(merged.isfinite().all() and own.isfinite().all()):
        raise Diverged("surgery: features are not finite; merge with a smaller coefficient")


def _draws(count: int, settings: SurgerySettings, seed: int) -> Sequence[Tensor]:
    """The places of each step's examples."""
    draw = torch.Generator().manual_seed(seed + 1)
    needed = settings.steps * settings.batch
    rounds = [torch.randperm(count, generator=draw) for _ in range(math.ceil(needed / count))]
    places = torch.cat([torch.arange(0), *rounds])[:needed]
    return torch.split(places, settings.batch) if needed else ()
