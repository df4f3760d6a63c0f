"""What to do about tensors that only one of two models has: the nearest explanation, in words."""

import math
from collections.abc import Sequence

from taskvec.names import block_of, count_blocks, is_embedding, is_head
from taskvec.weights import Weights
from taskvec.weights.matched import list_some


def advise(
    base: Weights, tuned: Weights, names: Sequence[str], of: Sequence[str], usual: str, *, alone: bool
) -> str:
    """What to do about tensors without a partner, where leaving them out may lose what is wanted.

    Args:
        names: the tensors that one model has and the other lacks.
        of: those among which they were found.
        alone: whether all tensors of the other model have a partner, so that names are not the reason.
        usual: how they are left out.
    """
    way = (
        _depth(base, tuned, names, usual)
        or (_most(tuned, usual, alone=alone) if 2 * len(names) > len(of) else None)
        or _tie(base, tuned, names, usual)
        or _rename(base, tuned, names, usual)
        or usual
    )
    return way + (f"; further: {list_some(names[1:])}" if len(names) > 1 else "")


def _most(tuned: Weights, usual: str, *, alone: bool) -> str:
    """Words for most tensors of a model: it is a part of the other, it is unrelated, or names differ."""
    if not len(tuned):
        return "it holds no tensors; name the file that has the weights"
    if alone:
        return f"the other tensors fit; if it was fine-tuned from this base, {usual}"
    return (
        "most names differ: was it fine-tuned from another model? If not, say how they correspond with "
        "rename (--rename OLD=NEW)"
    )


def _depth(base: Weights, tuned: Weights, names: Sequence[str], usual: str) -> str | None:
    """Words for models of other numbers of layers, if tensors have no partner for this reason alone."""
    layers, held = count_blocks(tuned), count_blocks(base)
    blocks = [block for block in map(block_of, names) if block is not None]
    both = {stack: min(layers[stack], held[stack]) for stack in layers.keys() & held.keys()}
    if len(blocks) < len(names) or any(block.number < both.get(block.stack, math.inf) for block in blocks):
        return None
    depths = f"it has {layers[blocks[0].stack]} layers, and the base {held[blocks[0].stack]}"
    return f"{depths}: was it fine-tuned from another model? If not, {usual}"


def _tie(base: Weights, tuned: Weights, names: Sequence[str], usual: str) -> str | None:
    """Words for a head that one of the two models ties to its embedding."""
    head = next(filter(is_head, names), None)
    holder, other = (tuned, base) if names[0] in tuned else (base, tuned)
    if head is None or any(map(is_head, other)):
        return None
    tied = next((n for n in other if is_embedding(n) and other.spec(n) == holder.spec(head)), None)
    if tied is None:
        return None
    if other is base:
        return f"if the base ties {head!r} to {tied!r}, save it untied first; else {usual}"
    return (
        f"if it is tied to {tied!r}, say so beside the weights, in a config.json with "
        f'"tie_word_embeddings": true; else {usual}'
    )


def _rename(base: Weights, tuned: Weights, names: Sequence[str], usual: str) -> str | None:
    """Words for a tensor in whose place the base has just one of the same shape."""
    if names[0] not in tuned:
        return None
    extra = [name for name in names if tuned.spec(name).shape == tuned.spec(names[0]).shape]
    alike = [n for n in base if n not in tuned and base.spec(n).shape == tuned.spec(names[0]).shape]
    if len(extra) != 1 or len(alike) != 1:
        return None
    return f"if it is {alike[0]!r}, say so with rename (--rename {extra[0]}={alike[0]}); else {usual}"
