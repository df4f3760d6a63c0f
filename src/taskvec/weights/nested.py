"""The state dict in what ``torch.save`` wrote: a trainer's checkpoint holds one beside much else."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from taskvec.errors import InputError, UnknownName, and_more
from taskvec.pickles import Inert, unsafe
from taskvec.reading import printable, shortened
from taskvec.registry import nearest

_log = logging.getLogger(__name__)

_LEVELS = 4
"""How deep state dicts are looked for."""

_NO_MODEL = (
    "optim",
    "lr_sched",
    "sched",
    "scaler",
    "rng",
    "random",
    "loops",
    "callbacks",
    "grad",
    "_extra",
    "amp",
)
"""How the keys of what is not a model begin, in any trainer's checkpoint."""

_ZERO = ("ds_config", "ds_version", "zero_stage", "param_shapes", "dp_world_size")
"""Keys of DeepSpeed's files."""


def state_dict_in(path: Path, loaded: Any, part: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file by name: its own, or those of the one state dict inside it.

    Args:
        part: the key of the state dict that is meant, levels joined by dots.

    Raises: InputError if there is none, or if there are several and none was named; UnsafeFile if objects lie
        where tensors should.
    """
    if isinstance(loaded, Inert):
        raise unsafe(path, loaded.called)
    if not isinstance(loaded, Mapping):
        raise InputError(f"{path}: holds {type(loaded).__name__}, expected a state dict: names and tensors")
    inside = dict(_state_dicts(loaded))
    if part is not None:
        return _tensors_of(path, _named(path, inside, part))
    own = _count(loaded)
    if any(own) and own >= max(map(_count, inside.values()), default=(0, 0)):
        return _tensors_of(path, loaded)
    if not inside:
        _refuse(path, loaded)
        return dict(loaded)
    if len(inside) > 1:
        raise InputError(_several(path, inside))
    ((key, found),) = inside.items()
    _log.warning("%s: the tensors under %r are read, nothing else in it", path, printable(key))
    return _tensors_of(path, found)


def _state_dicts(loaded: Mapping[Any, Any], place: str = "", level: int = 1) -> Iterator[tuple[str, Any]]:
    """The mappings of names to tensors inside another, by their keys."""
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Mapping) or "param_groups" in value:
            continue
        if key.lower().startswith(_NO_MODEL):
            continue
        if any(_count(value)):
            yield place + key, value
        elif level < _LEVELS:
            yield from _state_dicts(value, f"{place}{key}.", level + 1)


def _count(held: Mapping[Any, Any]) -> tuple[int, int]:
    """How many floating-point tensors a mapping holds itself, none of them empty, and their entries."""
    tensors = [value for value in held.values() if isinstance(value, Tensor) and value.is_floating_point()]
    sizes = [tensor.numel() for tensor in tensors if tensor.numel()]
    return len(sizes), sum(sizes)


def _named(path: Path, inside: Mapping[str, Mapping[str, Any]], part: str) -> Mapping[str, Any]:
    if part not in inside:
        found = nearest(part, inside) if inside else "it holds none but its own tensors; leave the key out"
        raise UnknownName(f"{path}: no state dict under {part!r}; {found}")
    return inside[part]


def _several(path: Path, inside: Mapping[str, Mapping[str, Any]]) -> str:
    found = ", ".join(f"{key!r} ({len(held)})" for key, held in list(inside.items())[:6])
    more = f" and {len(inside) - 6} more" if len(inside) > 6 else ""
    return printable(
        f"{path}: holds several state dicts (with so many tensors): {found}{more}; name the one that is "
        f"meant: {path.name}#{next(iter(inside))}"
    )


def _tensors_of(path: Path, held: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict; counters and settings among them are left out."""
    others = [name for name, value in held.items() if not isinstance(value, Tensor)]
    if others:
        what = f"{others[0]!r} is {_kind(held[others[0]])}"
        _log.warning("%s: %s, no tensor, and left out%s", path, printable(shortened(what)), and_more(others))
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


def _kind(value: object) -> str:
    return value.called if isinstance(value, Inert) else type(value).__name__


def _refuse(path: Path, loaded: Mapping[Any, Any]) -> None:
    """Refuse a file that holds no tensors, where it shows why."""
    if any(key in loaded for key in _ZERO):
        raise InputError(
            f"{path}: DeepSpeed's, and the weights lie in parts beside it; run its zero_to_fp32.py and open "
            "what that writes"
        )
    if "param_groups" in loaded or "optimizer_state_dict" in loaded:
        raise InputError(f"{path}: the state of an optimizer, expected a state dict; name the model's file")
    inner = [loaded, *(value for value in loaded.values() if isinstance(value, Mapping))]
    objects = [(name, value) for held in inner for name, value in held.items() if isinstance(value, Inert)]
    for name, value in objects:
        if not value.called.startswith("numpy"):
            raise unsafe(path, value.called)
        raise InputError(
            f"{path}: {name!r} is a numpy array, expected a tensor; save a state dict of torch.from_numpy()"
        )
