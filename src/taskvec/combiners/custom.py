"""Combiners of the user's own: any function of the Gram matrix."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taskvec.combiners.combiner import Array, Combiner
from taskvec.errors import InputError, NonFinite
from taskvec.reading import printable, shortened


def called(function: Callable[..., Tensor], params: Mapping[str, Any]) -> Combiner:
    """A combiner of a callable, (task, task) float64 -> (task,); ``params`` are its keyword arguments.

    Raises: InputError if it is none, or does not take the arguments.
    """
    if not callable(function):
        raise InputError(f"combiner: {function!r} found, expected a name or a function of the Gram matrix")
    name = getattr(function, "__name__", type(function).__name__)
    _check_taken(name, function, params)
    return Combiner(name, partial(_weights, name, function, dict(params)), breaks=("order", "scale"))


def _check_taken(name: str, function: Callable[..., Tensor], params: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some functions in C nothing is known
        return
    try:
        signature.bind(None, **params)
    except TypeError as error:
        raise InputError(f"combiner {name!r}: takes {signature}, {error}; change its parameters") from None


def _weights(name: str, function: Callable[..., Tensor], params: Mapping[str, Any], gram: Array) -> Array:
    found = _called(name, function, params, gram)
    if found.shape != (len(gram),):
        wanted = f"expected ({len(gram)},), a weight for each task"
        raise InputError(f"combiner {name!r}: returned weights of shape {found.shape}, {wanted}")
    if not np.isfinite(found).all():
        raise NonFinite(f"combiner {name!r}: returned {found.tolist()}, expected finite weights")
    return found


def _called(name: str, function: Callable[..., Tensor], params: Mapping[str, Any], gram: Array) -> Array:
    try:
        found = function(torch.from_numpy(gram), **params)
        plain = found.detach().cpu().double().numpy() if isinstance(found, Tensor) else found
        return np.array(plain, np.float64)
    except Exception as error:  # whatever the user's own code raises, or returns in place of numbers
        reason = printable(shortened(" ".join(str(error).split()), 160))
        raise InputError(
            f"combiner {name!r}: raised {type(error).__name__}: {reason}, given a {len(gram)} x {len(gram)} "
            "Gram matrix; expected a weight for each task"
        ) from error
