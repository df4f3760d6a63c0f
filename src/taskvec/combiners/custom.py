"""Combiners of the user's own: any function of the Gram matrix."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from taskvec.combiners.combiner import Array, Combiner
from taskvec.errors import InputError, NonFinite


def called(function: Callable[..., Tensor], params: Mapping[str, Any]) -> Combiner:
    """A combiner of a callable, (task, task) float64 -> (task,); ``params`` are its keyword arguments."""
    name = getattr(function, "__name__", type(function).__name__)
    return Combiner(name, partial(_weights, name, function, dict(params)), breaks=("order", "scale"))


def _weights(name: str, function: Callable[..., Tensor], params: Mapping[str, Any], gram: Array) -> Array:
    found = torch.as_tensor(function(torch.from_numpy(gram), **params)).detach().to("cpu", torch.float64)
    if found.shape != (len(gram),):
        wanted = f"expected ({len(gram)},), a weight for each task"
        raise InputError(f"combiner {name!r}: returned weights of shape {tuple(found.shape)}, {wanted}")
    if not found.isfinite().all():
        raise NonFinite(f"combiner {name!r}: returned {found.tolist()}, expected finite weights")
    return found.numpy()
