"""The trained head of a classifier of transformers: where it begins, and what it computes."""

from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskvec.models.backbone import evaluating

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.Identity,
    nn.Tanh,
    nn.ReLU,
    nn.GELU,
    lambda: nn.GELU(approximate="tanh"),
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
)
"""What may stand between two layers of a head."""


class Tap(nn.Module):
    """In the place of a head's first layer: keeps what the layer would be given.

    Args:
        width: of the layer's output, so that what follows still runs, on zeros.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self._held: list[Tensor] = []

    def forward(self, features: Tensor) -> Tensor:
        """Zeros (N, width)."""
        self._held[:] = [features]
        return features.new_zeros(*features.shape[:-1], self.width)

    def take(self) -> Tensor:
        """What came in at the last call."""
        return self._held.pop()


@dataclass(frozen=True)
class Layer:
    """One call of a layer with parameters that transformers put behind its base model."""

    name: str
    module: nn.Module
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Trunk:
    """A classifier of transformers without its head.

    Attributes:
        head: the layers that were taken away, frozen: (N, width) to logits (N, C).
        names: of the head's parameters in the network, by their names in ``head``.
    """

    network: nn.Module
    head: nn.Sequential
    names: Mapping[str, str]
    width: int
    classes: int
    _tap: Tap | None

    def features(self, out: Any) -> Tensor:
        """What the head is given (N, width), of what the network has just returned."""
        logits: Tensor = out.logits
        return logits if self._tap is None else self._tap.take()


def cut(network: nn.Module, run: Callable[[], Any], fresh: Container[str] = ()) -> Trunk | None:
    """Take a classifier of transformers apart, in place, behind its base model.

    The head is what transformers puts on top of a pre-trained model: the last linear layer, and the layers
    before it with functions of single numbers between them (RoBERTa's ``dense`` and tanh). Where tokens are
    chosen or averaged between two layers, what comes before belongs to the encoder.

    Args:
        run: what the network returns for two inputs or more.
        fresh: parameters of the base model that belong to the head, since pre-trained models lack them.

    Returns: ``None`` if no linear layer gives the logits.
    """
    calls, logits = _watch(network, run, fresh)
    if not calls or not isinstance(calls[-1].module, nn.Linear):
        return None
    trunk = _without(network, *_chain(calls))
    try:
        with torch.no_grad(), evaluating(network):
            found = trunk.head(trunk.features(run()))
    except RuntimeError:  # of shapes: two heads, the mean of which is the answer
        return None
    close = found.shape == logits.shape and torch.allclose(found, logits, rtol=1e-4, atol=1e-5)
    return trunk if close else None


def _chain(calls: Sequence[Layer]) -> tuple[list[Layer], list[nn.Module]]:
    """The last layers that follow one another, and the functions between them."""
    layers, between = [calls[-1]], list[nn.Module]()
    for call in reversed(calls[:-1]):
        function = _function_between(call.after, layers[0].before)
        if function is None or call.before.dim() != 2:
            break
        layers.insert(0, call)
        between.insert(0, function)
    return layers, between


def _without(network: nn.Module, layers: Sequence[Layer], between: Sequence[nn.Module]) -> Trunk:
    """The network with nothing, or a tap, in the place of the head's first layer."""
    head = nn.Sequential()
    for place, layer in enumerate(layers):
        head.extend([layer.module, *between[place : place + 1]])
    names = {
        f"{2 * place}.{inside}": f"{layer.name}.{inside}"
        for place, layer in enumerate(layers)
        for inside, _ in layer.module.named_parameters()
    }
    first = layers[0]
    # A single layer commutes with whatever chooses or averages tokens behind it.
    tap = Tap(first.after.shape[-1]) if len(layers) > 1 else None
    parent, _, own = first.name.rpartition(".")
    setattr(network.get_submodule(parent), own, tap or nn.Identity())
    return Trunk(
        network,
        head.requires_grad_(False).eval(),
        names,
        first.before.shape[-1],
        layers[-1].after.shape[-1],
        tap,
    )


@torch.no_grad()
def _watch(network: nn.Module, run: Callable[[], Any], fresh: Container[str]) -> tuple[list[Layer], Tensor]:
    """The calls of layers outside the base model, in their order, and the logits (N, C)."""
    calls: list[Layer] = []
    with evaluating(network), ExitStack() as hooks:
        for name, module in _outside(network, fresh).items():

            def keep(module: nn.Module, given: Any, out: Any, name: str = name) -> None:
                calls.append(Layer(name, module, given[0], out))

            hooks.callback(module.register_forward_hook(keep).remove)
        logits: Tensor = run().logits
    return calls, logits


def _outside(network: nn.Module, fresh: Container[str]) -> dict[str, nn.Module]:
    """Modules with parameters of their own that are not part of the base model."""
    base: nn.Module = getattr(network, "base_model", network)
    inside = set(base.modules()) if base is not network else set()
    own = {
        name: [f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)]
        for name, module in network.named_modules()
    }
    return {
        name: module
        for name, module in network.named_modules()
        if own[name] and (module not in inside or own[name][0] in fresh)
    }


def _function_between(out: Tensor, into: Tensor) -> nn.Module | None:
    """The function of single numbers that leads from one tensor to another."""
    if out.shape != into.shape:
        return None
    functions = (make() for make in ACTIVATIONS)
    return next((function for function in functions if torch.equal(function(out), into)), None)
