"""A model seen as another one is: under its names, in its layout, without what that computes by itself."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from taskvec.errors import KeyMismatch, and_more
from taskvec.weights.blocks import TensorSpec
from taskvec.weights.buffers import find_tied, find_twins, is_computed
from taskvec.weights.lazy import Weights
from taskvec.weights.matching import Change, Match, match_names, plain_names
from taskvec.weights.network import Conversion, Network, network_of
from taskvec.weights.picked import Picked, Step
from taskvec.weights.selecting import Renames

SHOWN = 3
"""Names in a list before the number of others."""


class Seen(NamedTuple):
    """A view of a model, and what was done to get there, in sentences."""

    weights: Weights
    notes: tuple[str, ...] = ()


def see_as(base: Weights, other: Weights, renames: Renames | None = None) -> Seen:
    """Another model of the same kind under the names of a base, as far as they are found; lazily.

    What is found goes by a map of the user, by the change of names that fits most tensors, and by the tables
    of transformers where it is installed and a config.json lies beside the weights. Copies of tied tensors,
    and buffers that the model computes, are left out. Tensors of which no name is found keep theirs.

    Raises: KeyMismatch where two changes of names fit equally well; InputError for a map that does not fit.
    Cost: headers; copies of tied tensors are read.
    """
    seen, notes = named_as(base, other, renames)
    seen, more = _without_copies(base, seen)
    return Seen(seen, (*notes, *more))


def named_as(base: Weights, other: Weights, renames: Renames | None = None) -> Seen:
    """As ``see_as``, but with all tensors, copies and computed ones too."""
    notes: list[str] = []
    if renames is not None:
        wanted = renames.apply(all_names(other), other.ref)
        other = renamed(other, wanted)
        notes += renaming_notes(other.ref, wanted)
    match = match_names(all_specs(base), all_specs(other))
    seen, more, made = _by_tables(base, renamed(other, match.names), match)
    names = {**match.names, **more}
    if match.rivals and not names and not made:
        raise _ambiguous(base.ref, other.ref, *match.rivals)
    notes += renaming_notes(other.ref, names)
    if made:
        notes.append(f"{other.ref}: stacked, split or turned as in {base.ref}: {list_some(made)}")
    return Seen(seen, tuple(notes))


def named_like(base: Weights, other: Weights) -> Seen:
    """Another model in the naming of a base, also of tensors that the base lacks, such as further layers."""
    match = match_names(all_specs(base), all_specs(other))
    held = {match.names.get(name, name) for name in all_names(other)}
    free = Counter(match.lost.values())
    lost = {name: there for name, there in match.lost.items() if there not in held and free[there] == 1}
    names = {**match.names, **lost}
    return Seen(renamed(other, names), tuple(renaming_notes(other.ref, names)))


def _ambiguous(base: str, ref: str, first: Change, second: Change) -> KeyMismatch:
    """The error for names that two changes fit equally well."""
    return KeyMismatch(
        f"{ref}: its names fit those of {base} after {first} and after {second}, expected one way; "
        f"say which with rename (--rename OLD=NEW), such as --rename {first.option()}"
    )


def renaming_notes(ref: str, names: Mapping[str, str]) -> list[str]:
    """A note on tensors that go by another name."""
    for old, new in names.items():
        others = f" ({len(names)} renamed)" if len(names) > 1 else ""
        return [f"{ref}: {old!r} is taken for {new!r}{others}"]
    return []


def list_some(names: Sequence[str]) -> str:
    """The first few names, and how many more.

    >>> list_some(["a", "b", "c", "d"])
    "'a', 'b', 'c' (1 more)"
    """
    return ", ".join(map(repr, names[:SHOWN])) + and_more(names[SHOWN - 1 :])


def all_names(weights: Weights) -> list[str]:
    """The names of all tensors, aliases too."""
    return [*weights, *weights.tied]


def all_specs(weights: Weights) -> dict[str, TensorSpec]:
    """Shape and dtype by every name, aliases too."""
    return {name: weights.spec(name) for name in all_names(weights)}


def renamed(weights: Weights, names: Mapping[str, str]) -> Weights:
    """The weights with some tensors under other names.

    Args:
        names: name in the model -> name in the view.
    """
    if not names:
        return weights
    tied = {names.get(alias, alias): names.get(kept, kept) for alias, kept in weights.tied.items()}
    return Picked(weights, {names.get(name, name): name for name in weights}, tied=tied)


def without(weights: Weights, names: Iterable[str]) -> Weights:
    """The weights but for some tensors."""
    dropped = set(names)
    if not dropped:
        return weights
    tied = {alias: kept for alias, kept in weights.tied.items() if alias not in dropped}
    return Picked(weights, {name: name for name in weights if name not in dropped}, tied=tied)


# Tables of transformers


def _lacking(weights: Weights, other: Weights) -> list[str]:
    """Floating-point tensors that another model has and these weights lack."""
    return [
        name
        for name in other
        if name not in weights and other.spec(name).floating and not is_computed(name, other.spec(name))
    ]


def _by_tables(base: Weights, seen: Weights, match: Match) -> tuple[Weights, dict[str, str], list[str]]:
    """The view of a model with what the network of either tells of names that do not fit yet.

    Returns: the view; what is renamed; what is made of other tensors.
    """
    if not (_lacking(seen, base) and _lacking(base, seen)):
        return seen, {}, []
    network = network_of(base) or network_of(seen)
    if network is None:
        return seen, {}, []
    bare = plain_names(all_names(base))
    inner, back = renamed(base, bare), {there: name for name, there in bare.items()}
    lost = {name: there for name, there in match.lost.items() if there not in inner and there not in seen}
    unwrapped = renamed(seen, {**{name: there for name, there in bare.items() if name in seen}, **lost})
    plain, steps = _Layouts(network, inner, unwrapped).compared()
    if not plain and not steps:
        return seen, {}, []
    taken = {name for step in steps for name in step.sources}
    names = {plain.get(name, name): name for name in unwrapped if name not in taken}
    view = Picked(unwrapped, names, tied=renamed(unwrapped, plain).tied, steps=steps)
    wrapped = {there: name for name, there in lost.items()}
    left = {there: name for there, name in wrapped.items() if there in view and there not in inner}
    told = {wrapped.get(name, name): back.get(there, there) for name, there in plain.items()}
    held = {there: name for there, name in back.items() if there in view}
    made = [back.get(name, name) for step in steps for name in step.targets]
    return renamed(view, {**left, **held}), told, made


class _Layouts:
    """The tensors of two models of one network."""

    def __init__(self, network: Network, base: Weights, other: Weights) -> None:
        self._base, self._other = base, other
        self._here, self._there = network.layout(all_specs(base)), network.layout(all_specs(other))
        self._wanted = {place: name for name, place in self._here.renamed.items()}
        self._held = {place: name for name, place in self._there.renamed.items()}

    def compared(self) -> tuple[dict[str, str], list[Step]]:
        """Name in the other model -> name in the base, where only the name is another; and what is made."""
        forward = (self._forward(conversion) for conversion in self._there.converted)
        backward = (self._backward(conversion) for conversion in self._here.converted)
        return self._plain(), [step for step in (*forward, *backward) if step is not None]

    def _plain(self) -> dict[str, str]:
        pairs = {name: self._wanted.get(place, name) for place, name in self._held.items()}
        return {
            name: there
            for name, there in pairs.items()
            if there != name and name not in self._base and there not in self._other
        }

    def _forward(self, conversion: Conversion) -> Step | None:
        """What the base has as the network has it, of tensors that are converted while they are loaded."""
        names = {place: self._wanted.get(place, "") for place in conversion.targets}
        if not all(name and name not in self._other for name in names.values()):
            return None
        targets = {names[place]: spec for place, spec in conversion.targets.items()}
        return Step(
            conversion.sources,
            targets,
            lambda tensors: {names[place]: made for place, made in conversion.convert(tensors).items()},
        )

    def _backward(self, conversion: Conversion) -> Step | None:
        """The tensors of the base that are converted while they are loaded, of those of the network."""
        held = {place: self._held.get(place, "") for place in conversion.targets}
        if not all(held.values()) or any(name in self._other for name in conversion.sources):
            return None
        code = self._other.spec(next(iter(held.values()))).code
        return Step(
            tuple(held.values()),
            {name: TensorSpec(self._base.spec(name).shape, code) for name in conversion.sources},
            lambda tensors: conversion.revert({place: tensors[name] for place, name in held.items()}),
        )


# Copies and buffers


def without_computed(models: Sequence[Weights]) -> tuple[list[Weights], list[str]]:
    """Models of one naming without the buffers that they compute, unless all of them hold these; and notes.

    A mean of all models cannot take a tensor from some of them.
    """
    held = dict.fromkeys(name for model in models for name in model)
    partial = [name for name in held if not all(name in model for model in models)]
    specs = {name: next(model.spec(name) for model in models if name in model) for name in partial}
    computed = [name for name in partial if is_computed(name, specs[name])]
    refs = ", ".join(dict.fromkeys(model.ref for model in models for name in computed if name in model))
    notes = [f"{refs}: left out, as the model computes it: {list_some(computed)}"] if computed else []
    return [without(model, set(computed) & {*model}) for model in models], notes


def _without_copies(base: Weights, seen: Weights) -> Seen:
    """A view without what the base computes or has tied, and with the copies that it keeps."""
    notes: list[str] = []
    extra, missing = _surplus(seen, base), _surplus(base, seen)
    computed = [name for name in extra if is_computed(name, seen.spec(name))]
    copies = find_twins(seen, extra, base)
    if computed:
        notes.append(f"{seen.ref}: left out, as the model computes it: {list_some(computed)}")
    if copies:
        pairs = ", ".join(f"{name!r}, a copy of {twin!r}" for name, twin in copies.items())
        notes.append(f"{seen.ref}: left out, as the base has it once: {pairs}")
    seen = without(seen, [*computed, *copies])
    twins = find_twins(base, missing, seen)
    tied = find_tied(base, [name for name in missing if name not in twins], seen)
    for what, found in (("lacks a copy that the base keeps", twins), ("tied, and not in the base", tied)):
        if found:
            said = ", ".join(f"{name!r} is {twin!r}" for name, twin in found.items())
            notes.append(f"{seen.ref}: {what}: {said}")
    if twins or tied:
        seen = Picked(seen, {**{name: name for name in seen}, **twins, **tied}, tied=seen.tied)
    return Seen(seen, tuple(notes))


def _surplus(weights: Weights, other: Weights) -> list[str]:
    """Floating-point tensors that another model lacks, under this name or one that it is tied to here."""
    aliases: dict[str, list[str]] = {}
    for alias, kept in weights.tied.items():
        aliases.setdefault(kept, []).append(alias)
    return [
        name
        for name in weights
        if weights.spec(name).floating and not any(known in other for known in (name, *aliases.get(name, ())))
    ]
