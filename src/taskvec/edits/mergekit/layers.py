"""Which tensors of a model a slice takes, what they are called in the output, and how deep they lie."""

from collections.abc import Mapping
from dataclasses import dataclass

from taskvec.edits.mergekit.document import Parameters
from taskvec.errors import InputError
from taskvec.names import block_of, comes_before_blocks, count_blocks, renumber
from taskvec.weights import Weights
from taskvec.weights.depth import count_layers, names_behind


@dataclass(frozen=True)
class Entry:
    """A source of a section: where the file names it, which model, and which of its layers."""

    field: str
    ref: str
    model: Weights
    parameters: Parameters
    span: tuple[int, int] | None = None


def take_layers(where: str, entry: Entry, start: int, *, first: bool, last: bool) -> dict[str, str]:
    """Name in the output -> name in the model, of the tensors that a slice takes from it."""
    assert entry.span is not None
    stack, number = _find_stack(where, entry)
    if entry.span[1] > number:
        raise InputError(
            f"{where}: {entry.field}.layer_range: {list(entry.span)}, "
            f"expected layers up to {number}, as {entry.model.ref} has"
        )
    end = start + entry.span[1] - entry.span[0]
    names: dict[str, str] = {}
    for name in entry.model:
        layer = block_of(name)
        if layer is None or layer.stack != stack:
            if first if comes_before_blocks(name) else last:
                names[name] = name
        elif layer.number >= number:  # behind the layers, and so with the final norm
            if last:
                names[renumber(name, end + layer.number - number)] = name
        elif entry.span[0] <= layer.number < entry.span[1]:
            names[renumber(name, start + layer.number - entry.span[0])] = name
    return names


def _find_stack(where: str, entry: Entry) -> tuple[str, int]:
    """The one stack of layers of a model, and how many there are.

    Raises: InputError for none, and for several.
    """
    layers = count_layers(entry.model, entry.model.folder)
    stacks = {stack: number for stack, number in layers.items() if number}
    if len(stacks) != 1:
        held = f"{', '.join(stacks)}; merge such models whole, by models" if stacks else "none"
        raise InputError(
            f"{where}: {entry.field}: slices are of models with one stack of layers, found {held}"
        )
    [found] = stacks.items()
    return found


def find_depths(names: Mapping[str, str], start: int, entry: Entry) -> dict[str, float]:
    """How deep each tensor lies: 0 in the first layer and outside of layers, 1 in the last; a single layer
    counts as the last.

    Args:
        names: name in the output -> name in the model.
    """
    behind = names_behind(entry.model, entry.model.folder)
    layers = {name: None if stored in behind else block_of(name) for name, stored in names.items()}
    within = (name for name, layer in layers.items() if layer)
    numbers = {stack: number - start for stack, number in count_blocks(within).items()}
    return {
        name: 0.0
        if layer is None
        else (layer.number - start) / (numbers[layer.stack] - 1)
        if numbers[layer.stack] > 1
        else 1.0
        for name, layer in layers.items()
    }
