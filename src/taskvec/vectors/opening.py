"""Where directions come from, and where they go: files of every kind, two models, noise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskvec.reading import exists, local_path
from taskvec.registry import Registry
from taskvec.vectors.checks import OnExtra, OnMissing, check_point, editable_names
from taskvec.vectors.delta import Delta
from taskvec.vectors.directions import Difference
from taskvec.vectors.noise import Noise
from taskvec.vectors.stored.files import Saved, save_vector
from taskvec.weights import Weights, open_weights

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


def between(start: Weights, end: Weights, *, on_extra: OnExtra, on_missing: OnMissing) -> Delta:
    """The direction from a base to its fine-tuned weights, or to where an adapter leads.

    Raises: KeyMismatch if names, shapes or dtypes differ.
    """
    check_point(start)
    if end.adapter is not None:
        return delta_in(end).bind(start, drop=on_extra == "drop")
    check_point(end)
    names = editable_names(start, end, on_extra=on_extra, on_missing=on_missing)
    return Difference(start, end, names)


def noise_like(like: Delta, seed: int) -> Delta:
    """Gaussian noise with the norm of another direction in every tensor."""
    return Noise(like, seed)


def save(delta: Delta, path: str | Path, **options: Any) -> Saved:
    """Write a direction to a file or folder, as ``TaskVector.save`` says."""
    return save_vector(delta, path, **options)
