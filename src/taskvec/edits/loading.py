"""Whether transformers would load a model as it is to be written, checked on the meta device.

Where a config.json describes other tensors than those beside it, transformers draws some at random and
ignores others, with no more than a warning.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec.edits.configs import read_config, render
from taskvec.edits.merge import Merge
from taskvec.errors import InputError
from taskvec.names import block_of, renumber
from taskvec.reading import parse_json
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.network import Layout, Network, network_in, network_of

if TYPE_CHECKING:
    from torch import nn

Kind = Mapping[tuple[str, str], object]
"""What a layer is made of: (module in it, attribute) -> value."""

_COUNTS = re.compile(r"idx|index|id$|num|layer|seed")
_DROPPING = re.compile(r"drop")  # more of it in deeper layers, in training alone
_HARMLESS = ("dtype", "torch_dtype")
_WHERE = "the result would not load as it is"
_ANYWAY = "change what is merged, or write it all the same with --allow-unloadable (allow_unloadable=True)"


@lru_cache(2)
def network_for(text: str, tensors: int) -> Network | None:
    """The network of a config.json that is not written yet; ``None`` as for ``network_in``."""
    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(text, encoding="utf-8")
        return network_in(Path(folder), tensors)


def kinds_of(network: Network) -> list[Kind] | None:
    """Of what kind each layer of a network is; ``None`` if it has not one stack of layers."""
    stacks = {block.stack for name in network.specs if (block := block_of(name))}
    if len(stacks) != 1:
        return None
    return [_kind(layer) for layer in network.model.get_submodule(*stacks).children()]


def _kind(layer: "nn.Module") -> Kind:
    kind: dict[tuple[str, str], object] = {}
    for place, module in layer.named_modules():
        if _DROPPING.search(place):
            continue
        kind[place, ""] = type(module).__name__
        kind |= {(place, name): tuple(part.shape) for name, part in module.named_parameters(recurse=False)}
        kind |= {(place, name): _plain(name, value) for name, value in vars(module).items() if name[0] != "_"}
    return kind


def _plain(name: str, value: object) -> object:
    """Switches, words and sizes by value; all else, and what counts layers, by type."""
    counts = isinstance(value, int) and _COUNTS.search(name)
    return value if isinstance(value, bool | int | str) and not counts else type(value).__name__


class Faults(NamedTuple):
    """What goes wrong when a model is loaded.

    Attributes:
        missing: tensors of the network that are made at random.
        ignored: tensors of the file that are not used.
        misshapen: name in the file -> its shape, and that of the network.
    """

    missing: Sequence[str]
    ignored: Sequence[str]
    misshapen: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]


def find_faults(network: Network, specs: Mapping[str, TensorSpec]) -> Faults:
    """What transformers would say of tensors that it loads into a network."""
    layout = network.layout(specs)
    return Faults(layout.missing, layout.unknown, dict(_misshapen(network, specs, layout)))


def fits_its_config(model: Weights) -> bool:
    """Whether the network of the config.json beside a model has the shapes of its tensors."""
    network = network_of(model)
    if network is None:
        return False
    faults = find_faults(network, model.specs)
    return not faults.missing and not faults.misshapen


def _misshapen(
    network: Network, specs: Mapping[str, TensorSpec], layout: Layout
) -> Iterable[tuple[str, tuple[tuple[int, ...], tuple[int, ...]]]]:
    given = {place: (name, specs[name].shape) for name, place in layout.renamed.items()}
    for conversion in layout.converted:
        given |= {place: (conversion.sources[0], spec.shape) for place, spec in conversion.targets.items()}
    for place, (name, shape) in given.items():
        expected = network.specs[network.tied.get(place, place)].shape
        if shape != expected:
            yield name, (shape, expected)


def check_loads(merge: Merge) -> None:
    """Refuse a model that its own config.json does not describe, as far as the model it is like is described.

    Nothing is asked where names, shapes and config are those of that model, and nothing without transformers.

    Raises: InputError, with the first tensor and the way out.
    """
    for fault in () if merge.allow_unloadable else merge.faults:
        raise InputError(f"{fault}; {_ANYWAY}")
    stored = next((each for each in merge.like.inputs if each.folder == merge.like.folder), merge.like)
    # Modules in folders of their own have configs of their own.
    apart = tuple(site.prefix for site in merge.like.sites if site.prefix)
    before, specs = (
        {name: held.spec(name) for name in held if not name.startswith(apart)}
        for held in (stored, merge.weights)
    )
    old = read_config(stored.folder)
    new = merge.files.get("config.json", render(old))
    if merge.allow_unloadable or stored.folder is None or not (old and new):
        return
    if _shapes(specs) == _shapes(before) and _plainly(old) == _plainly(parse_json(new, "config.json")):
        return
    described = network_in(stored.folder, len(before))
    if described is not None:
        _compare(network_for(new, len(specs)), specs, find_faults(described, before))


def _compare(network: Network | None, specs: Mapping[str, TensorSpec], known: Faults) -> None:
    """Refuse faults of a model that the model it is like has not."""
    if network is None:
        raise InputError(f"{_WHERE}: transformers makes no model of its config.json; {_ANYWAY}")
    faults = find_faults(network, specs)
    for name in _new(faults.misshapen, known.misshapen):
        held, expected = faults.misshapen[name]
        raise InputError(
            f"{_WHERE}: {name!r} has shape {held}, its config.json expects {expected}; {_ANYWAY}"
        )
    for name in _new(faults.missing, known.missing):
        raise InputError(f"{_WHERE}: {name!r}, which its config.json expects, would be random; {_ANYWAY}")
    for name in _new(faults.ignored, known.ignored):
        raise InputError(
            f"{_WHERE}: {name!r}, for which its config.json has no place, would be lost; {_ANYWAY}"
        )


def _new(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The names that are not known, whatever layers they are in."""
    seen = set(map(_anywhere, known))
    return [name for name in names if _anywhere(name) not in seen]


def _anywhere(name: str) -> str:
    return name if block_of(name) is None else renumber(name, 0)


def _shapes(specs: Mapping[str, TensorSpec]) -> dict[str, tuple[int, ...]]:
    return {name: spec.shape for name, spec in specs.items()}


def _plainly(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what changes nothing in what is loaded."""
    return {
        key: _plainly(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _HARMLESS
    }
