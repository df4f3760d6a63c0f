"""How the layers of an adapter are matched with those of a base: names, orientation, shapes, ties."""

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch

from taskvec.errors import KeyMismatch
from taskvec.names import is_embedding, is_head
from taskvec.reading import read_mapping
from taskvec.vectors.delta import computing
from taskvec.vectors.lora.contents import Contents, Piece, Product, Saved
from taskvec.weights import Weights
from taskvec.weights.blocks import row_blocks
from taskvec.weights.dtypes import EDITABLE, short

_log = logging.getLogger(__name__)

_WITH_HEAD = re.compile(r"LMHead|CausalLM|MaskedLM|ConditionalGeneration|PreTraining")


def fit(adapter: Contents, base: Weights, *, drop: bool = False) -> Contents:
    """The contents under the names of ``base``, each layer as the base stores it.

    Args:
        drop: leave out tensors saved whole that the base lacks, such as a new head.

    Raises: KeyMismatch for layers that the base lacks, or holds in another shape.
    """
    ref, weights, names = adapter.weights.ref, adapter.weights, _match_names(adapter.pieces, base)
    transposed = _orientation(adapter, base, names)
    pieces: dict[str, Piece] = {}
    for given, piece in adapter.pieces.items():
        name = names[given]
        if name not in base:
            if isinstance(piece, Saved) and drop:
                _log.warning("%s: %r is left out, as the base lacks it", ref, given)
                continue
            raise KeyMismatch(f"{ref}: {_explain_foreign(given, piece, base)}")
        if isinstance(piece, Saved) and _holds_same(weights, piece.key, base, name):
            continue
        _check_shape(adapter, given, base, name)
        _check_alone(ref, piece, base, name)
        if isinstance(piece, Product):
            is_start = piece.start is not None and _holds_same(weights, piece.start, base, name)
            piece = replace(piece, transposed=transposed(given), start=None if is_start else piece.start)
        if name in pieces:
            raise KeyMismatch(
                f"{ref}: {given!r} is {name!r} in {base.ref}, and so is another layer of the adapter, "
                "expected one; remove the one that is not meant"
            )
        pieces[name] = piece
    specs = {name: computing(base.spec(name)) for name in base if base.spec(name).dtype in EDITABLE}
    return replace(adapter, pieces=pieces, specs=specs)


def _orientation(adapter: Contents, base: Weights, names: Mapping[str, str]) -> Callable[[str], bool]:
    """Whether a layer's weights are stored as (in, out).

    Shapes tell, except for square matrices. These are as other layers of their kind in the model: a bias is
    as long as there are outputs, and only layers with a bias are ever (in, out). What the settings say is
    true of the layer that PEFT saw last.
    """
    known = orientations({name: base.spec(name).shape for name in base})
    for given, name in names.items():
        have = adapter.specs[given].shape
        if isinstance(adapter.pieces[given], Product) and name in base and have != have[::-1]:
            known.setdefault(kind(name), set()).add(base.spec(name).shape == have[::-1])

    def goes(given: str) -> bool:
        piece, have, name = adapter.pieces[given], adapter.specs[given].shape, names[given]
        if isinstance(piece, Product) and piece.layer.embedding:
            return True
        if have != have[::-1] or len(base.spec(name).shape) != 2:
            return base.spec(name).shape == have[::-1]
        if bias_of(name) not in base:
            return False
        transposed = is_transposed(name, known, adapter.settings.fan_in_fan_out)
        if transposed is None:
            raise KeyMismatch(
                f"{adapter.weights.ref}: {name!r} is square and {base.ref} has layers of both orientations, "
                "expected one of its kind that tells which it has; merge the adapter with PEFT"
            )
        return transposed

    return goes


