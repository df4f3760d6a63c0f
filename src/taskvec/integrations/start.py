"""What a training that runs elsewhere started from, and how far it has come."""

import logging
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskvec.errors import InputError, KeyMismatch, TaskvecError, and_more
from taskvec.reading import exists, local_path
from taskvec.vectors import TaskVector
from taskvec.vectors.checks import Fit, check_point, editable_names
from taskvec.vectors.opening import difference
from taskvec.weights import Weights, WeightsLike, hub, open_weights
from taskvec.weights.in_memory import MemoryWeights
from taskvec.weights.lazy import Lazy
from taskvec.weights.matched import list_some, see_as, without

_log = logging.getLogger(__name__)

_PARTIAL = Fit(on_extra="drop", on_missing="zero")
"""The base may lack a new head, and the model may lack what only the base has."""

_REMEDY = (
    "name the weights that the vector is to be added to with base=REFERENCE, or take those that are in "
    "memory now with base=model"
)


def open_start(
    network: nn.Module, base: WeightsLike | None, moving: Collection[str], *, exact: bool = False
) -> Weights:
    """The weights that a vector of the network leads away from, which stay as they are while it is trained.

    Args:
        base: ``None`` for what the network was loaded from, or the weights it has now if that is not known; a
            module for the weights it has now.
        moving: names of what is trained, of which the weights of now are copied.
        exact: refuse a base that is not what the network has now, also one that was named.

    Raises: InputError if the network does not have the weights that it was loaded from; KeyMismatch if the
        base is of another model.
    Cost: one read of what it was loaded from; one copy of what is trained, on the CPU, where that is unknown.
    """
    if isinstance(base, nn.Module):
        return snapshot(network, moving)
    found = _loaded_from(network) if base is None else open_weights(base)
    if found is None:
        return snapshot(network, moving)
    check_point(found)
    held = MemoryWeights(type(network).__name__, state_of(network))
    if is_quantized(network):
        return found
    seen = see_as(found, held)
    for note in seen.notes:
        _log.info("%s", note)
    try:
        names = editable_names(found, seen.weights, _PARTIAL)
    except KeyMismatch as error:
        what, _, _ = str(error).partition("; ")
        raise KeyMismatch(f"base: {what}; {_REMEDY}") from None
    if base is None or exact:
        _check_same(found, seen.weights, names)
    extra = [name for name in seen.weights if name not in found and name not in found.tied]
    if extra:
        _log.warning("%s: no part of the vector, as the base lacks it: %s", found.ref, list_some(extra))
    return found


def _loaded_from(network: nn.Module) -> Weights | None:
    """The weights that transformers loaded, where they are still to be had."""
    config = getattr(network, "config", None)
    name = str(getattr(config, "_name_or_path", None) or getattr(config, "name_or_path", None) or "")
    if not name:
        return None
    if not exists(local_path(name)):
        if not hub.is_reference(name):
            return None
        commit = getattr(config, "_commit_hash", None) or _cached_commit(name)
        name = f"{name}@{commit}" if commit and "@" not in name else name
    elif Path(name, "trainer_state.json").is_file():
        _log.warning(
            "%s: a checkpoint of a training; the vector leads from there, unless base says more", name
        )
    try:
        return open_weights(name)
    except TaskvecError as error:
        _log.warning("%s; the vector leads from the weights that are in memory now", error)
        return None


def _cached_commit(name: str) -> str | None:
    """The commit that the cache of the hub has of a model's main branch."""
    find = import_module("huggingface_hub").try_to_load_from_cache
    path = find(name, "config.json")
    return Path(path).parent.name if isinstance(path, str) else None


def _check_same(base: Weights, seen: Weights, names: Collection[str]) -> None:
    """Refuse a network that is not what its reference says.

    Raises: InputError.
    """
    base.fingerprint_while_reading()
    differing = [name for name in names if name in seen and not _is_same(base.read(name), seen.read(name))]
    if differing:
        raise InputError(
            f"base: the model in memory differs from {base.ref} in {differing[0]!r}"
            f"{and_more(differing)}, expected the same weights; {_REMEDY}"
        )


