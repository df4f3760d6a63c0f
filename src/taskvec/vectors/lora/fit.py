"""How the layers of an adapter are found in a base: by which names, transposed or not, tied or not."""

import re
from collections.abc import Callable, Iterable, Mapping

import torch

from taskvec.names import is_embedding, is_head
from taskvec.reading import read_mapping
from taskvec.vectors.lora.files import Piece, Saved
from taskvec.weights import Weights
from taskvec.weights.blocks import row_blocks

_WITH_HEAD = re.compile(r"LMHead|CausalLM|MaskedLM|ConditionalGeneration|PreTraining")


def match_names(pieces: Mapping[str, Piece], base: Weights) -> dict[str, str]:
    """The base's name of every tensor: the same, or with one leading word more or less for all layers.

    Checkpoints of a bare encoder and of the encoder with a head differ by such a word.
    """
    layers = [own for own, piece in pieces.items() if not isinstance(piece, Saved)]
    changes: list[Callable[[str], str]] = [lambda own: own]
    for word in _first_words(layers):
        changes.append(lambda own, word=word: own.removeprefix(word))  # type: ignore[misc]
    for word in _first_words(base):
        changes.append(lambda own, word=word: word + own)  # type: ignore[misc]
    change = next((change for change in changes if all(change(own) in base for own in layers)), changes[0])
    return {own: change(own) if change(own) in base else own for own in pieces}


def _first_words(names: Iterable[str]) -> list[str]:
    return sorted({name.split(".")[0] + "." for name in names})


def kind(name: str) -> str:
    """``c_proj`` for ``h.0.attn.c_proj.weight``."""
    return name.split(".")[-2]


def orientations(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, set[bool]]:
    """For each kind of layer, whether its matrices are (in, out), where a bias of another length tells."""
    known: dict[str, set[bool]] = {}
    for name, shape in shapes.items():
        outputs = shapes.get(bias_of(name))
        told_apart = len(shape) == 2 and shape[0] != shape[1] and outputs in (shape[:1], shape[1:])
        if told_apart and name.endswith(".weight"):
            known.setdefault(kind(name), set()).add(outputs == shape[1:])
    return known


def is_transposed(name: str, known: Mapping[str, set[bool]], default: bool) -> bool | None:
    """Whether a layer with a bias is as others of its kind, or else of any; ``None`` if these differ."""
    ways = known.get(kind(name)) or set().union(*known.values()) or {default}
    return next(iter(ways)) if len(ways) == 1 else None


def bias_of(name: str) -> str:
    """``h.0.attn.c_proj.bias`` for ``h.0.attn.c_proj.weight``."""
    return f"{name.removesuffix('weight')}bias"


def holds_same(weights: Weights, key: str, base: Weights, name: str) -> bool:
    """Whether a saved tensor is the base's."""
    one, other = weights.spec(key), base.spec(name)
    dtype = torch.promote_types(one.dtype, other.dtype)
    return one.shape == other.shape and all(
        torch.equal(weights.read(key, rows).to(dtype), base.read(name, rows).to(dtype))
        for rows in row_blocks(one.shape)
    )


def is_silently_tied(base: Weights, name: str) -> bool:
    """Whether an embedding also serves as the output layer, which has no tensor of its own in the file."""
    config = base.folder / "config.json" if base.folder is not None else None
    if not is_embedding(name) or config is None or not config.is_file() or any(map(is_head, base)):
        return False
    content = read_mapping(config)
    architectures = content.get("architectures")
    listed = " ".join(map(str, architectures)) if isinstance(architectures, list) else ""
    return bool(content.get("tie_word_embeddings", True)) and bool(_WITH_HEAD.search(listed))


def explain_foreign(own: str, piece: Piece, base: Weights) -> str:
    """Words for a tensor of an adapter that the base lacks."""
    if isinstance(piece, Saved):
        return (
            f"{own!r} was trained whole and {base.ref} has no such tensor, expected one to subtract; "
            "leave it out with: taskvec diff BASE ADAPTER --on-extra drop -o VECTOR"
        )
    tied = "is it tied to the embeddings, or " if is_head(own) else ""
    return (
        f"{own!r} found, expected a tensor of the base {base.ref}; "
        f"{tied}was the adapter trained on another model?"
    )
