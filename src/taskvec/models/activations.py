"""Activations that are computed twice, so that they need not be kept: memory for time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from taskvec.errors import InputError
from taskvec.substitution import substituted


@contextmanager
def recomputed(network: nn.Module, where: str) -> Iterator[None]:
    """Layers of a network keep their inputs alone for the backward pass, which runs them again, for a while.

    Gradients are the same. ``torch.utils.checkpoint`` runs a layer again after its parameters were put back,
    so each remembers what it was run with.

    Args:
        where: names the network in messages.

    Raises: InputError for a network without a stack of layers.
    """
    layers = stacked(network)
    if not layers:
        raise InputError(
            f"checkpoint_activations: {where} has no stack of layers to run again; leave it out, and raise "
            "accumulation"
        )
    for layer in layers:
        layer.forward = partial(_run_twice, layer, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def stacked(network: nn.Module) -> list[nn.Module]:
    """The members of lists of two or more modules of one type, the outermost lists alone."""
    found: list[nn.Module] = []
    inside: set[int] = set()
    for module in network.modules():  # from the outside
        if id(module) in inside or not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        if len(module) > 1 and len({type(layer) for layer in module}) == 1 and _holds_parts(module[0]):
            found += module
            inside.update(id(part) for layer in module for part in layer.modules())
    return found


def _holds_parts(layer: nn.Module) -> bool:
    """Whether a layer has layers itself: of one alone nothing is saved."""
    return any(True for _ in layer.children())


def _run_twice(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What ``forward`` gives, without what its backward pass needs."""
    transformed = torch._C._functorch.peek_interpreter_stack() is not None  # which knows no saved tensors
    if transformed or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    held = {
        **dict(layer.named_parameters(remove_duplicate=False)),
        **dict(layer.named_buffers(remove_duplicate=False)),
    }

    def run(*args: Any, **kwargs: Any) -> Any:
        with substituted(layer, held):
            return forward(*args, **kwargs)

    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
