"""How the layers of an adapter are matched with those of a base: names, orientation, shapes, ties."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from taskvec.errors import KeyMismatch
from taskvec.names import goes_by_token, is_embedding, is_head
from taskvec.vectors.delta import computed_specs
from taskvec.vectors.lora.contents import Contents, Piece, Product, Rows, Saved, Scales, Shift, Stacked
from taskvec.vectors.lora.growing import is_resized
from taskvec.vectors.lora.naming import find_layers
from taskvec.vectors.lora.stacks import resolve_stacks
from taskvec.vectors.lora.ties import check_alone, find_twins, holds_same, is_silently_tied, shared_with
from taskvec.weights import Weights
from taskvec.weights.dtypes import is_editable, short
from taskvec.weights.network import Network

_log = logging.getLogger(__name__)

_RESIZED = (
    "it has a vocabulary of another size, which no vector of this base can; write the model with: "
    "taskvec apply BASE -v a=ADAPTER -o OUT"
)


def fit(adapter: Contents, base: Weights, *, drop: bool = False, network: Network | None = None) -> Contents:
    """The contents under the names of ``base``, each layer as the base stores it.

    Args:
        drop: leave out tensors saved whole that the base lacks, such as a new head.
        network: that has the names of ``base``, if it is at hand.

    Raises: KeyMismatch for layers that the base lacks, or holds in another shape.
    """
    ref, weights = adapter.weights.ref, adapter.weights
    names = find_layers(ref, adapter.pieces, base)
    twins = find_twins(adapter, base, names)
    transposed = _orientation(adapter, base, names)
    pieces: dict[str, Piece] = {}
    for given, (name, piece) in resolve_stacks(adapter, base, names, network).items():
        if given in twins:
            continue
        if name not in base:
            if isinstance(piece, Saved) and drop:
                _log.warning("%s: %r is left out, as the base lacks it", ref, given)
                continue
            raise KeyMismatch(f"{ref}: {_explain_foreign(given, piece, base)}")
        if isinstance(piece, Saved) and holds_same(weights, piece.key, base, name):
            continue
        _check_shape(adapter, piece, base, name)
        if given not in twins.values():
            check_alone(adapter, piece, base, name)
        if name in pieces:
            raise KeyMismatch(
                f"{ref}: {given!r} is {name!r} in {base.ref}, and so is another layer of the adapter, "
                "expected one; remove the one that is not meant"
            )
        pieces |= _settled(adapter, piece, base, name, transposed)
    return replace(adapter, pieces=pieces, specs=computed_specs(base))


def _settled(
    adapter: Contents, piece: Piece, base: Weights, name: str, transposed: Callable[[str, Piece], bool]
) -> dict[str, Piece]:
    """The changes that a piece makes, as the base stores its layer."""
    if isinstance(piece, Scales):
        return _scaled(adapter, piece, base, name, transposed)
    if isinstance(piece, Product):
        piece = replace(piece, transposed=transposed(name, piece))
    if isinstance(piece, Product | Rows) and piece.start is not None:
        is_start = holds_same(adapter.weights, piece.start, base, name)
        piece = replace(piece, start=None if is_start else piece.start)
    return {name: piece}


def _scaled(
    adapter: Contents, piece: Scales, base: Weights, name: str, transposed: Callable[[str, Piece], bool]
) -> dict[str, Piece]:
    """Factors of the weights, and of the bias where they are of the outputs."""
    axis = int(piece.of_inputs)
    if len(base.spec(name).shape) == 2 and transposed(name, piece):
        axis = 1 - axis
    made: dict[str, Piece] = {name: replace(piece, axis=axis)}
    bias = bias_of(name)
    if not piece.of_inputs and bias in base:
        made[bias] = replace(piece, axis=0)
    return made


def _orientation(adapter: Contents, base: Weights, names: Mapping[str, str]) -> Callable[[str, Piece], bool]:
    """Whether a layer's weights are stored as (in, out).

    Shapes tell, except for square matrices. These are as other layers of their kind in the model: a bias is
    as long as there are outputs, and only layers with a bias are ever (in, out). What the settings say is
    true of the layer that PEFT saw last.
    """
    known = orientations({name: base.spec(name).shape for name in base})
    for given, name in names.items():
        piece = adapter.pieces[given]
        if isinstance(piece, Product) and name in base and not _is_square(adapter, piece):
            have = piece.layer.shape_in(adapter.weights)
            known.setdefault(kind(name), set()).add(base.spec(name).shape == have[::-1])

    def goes(name: str, piece: Piece) -> bool:
        want = base.spec(name).shape
        if isinstance(piece, Product) and piece.layer.embedding:
            return True
        if isinstance(piece, Product) and (not _is_square(adapter, piece) or len(want) != 2):
            return want == piece.layer.shape_in(adapter.weights)[::-1]
        if isinstance(piece, Scales) and want[0] != want[1]:
            return want[int(piece.of_inputs)] != adapter.weights.spec(piece.key).numel
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


def _is_square(adapter: Contents, piece: Product) -> bool:
    shape = piece.layer.shape_in(adapter.weights)
    return shape == shape[::-1]


def _check_shape(adapter: Contents, piece: Piece, base: Weights, name: str) -> None:
    ref, want = adapter.weights.ref, base.spec(name).shape
    dtype = base.spec(name).dtype
    if not is_editable(dtype):
        remedy = "; save the base in bfloat16 first" if dtype.is_floating_point else ""
        raise KeyMismatch(
            f"{ref}: {name!r} has dtype {short(dtype)} in {base.ref}, expected a floating-point tensor"
            f"{remedy and ' of 16 bits or more'}{remedy}"
        )
    have, fits = _compare(adapter, piece, want)
    start = piece.start if isinstance(piece, Product | Rows) else None
    if start is not None:
        fits = fits and adapter.weights.spec(start).shape == want
    if not fits:
        resized = isinstance(piece, Saved) and goes_by_token(name) and is_resized(have, want)
        raise KeyMismatch(
            f"{ref}: {name!r} has shape {have}, expected {want} as in the base {base.ref}; "
            + (_RESIZED if resized else "was it trained on another model, or with another vocabulary?")
        )


def _compare(adapter: Contents, piece: Piece, want: tuple[int, ...]) -> tuple[tuple[int, ...], bool]:
    """The shape of a change, and whether it is one for weights of the shape ``want``."""
    match piece:
        case Product(layer):
            have = layer.shape_in(adapter.weights)
            flat = (want[0], math.prod(want[1:])) if len(want) > 1 else want
            turned = len(want) == 2 and have == want[::-1]
            return have, have == want if layer.embedding else have == flat or turned
        case Stacked():
            return want, True
        case Rows(key, indices):
            have = (max(indices, default=-1) + 1, *adapter.weights.spec(key).shape[1:])
            return have, len(want) == 2 and have[0] <= want[0] and have[1:] == want[1:]
        case Scales(key):
            have = adapter.weights.spec(key).shape
            sizes = want[:2] if len(want) == 2 else want[int(piece.of_inputs) : int(piece.of_inputs) + 1]
            size = math.prod(have)
            return have, len(want) > 1 and (size in sizes or _in_groups(piece, size, want))
        case Saved(key) | Shift(key):
            have = adapter.weights.spec(key).shape
            return have, have == want


def _in_groups(piece: Scales, size: int, want: tuple[int, ...]) -> bool:
    """Whether there are as many factors as inputs of a convolution in groups."""
    if len(want) < 3 or not piece.of_inputs or not want[1] or size % want[1]:
        return False
    return want[0] % (size // want[1]) == 0


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


def _explain_foreign(given: str, piece: Piece, base: Weights) -> str:
    """Words for a tensor of an adapter that the base lacks."""
    embedding = next(filter(is_embedding, base), None)
    if isinstance(piece, Saved) and is_head(given) and embedding and is_silently_tied(base, embedding):
        return (
            f"{given!r} was trained apart from {embedding!r}, which is also the output layer of {base.ref}, "
            "expected weights of their own; save the base untied first"
        )
    if shared := shared_with(given, base):
        return (
            f"{given!r} shares its weights with {shared} in {base.ref}, expected weights of their own, as "
            "the adapter changes one layer alone; save the base untied first"
        )
    if isinstance(piece, Saved):
        return (
            f"{given!r} was trained whole and {base.ref} has no such tensor, expected one to subtract; "
            "leave it out with: taskvec diff BASE ADAPTER --on-extra drop -o VECTOR"
        )
    if isinstance(piece, Shift) and piece.key.endswith("lora_B.bias"):
        return (
            f"{given!r} found, expected a bias of that layer in {base.ref}, as lora_bias adds to it; PEFT "
            "cannot merge such an adapter either: give the layers of the base a bias of zeros first"
        )
    tied = "is it tied to the embeddings, or " if is_head(given) else ""
    return (
        f"{given!r} found, expected a tensor of the base {base.ref}; "
        f"{tied}was the adapter trained on another model?"
    )
