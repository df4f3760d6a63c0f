"""A module called with other tensors in the place of its own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def substituted(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Other values in the place of some parameters and buffers, for a while.

    Args:
        values: by any name that a parameter or buffer has; wherever it is used it is replaced. At the end
            the module holds what it held before, whatever it put there on the way.

    ``torch.func.functional_call`` does not give a module back its parameters if it is reachable by two names
    (pytorch issue 164759), so the places are found by what they hold.

    Raises: KeyError for a name that the module does not have.
    """
    held: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    if not values.keys() <= held.keys():
        held.update(model.named_buffers(remove_duplicate=False))
    value_of = {id(held[name]): value for name, value in values.items()}
    tables: list[dict[str, Any]] = [
        table for module in model.modules() for table in (module._parameters, module._buffers)
    ]
    places = [
        (table, key, tensor) for table in tables for key, tensor in table.items() if id(tensor) in value_of
    ]
    flat = [
        (module, list(module._flat_weights)) for module in model.modules() if isinstance(module, nn.RNNBase)
    ]
    try:
        for table, key, tensor in places:
            table[key] = value_of[id(tensor)]
        for module, weights in flat:
            module._flat_weights = [value_of.get(id(weight), weight) for weight in weights]
        yield
    finally:
        for table, key, tensor in places:
            table[key] = tensor
        for module, weights in flat:
            module._flat_weights = weights