def _check_shape(adapter: Contents, given: str, base: Weights, name: str) -> None:
    ref, piece = adapter.weights.ref, adapter.pieces[given]
    have, want = adapter.specs[given].shape, base.spec(name).shape
    if base.spec(name).dtype not in EDITABLE:
        raise KeyMismatch(
            f"{ref}: {name!r} has dtype {short(base.spec(name).dtype)} in {base.ref}, "
            "expected a floating-point tensor"
        )
    if isinstance(piece, Product) and not piece.layer.embedding and len(want) > 1:
        flat = (want[0], math.prod(want[1:]))
        fits = have == flat or (len(want) == 2 and have == want[::-1])
    else:
        fits = have == want
    if isinstance(piece, Product) and piece.start is not None:
        fits = fits and adapter.weights.spec(piece.start).shape == want
    if not fits:
        raise KeyMismatch(
            f"{ref}: {name!r} has shape {have}, expected {want} as in the base {base.ref}; "
            "was it trained on another model, or with another vocabulary?"
        )


def _check_alone(ref: str, piece: Piece, base: Weights, name: str) -> None:
    """Refuse a change to one use of weights that serve two layers."""
    partners = [alias for alias, kept in base.tied.items() if name in (alias, kept)]
    embeds = isinstance(piece, Saved) or (isinstance(piece, Product) and piece.layer.embedding)
    if partners or (embeds and _is_silently_tied(base, name)):
        other = next((base.tied[p] if p == name else p for p in partners), "the output layer")
        raise KeyMismatch(
            f"{ref}: {name!r} shares its weights with {other} in {base.ref}, expected weights of "
            "their own, as the adapter changes one layer alone; save the base untied first"
        )


def _match_names(pieces: Mapping[str, Piece], base: Weights) -> dict[str, str]:
    """The base's name of every tensor: the same, or with one leading word more or less for all layers.

    Checkpoints of a bare encoder and of the encoder with a head differ by such a word.
    """
    layers = [given for given, piece in pieces.items() if not isinstance(piece, Saved)]
    changes: list[Callable[[str], str]] = [lambda given: given]
    for word in _first_words(layers):
        changes.append(lambda given, word=word: given.removeprefix(word))  # type: ignore[misc]
    for word in _first_words(base):
        changes.append(lambda given, word=word: word + given)  # type: ignore[misc]
    fitting = (change for change in changes if all(change(given) in base for given in layers))
    change = next(fitting, changes[0])
    return {given: change(given) if change(given) in base else given for given in pieces}


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


def _holds_same(weights: Weights, key: str, base: Weights, name: str) -> bool:
    """Whether a saved tensor is the base's."""
    saved, stored = weights.spec(key), base.spec(name)
    dtype = torch.promote_types(saved.dtype, stored.dtype)
    return saved.shape == stored.shape and all(
        torch.equal(weights.read(key, rows).to(dtype), base.read(name, rows).to(dtype))
        for rows in row_blocks(saved.shape)
    )


def _is_silently_tied(base: Weights, name: str) -> bool:
    """Whether an embedding also serves as the output layer, which has no tensor of its own in the file."""
    config = base.folder / "config.json" if base.folder is not None else None
    if not is_embedding(name) or config is None or not config.is_file() or any(map(is_head, base)):
        return False
    content = read_mapping(config)
    architectures = content.get("architectures")
    listed = " ".join(map(str, architectures)) if isinstance(architectures, list) else ""
    return bool(content.get("tie_word_embeddings", True)) and bool(_WITH_HEAD.search(listed))


def _explain_foreign(given: str, piece: Piece, base: Weights) -> str:
    """Words for a tensor of an adapter that the base lacks."""
    if isinstance(piece, Saved):
        return (
            f"{given!r} was trained whole and {base.ref} has no such tensor, expected one to subtract; "
            "leave it out with: taskvec diff BASE ADAPTER --on-extra drop -o VECTOR"
        )
    tied = "is it tied to the embeddings, or " if is_head(given) else ""
    return (
        f"{given!r} found, expected a tensor of the base {base.ref}; "
        f"{tied}was the adapter trained on another model?"
    )
