"""Weights that serve two layers, and adapters that change both uses alike, or only one."""

import re
from collections.abc import Iterator, Mapping

from taskvec.errors import KeyMismatch
from taskvec.later import torch
from taskvec.names import is_embedding, is_head
from taskvec.vectors.lora.contents import Contents, Piece, Product, Rows, Saved
from taskvec.weights import Weights
from taskvec.weights.blocks import row_blocks
from taskvec.weights.configs import config_beside
from taskvec.weights.network import network_of

_WITH_HEAD = re.compile(r"LMHead|CausalLM|MaskedLM|ConditionalGeneration|PreTraining")


def find_twins(adapter: Contents, base: Weights, names: Mapping[str, str]) -> dict[str, str | None]:
    """Changes of a second use of weights, such as the output layer, that are those of the first.

    PEFT saves both where ``ensure_weight_tying`` was set. The partner is ``None`` for an output layer that
    was saved as it is in the base.

    Args:
        names: the base's name of every tensor of the adapter.
    """
    heads = [given for given in adapter.pieces if is_head(given) and _is_second_use(names[given], base)]
    embeddings = [given for given in adapter.pieces if is_embedding(given)]
    twins: dict[str, str | None] = dict(_aliases(adapter, base, names))
    for head in heads:
        for given in embeddings:
            if _same_change(adapter, head, given):
                twins[head] = given
        if head not in twins and _is_as_stored(adapter, head, base):
            twins[head] = None
    return twins


def _aliases(adapter: Contents, base: Weights, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Changes of aliases that are those of what the base keeps, such as of biases that are tied."""
    known = {name: given for given, name in names.items()}
    for given, name in names.items():
        kept = known.get(base.tied.get(name, ""))
        if kept is not None and _same_change(adapter, given, kept):
            yield given, kept


def _is_second_use(name: str, base: Weights) -> bool:
    return name not in base or name in base.tied or name in base.tied.values()


def _is_as_stored(adapter: Contents, head: str, base: Weights) -> bool:
    piece = adapter.pieces[head]
    return isinstance(piece, Saved) and any(
        is_embedding(name) and holds_same(adapter.weights, piece.key, base, name) for name in base
    )


def _same_change(adapter: Contents, head: str, embedding: str) -> bool:
    """Whether two pieces are the same change of the same weights."""
    weights = adapter.weights
    match adapter.pieces[head], adapter.pieces[embedding]:
        case Saved(key), Saved(other):
            return holds_same(weights, key, weights, other)
        case Rows(key, indices), Rows(other, others):
            return indices == others and holds_same(weights, key, weights, other)
        case Product(layer), Product(known) if known.embedding and not layer.embedding:
            pairs = ((layer.a, known.b), (layer.b, known.a))
            return layer.scaling == known.scaling and all(
                weights.spec(one).shape == weights.spec(other).shape[::-1]
                and torch.equal(weights.read(one), weights.read(other).T)
                for one, other in pairs
            )
    return False


def check_alone(adapter: Contents, piece: Piece, base: Weights, name: str) -> None:
    """Refuse a change to one use of weights that serve two layers.

    Raises: KeyMismatch.
    """
    if isinstance(piece, Rows) or adapter.settings.ensure_weight_tying:  # which PEFT ties
        return
    partners = [alias for alias, kept in base.tied.items() if name in (alias, kept)]
    embeds = isinstance(piece, Saved) or (isinstance(piece, Product) and piece.layer.embedding)
    if partners or (embeds and is_silently_tied(base, name)):
        other = next((base.tied[p] if p == name else p for p in partners), "the output layer")
        raise KeyMismatch(
            f"{adapter.weights.ref}: {name!r} shares its weights with {other} in {base.ref}, expected "
            "weights of their own, as the adapter changes one layer alone; save the base untied first"
        )


def shared_with(name: str, base: Weights) -> str | None:
    """The tensor that a name which the base lacks is another use of, as far as its config.json tells."""
    network = network_of(base)
    if network is not None and name in network.tied:
        return network.tied[name]
    embedding = next(filter(is_embedding, base), None)
    return embedding if embedding and is_head(name) and is_silently_tied(base, embedding) else None


def is_silently_tied(base: Weights, name: str) -> bool:
    """Whether an embedding also serves as the output layer, which has no tensor of its own in the file."""
    if not is_embedding(name) or any(map(is_head, base)):
        return False
    content = config_beside(base.folder)
    architectures = content.get("architectures")
    listed = " ".join(map(str, architectures)) if isinstance(architectures, list) else ""
    return bool(content.get("tie_word_embeddings", True)) and bool(_WITH_HEAD.search(listed))


def holds_same(weights: Weights, key: str, base: Weights, name: str) -> bool:
    """Whether a saved tensor is the base's."""
    saved, stored = weights.spec(key), base.spec(name)
    dtype = torch.promote_types(saved.dtype, stored.dtype)
    return saved.shape == stored.shape and all(
        torch.equal(weights.read(key, rows).to(dtype), base.read(name, rows).to(dtype))
        for rows in row_blocks(saved.shape)
    )
