"""tau-Jp: what is learned of a task should not move the outputs on other tasks' inputs."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
import xxhash
from torch import Tensor

from taskvec.errors import InputError
from taskvec.place import autocast
from taskvec.tasks.objective import Prepared
from taskvec.training.parts import Part, check_outputs
from taskvec.training.penalties.penalty import Given, Penalty
from taskvec.training.penalties.settings import TauJp

_EPS = 1e-12
"""Added to the square of a norm, whose root has no gradient at 0."""

Inputs = Callable[[int], Mapping[str, Tensor]]
"""The number of a step -> a batch of a task's inputs."""


def bind(settings: TauJp, given: Given) -> Penalty:
    """``mean over x of ||J(x) tau||^power``, x from the other tasks; no labels are read.

    Outputs are features before any normalization, or rows of token logits. In ordinary space, where the
    method is not defined, ``f(x; theta) - f(x; theta0)`` stands for ``J(x) tau``: our reading.

    Raises: InputError without other tasks, or for one that the model's outputs do not serve.
    Source: Yoshida et al. 2025 (ICLR). Their code has power 1.
    """
    sources = [_inputs(part, settings.batch_size, given) for part in given.references]
    if not sources:
        raise InputError(
            "penalty tau_jp: no references, expected other tasks whose inputs it reads; name some in "
            "references, or leave the penalty out"
        )
    device, precision = given.backbone.device, given.settings.precision

    def term(inputs: Inputs, step: int) -> Tensor:
        with autocast(precision, device):
            moved = given.moved.shift(inputs(step))
        return mean_norm(moved.to(torch.promote_types(moved.dtype, torch.float32)), settings.power)

    def penalty(step: int) -> Tensor:
        chosen = sources if settings.sets == "all" else [sources[step % len(sources)]]
        return torch.stack([term(inputs, step) for inputs in chosen]).mean()

    return penalty


def mean_norm(rows: Tensor, power: Literal[1, 2]) -> Tensor:
    """The mean norm of rows (R, d), or of its square; zero, with gradient zero, where all are zero."""
    squares = rows.square().sum(1)
    if power == 2:
        return squares.mean()
    norms: Tensor = squares / ((squares + _EPS).sqrt() + _EPS**0.5)  # sqrt(s + eps) - sqrt(eps), stably
    return norms.mean()


def _inputs(part: Part, batch_size: int, given: Given) -> Inputs:
    check_outputs(given.backbone, part.name, part.objective)
    if len(part.split) == 0:
        raise InputError(f"{part.name}: the training split is empty, expected inputs for penalty tau_jp")
    prepared = part.objective.prepare(given.backbone, part.split)
    return partial(
        _drawn, prepared, min(batch_size, prepared.together or batch_size), given.settings.seed, part.name
    )


def _drawn(prepared: Prepared, size: int, seed: int, name: str, step: int) -> Mapping[str, Tensor]:
    """Inputs of a task that depend on the seed, its name and the step alone."""
    digest = xxhash.xxh3_64_intdigest(f"{seed}/{step}/{name}".encode()) >> 1
    order = torch.randperm(len(prepared.sizes), generator=torch.Generator().manual_seed(digest))
    return prepared.inputs(order[:size])
