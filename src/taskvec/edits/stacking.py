"""The config.json of a model made of other models' layers."""

from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from taskvec.edits import kinds
from taskvec.edits.configs import read_config, render
from taskvec.edits.loading import Kind, kinds_of, network_for
from taskvec.errors import InputError
from taskvec.names import block_of, renumber
from taskvec.weights import Weights
from taskvec.weights.network import Network, network_in


class Place(NamedTuple):
    """A layer of a model.

    Attributes:
        ref, folder: of the model.
        number: of the layer.
        tensors: in it, each with its name and shape.
    """

    ref: str
    folder: Path | None
    number: int
    tensors: Hashable = None


def group_layers(model: Weights) -> dict[int, frozenset[tuple[str, tuple[int, ...]]]]:
    """The tensors of each layer, by their names in the first, with their shapes."""
    layers: dict[int, set[tuple[str, tuple[int, ...]]]] = {}
    for name in model:
        block = block_of(name)
        if block is not None:
            layers.setdefault(block.number, set()).add((renumber(name, 0), model.spec(name).shape))
    return {number: frozenset(tensors) for number, tensors in layers.items()}


def stack_config(folder: Path | None, places: Sequence[Place]) -> tuple[dict[str, Any], list[str]]:
    """The config.json in ``folder`` for a model of the given layers; empty if there is none.

    Where transformers is installed, it has the last word on the kinds of the layers.

    Returns: with it, why it does not describe the layers, if it does not.
    Raises: InputError for a config that does not tell its number of layers; CorruptFile.
    """
    config = read_config(folder)
    if not config:
        return {}, []
    made, unsettled = _describe(folder, config, places, {})
    faults = [f"{_name(places, layer)}, and no {keys} makes it of the same kind" for keys, layer in unsettled]
    folders = {place.folder for place in places}
    networks = {each: None if each is None else network_in(each, 0) for each in folders}
    if any(network is None for network in networks.values()):
        return made, faults or _unexplained(places)
    wrong = _compare(made, places, networks)
    if wrong is None:
        return made, []
    resolved = {each: network.config for each, network in networks.items() if network}
    fuller, _ = _describe(folder, config, places, resolved)
    if _compare(fuller, places, networks) is None:
        return fuller, []
    return made, faults or [wrong]


def _describe(
    folder: Path | None,
    config: Mapping[str, Any],
    places: Sequence[Place],
    resolved: Mapping[Path | None, Mapping[str, Any]],
) -> tuple[dict[str, Any], list[kinds.Unsettled]]:
    """The config for the layers.

    Args:
        resolved: configs with what transformers adds to them, of which lists of layers are taken over.
    """
    part = _part(config)
    if part is None:
        raise InputError(
            f"{folder}/config.json: no number of layers, expected one of {', '.join(kinds.NUMBER_OF_LAYERS)}"
        )

    @cache
    def settings(of: Path | None) -> Mapping[str, Any]:
        given = _inner(read_config(of), part) or _inner(config, part)
        more = _inner(resolved.get(of, {}), part)
        depth = kinds.count(given)
        return {**{name: more[name] for name in more if kinds.lists_layers(name, more[name], depth)}, **given}

    layers = [(settings(place.folder), place.number) for place in places]
    made, unsettled = kinds.describe(settings(folder), layers)
    return {**config, part: made} if part else made, unsettled


def _unexplained(places: Sequence[Place]) -> list[str]:
    """Why nothing known says which layers hold which tensors, if layers that hold others are moved."""
    if all(place.number == number for number, place in enumerate(places)):
        return []
    seen: dict[object, Place] = {}
    for number, place in enumerate(places):
        config = read_config(place.folder)
        label = kinds.label(_inner(config, _part(config) or ""), place.number)
        first = seen.setdefault((place.folder, label), place)
        if first.tensors != place.tensors:
            other = f"which holds other tensors than layer {first.number} of it"
            return [f"{_name(places, number)}, {other}, and no setting of config.json known here says so"]
    return []


def _part(config: Mapping[str, Any]) -> str | None:
    """The key of the config inside a config that tells the number of layers; empty if that does itself."""
    inner = [key for key, value in config.items() if isinstance(value, Mapping) and kinds.count(value)]
    if kinds.count(config):
        return ""
    return "text_config" if "text_config" in inner else inner[0] if len(inner) == 1 else None


def _inner(config: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """That config, also where a model has it by itself."""
    inner = config.get(part, config) if part else config
    return inner if isinstance(inner, Mapping) else {}


def _compare(
    config: Mapping[str, Any], places: Sequence[Place], networks: Mapping[Path | None, Network | None]
) -> str | None:
    """Which layer the network of a config has of another kind than the model that it comes from, if any."""
    made = network_for(render(config), len(places))
    if made is None:
        return "transformers makes no model of the config.json for these layers"
    origins = {folder: kinds_of(network) for folder, network in networks.items() if network is not None}
    found = kinds_of(made)
    if found is None or any(origin is None for origin in origins.values()):
        return None  # not one stack of layers: what is written is checked by its names and shapes
    held = [kind for kind in (found, *origins.values()) if kind is not None]
    varying = set().union(*map(_varying, held))
    for number, place in enumerate(places):
        origin = origins[place.folder]
        if origin is None or number >= len(found) or place.number >= len(origin):
            return f"{_name(places, number)}, which config.json makes no place for"
        expected, there = origin[place.number], found[number]
        wrong = next((key for key in sorted(varying) if there.get(key) != expected.get(key)), None)
        if wrong is not None:
            return f"{_name(places, number)}, {_difference(wrong, expected, there)}"
    return None


def _varying(layers: Sequence[Kind]) -> set[tuple[str, str]]:
    """What is not the same in all layers."""
    keys = {key for layer in layers for key in layer}
    return {key for key in keys if any(layer.get(key) != layers[0].get(key) for layer in layers)}


def _name(places: Sequence[Place], number: int) -> str:
    return f"layer {number} is layer {places[number].number} of {places[number].ref}"


def _difference(key: tuple[str, str], expected: Kind, found: Kind) -> str:
    what = ".".join(filter(None, key)) or "the layer"
    return (
        f"where {what} is {expected.get(key, 'nothing')}, but {found.get(key, 'nothing')} by config.json, "
        "and no setting known here changes that"
    )
