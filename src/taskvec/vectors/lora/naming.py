"""The names of an adapter's tensors found among those of a base: the same, or with other words in front."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from taskvec.errors import KeyMismatch
from taskvec.names import is_head
from taskvec.vectors.lora.contents import Contents, Piece, Saved, Stacked
from taskvec.weights import Weights

_WORDS = 4
"""Leading words of names that may differ between an adapter and a base."""


def is_found(contents: Contents, base: Weights) -> bool:
    """Whether the base has all that an adapter changes, under its names; heads apart, which may be tied.

    Parameters of experts count as not found: only the network tells how they are stored.
    """
    pieces = ((name, piece) for name, piece in contents.pieces.items() if not is_head(name))
    return all(_alias(name, base) in base and not isinstance(piece, Stacked) for name, piece in pieces)


def has_layers(contents: Contents, base: Weights) -> bool:
    """Whether the base has all layers of an adapter under its names, whatever was saved whole beside them."""
    layers = (name for name in contents.pieces if not (is_head(name) or _is_whole(contents, name)))
    return all(_alias(name, base) in base or _has_parameter(contents, name, base) for name in layers)


def _is_whole(contents: Contents, name: str) -> bool:
    return isinstance(contents.pieces[name], Saved)


def _has_parameter(contents: Contents, name: str, base: Weights) -> bool:
    module = name.rpartition(".")[0]
    return any(f"{module}.{parameter}" in base for parameter in contents.settings.parameters(module))


def find_layers(ref: str, pieces: Mapping[str, Piece], base: Weights) -> dict[str, str]:
    """The base's name of every tensor: the same, or with leading words more or less for all layers.

    Checkpoints of a bare encoder and of the encoder with a head differ by such a word. What is not found
    keeps its name.

    Raises: KeyMismatch if layers fit the base in two ways.
    """
    found = {given: _alias(given, base) for given in pieces}
    layers = [given for given, piece in pieces.items() if not isinstance(piece, Saved | Stacked)]
    if any(not is_head(given) for given in layers):  # which may be tied, and then have no name
        layers = [given for given in layers if not is_head(given)]
    if all(found[given] in base for given in layers):
        return found
    changes = list(_prefixes(ref, layers, base))
    if not changes:
        return found
    old, new = changes[0]
    moved = {given: _alias(new + given.removeprefix(old), base) for given in pieces if given.startswith(old)}
    return {given: name if name in base else moved.get(given, name) for given, name in found.items()}


def _alias(name: str, base: Weights) -> str:
    """The name itself, or that of fused attention, whose weights have a name of their own."""
    module = name.removesuffix(".weight")
    fused = f"{module}.in_proj_weight"
    return fused if name not in base and module != name and fused in base else name


def _prefixes(ref: str, layers: Collection[str], base: Weights) -> Iterator[tuple[str, str]]:
    """The leading words to take away and those to put there, with which all layers are found."""
    ways = []
    for old in _leading(layers):
        rests = [name.removeprefix(old) for name in layers]
        new = next(iter(rests))
        starts = {name.removesuffix(new) for name in base if name.endswith(new)}
        for start in sorted(starts):
            if start.count(".") <= _WORDS and all(_alias(start + rest, base) in base for rest in rests):
                ways.append((old, start))
    targets = {tuple(start + name.removeprefix(old) for name in layers): (old, start) for old, start in ways}
    if len(targets) > 1:
        (first, *_), (other, *_) = list(targets)[:2]
        raise KeyMismatch(
            f"{ref}: {next(iter(layers))!r} could be {first!r} or {other!r} in {base.ref}, expected one "
            "place for the layers of the adapter; rename them in the adapter's file"
        )
    yield from targets.values()


def _leading(names: Iterable[str]) -> list[str]:
    """The leading words that names have in common, the fewest first; then the first word of any.

    The layer's own name is none of them: any layer ends in ``weight``.
    """
    listed = list(names)
    words = [name.split(".")[:-2][:_WORDS] for name in listed]
    counts = Counter(".".join(start[:number]) + "." for start in words for number in range(1, len(start) + 1))
    common = [start for start, count in counts.items() if count == len(listed)]
    return list(dict.fromkeys(["", *common, *sorted({f"{start[0]}." for start in words if start})]))
