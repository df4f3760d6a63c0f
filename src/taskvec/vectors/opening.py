"""Where directions come from, and where they go: files of every kind, two models, noise."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskvec.errors import InputError
from taskvec.reading import exists, local_path
from taskvec.registry import Registry
from taskvec.vectors.checks import Fit, check_point, editable_names, note_left_out
from taskvec.vectors.delta import Delta
from taskvec.vectors.directions import Difference
from taskvec.vectors.fitting import chosen
from taskvec.vectors.noise import Noise
from taskvec.vectors.stored.files import Saved, save_vector
from taskvec.weights import Weights, open_weights
from taskvec.weights.matched import all_names, see_as
from taskvec.weights.selecting import Renames

_log = logging.getLogger(__name__)

KINDS: Registry[Callable[..., Delta]] = Registry(
    "kind of vector",
    {
        "adapter": "taskvec.vectors.lora.adapter:open_adapter",
        "vector": "taskvec.vectors.stored.files:open_vector",
        "masked": "taskvec.vectors.stored.masked:open_task",
    },
)
"""What files can hold: a function of their open weights (and of the task, where they hold several)."""


def load(path: str | Path) -> Delta:
    """The direction in a file or folder; reads its headers only.

    Args:
        path: of masked vectors with the task, as in ``masked.safetensors#sst2``.

    Raises: InputError if it holds no direction; CorruptFile.
    """
    place, task = with_task(path)
    return delta_in(open_weights(place), task)


def delta_in(weights: Weights, task: str | None = None) -> Delta:
    """The direction in a file that is open already; of masked vectors that of a task.

    Raises: InputError if it holds none; CorruptFile; UnknownName for a task that it does not have.
    """
    if task is not None:
        return KINDS["masked"](weights, task)
    return KINDS["vector" if weights.adapter is None else "adapter"](weights)


def with_task(path: str | Path) -> tuple[str | Path, str | None]:
    """The file and the task in a reference to a masked vector, ``PATH#TASK``; a path that exists wins."""
    place, mark, task = str(path).rpartition("#")
    return (place, task) if mark and not exists(local_path(path)) else (path, None)


def between(start: Weights, end: Weights, fit: Fit, renames: Renames | None = None) -> Delta:
    """The direction from a base to its fine-tuned weights, or to where an adapter leads.

    Args:
        renames: what tensors of ``end`` are called in the base, beyond what is found by itself.

    Raises: KeyMismatch if names, shapes or dtypes differ.
    """
    check_point(start)
    if end.adapter is not None:
        if renames is not None:
            raise InputError(
                f"rename: {end.ref} is an adapter, whose layers are found by themselves; leave it out"
            )
        bound = delta_in(end).bind(start, drop=fit.on_extra == "drop")
        fit.choice.check_used(list(bound))
        return chosen(bound, fit.choice)
    check_point(end)
    if renames is not None:
        renames.check_used(all_names(end), end.ref)
    seen = see_as(start, end, renames)
    fit.choice.check_used([*start, *seen.weights])
    found = difference(start, seen.weights, fit)
    for note in (*seen.notes, *note_left_out(start, seen.weights, fit)):
        _log.warning("%s", note)
    return found


def difference(start: Weights, end: Weights, fit: Fit) -> Difference:
    """The direction from a base to weights that are seen under its names.

    Raises: KeyMismatch if names, shapes or dtypes differ.
    """
    return Difference(start, end, editable_names(start, end, fit))


def noise_like(like: Delta, seed: int) -> Delta:
    """Gaussian noise with the norm of another direction in every tensor."""
    return Noise(like, seed)


def save(delta: Delta, path: str | Path, **options: Any) -> Saved:
    """Write a direction to a file or folder, as ``TaskVector.save`` says."""
    return save_vector(delta, path, **options)