def _is_same(stored: Tensor, held: Tensor) -> bool:
    """Whether a tensor is the stored one, in its own dtype or rounded to that of the network."""
    return torch.equal(stored.to(held.dtype), held)


def snapshot(network: nn.Module, moving: Collection[str]) -> Weights:
    """The weights of a network as they are now; what will not move is shared with it, the rest is copied."""
    copies: dict[int, Tensor] = {}

    def held(name: str, value: Tensor) -> Tensor:
        if name not in moving:
            return value
        if id(value) not in copies:
            copies[id(value)] = value.detach().to("cpu", copy=True)
        return copies[id(value)]

    named = {**dict(network.named_parameters(remove_duplicate=False)), **dict(network.named_buffers())}
    prefix = _adapter_prefix(network)
    kept = {
        plain(name): held(name, named.get(name, value))
        for name, value in network.state_dict().items()
        if prefix is None or _is_base(name, prefix)
    }
    return MemoryWeights(type(network).__name__, kept)


def moved(start: Weights, state: Mapping[str, Tensor], moving: Collection[str]) -> TaskVector:
    """From ``start`` to where a network is now, in the tensors that were trained; lazily.

    Raises: KeyMismatch where nothing of the base was trained.
    """
    seen = see_as(start, MemoryWeights("trained weights", state)).weights
    still = [name for name in seen if not origins(seen, name) & set(moving)]
    if len(still) == len(seen):
        raise KeyMismatch(
            f"{start.ref}: holds none of the {len(moving)} tensors that are trained, expected some; give "
            "base=REFERENCE, whose tensors they are, or select others"
        )
    fit = Fit("drop", "zero", allow_partial=True)
    return TaskVector.of(difference(start, without(seen, still), fit))


def names_in(start: Weights, network: nn.Module) -> dict[str, str]:
    """The name that each parameter of a network has in the base, of those that are the same tensor there."""
    seen = see_as(start, MemoryWeights("network", state_of(network))).weights
    parameters = dict(network.named_parameters())
    found: dict[str, str] = {}
    for name in seen:
        held = [there for there in origins(seen, name) if there in parameters]
        if name in start and len(held) == 1:
            found[held[0]] = name
    return found


def origins(weights: Lazy, name: str) -> set[str]:
    """The names of what a tensor is made of, in the weights in memory below all views."""
    if isinstance(weights, MemoryWeights):
        return {name, *(alias for alias, kept in weights.tied.items() if kept == name)}
    return {found for part, there in weights.made_of(name) for found in origins(part, there)}


# Names


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network without what PEFT has added to it, under the network's own names."""
    prefix = _adapter_prefix(network)
    state = network.state_dict()
    return {plain(name): value for name, value in state.items() if prefix is None or _is_base(name, prefix)}


def plain(name: str) -> str:
    """The name of a parameter in the network that PEFT was given.

    >>> plain("base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight")
    'model.layers.0.self_attn.q_proj.weight'
    """
    for wrapper in ("base_layer.", "original_module."):
        name = name.replace(f".{wrapper}", ".")
    return name.removeprefix("base_model.model.")


def _is_base(name: str, prefix: str) -> bool:
    parts = name.split(".")
    return not any(part.startswith(prefix) or part == "modules_to_save" for part in parts)


def is_adapted(network: nn.Module) -> bool:
    """Whether PEFT has wrapped the network."""
    return _adapter_prefix(network) is not None


def _adapter_prefix(network: nn.Module) -> str | None:
    """What PEFT's own parameters begin with, such as ``lora_``."""
    if not hasattr(network, "peft_config"):
        return None
    tuner: Any = getattr(network, "base_model", None)
    return str(getattr(tuner, "prefix", "") or "lora_")


def is_quantized(network: nn.Module) -> bool:
    """Whether the weights in memory are in a form that cannot be compared with those it was loaded from."""
    return any(getattr(part, "quantization_method", None) is not None for part in _layers_of(network))


def _layers_of(network: nn.Module) -> Iterator[nn.Module]:
    """The network, and that which PEFT was given."""
    yield network
    inside: Any = getattr(network, "get_base_model", None)
    if inside is not None:
        yield inside()
