"""A network as PEFT sees it: which of its layers and parameters it adapts, and how it finds them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, reduce
from importlib import import_module

import torch
from torch import nn

from taskvec.errors import InputError
from taskvec.names import is_lookup
from taskvec.vectors.delta import Delta
from taskvec.vectors.lora.targets import Form, Target
from taskvec.weights.blocks import TensorSpec
from taskvec.weights.network import Network, network_of

_MAP = re.compile(r"(?:^|[._])(?:weight|proj|projection|kernel|linear|[wv]\d)$")
"""Parameters that multiply what a layer is given, by the ends of their names."""

_FACTOR = ".lora_A.weight"

# PEFT 0.21 takes layers of these names for single experts of transformers 4, which lie in stacks now.
_ONCE_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}

# Mixers of these models read the weights of such layers without calling them, and PEFT refuses to adapt them.
_MIXERS = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
_MIXED = {"out_proj", "conv1d"}


class Adaptable:
    """A network as PEFT sees it, with the places that the tensors of a file have there."""

    def __init__(self, network: Network, file: Mapping[str, TensorSpec]) -> None:
        self.network = network
        self.modules: Mapping[str, nn.Module] = dict(network.model.named_modules())
        self.layout = network.layout(file)
        self._shared = {*network.tied, *network.tied.values()}

    def targets(self, specs: Mapping[str, TensorSpec]) -> Iterator[Target]:
        """The matrices that PEFT can adapt among the tensors of a vector."""
        for name, place in self.layout.renamed.items():
            if name in specs:
                yield from self._target(Target(name, (name,), place, specs[name]))
        for conversion in self.layout.converted:
            dtypes = {specs[name].dtype for name in conversion.sources if name in specs}
            if dtypes and all(name in specs for name in conversion.sources):
                for place, spec in conversion.targets.items():
                    made = TensorSpec(spec.shape, reduce(torch.promote_types, dtypes))
                    yield from self._target(
                        Target(place, conversion.sources, place, made, conversion=conversion)
                    )

    def holds_matrix(self, name: str) -> bool:
        """Whether a tensor of the file is the matrix of a linear layer."""
        module, _, leaf = self.layout.renamed.get(name, "").rpartition(".")
        layer = self.modules.get(module)
        return layer is not None and _is_linear(layer) and leaf == "weight"

    def _target(self, target: Target) -> Iterator[Target]:
        """What PEFT makes of a tensor, if it can adapt it."""
        layer, shape = self.modules.get(target.module), target.spec.shape
        if layer is None or target.place in self._shared or 0 in shape or not target.module:
            return
        if self._is_bypassed(target.module) or isinstance(layer, nn.Embedding):
            return
        if _is_linear(layer) and target.leaf == "weight":
            of_experts = self._has_experts and target.module.rpartition(".")[2] in _ONCE_EXPERTS
            form: Form = "parameter" if of_experts else "linear"
            yield replace(target, form=form, turned=not isinstance(layer, nn.Linear))
        elif _is_map(layer, target.leaf, shape) and not is_lookup(target.place):
            stacked = len(shape) == 3 and bool(getattr(layer, "is_transposed", False))
            yield replace(target, form="parameter", turned=stacked)

    @cached_property
    def _has_experts(self) -> bool:
        settings: Mapping[str, object] = vars(self.network.model.config)
        counted = any(name.endswith("experts") and value for name, value in settings.items())
        return counted or any(".experts." in name for name in self.network.specs)

    def _is_bypassed(self, module: str) -> bool:
        """Whether a layer's weights are read without calling it, so that factors would have no effect."""
        parent, _, leaf = module.rpartition(".")
        mixed = getattr(self.network.model.config, "model_type", None) in _MIXERS and leaf in _MIXED
        return mixed or isinstance(self.modules.get(parent), nn.MultiheadAttention)

    def stored_names(self, targets: Sequence[Target]) -> dict[str, str]:
        """What the layer of each target is called in the file of an adapter, by the target's place.

        Wrappers of several parameters of a layer lie in each other, that of the first one innermost.
        """
        wrapped = {target.place for target in targets if target.form == "parameter"}
        names: dict[str, str] = {}
        for module in {target.module: None for target in targets}:
            of_layer = (
                f"{module}.{name}" for name, _ in self.modules[module].named_parameters(recurse=False)
            )
            held = [name for name in of_layer if name in wrapped]
            names |= {
                name: f"{self._stored_name(module)}{'.base_layer' * (len(held) - 1 - number)}"
                for number, name in enumerate(held)
            }
        return {
            target.place: names.get(target.place) or self._stored_name(target.module) for target in targets
        }

    def finds(self, target: Target) -> bool:
        """Whether PEFT finds the factors of a layer again, after what it renames on loading."""
        stored = self._stored_name(target.module)
        renamed = self._renamed_by_peft(stored)
        return renamed == target.module or (stored == target.module and stored.endswith(renamed))

    def _stored_name(self, module: str) -> str:
        """What the factors of a layer are called in the file of an adapter.

        PEFT renames them on loading as transformers does a checkpoint, and some renames insert a word again
        where it is already: of such names it is left out.
        """
        renamed = self._renamed_by_peft(module)
        if renamed == module or module.endswith(renamed):  # PEFT takes back what only shortens a name
            return module
        pairs = enumerate(zip(module, renamed, strict=False))
        start = next((place for place, (here, there) in pairs if here != there), len(module))
        added = len(renamed) - len(module)
        shorter = module[: max(0, start - added)] + module[start:]
        return shorter if self._renamed_by_peft(shorter) == module else module

    def _renamed_by_peft(self, module: str) -> str:
        if not self._is_renaming:
            return module
        return self.network.rename(f"{module}{_FACTOR}").removesuffix(_FACTOR)

    @cached_property
    def _is_renaming(self) -> bool:
        mappings = import_module("transformers.conversion_mapping")
        kind = getattr(self.network.model.config, "model_type", None)
        return mappings.get_checkpoint_conversion_mapping(kind) is not None

    def check_reached(self, targets: Sequence[Target]) -> list[str]:
        """Layers that PEFT would adapt beside those that are meant, for ``exclude_modules``.

        PEFT adapts what is called as it is told, and what ends in that after a dot.

        Raises: InputError where it would miss one that is meant, or change another parameter.
        """
        meant = {target.module for target in targets if target.form != "parameter"}
        wrapped = {target.place for target in targets if target.form == "parameter"}
        others = [name for name in self.modules if name not in meant and _ends_in(name, meant)]
        excluded = set(others)
        lost = [name for name in meant if name not in self.modules or _ends_in(name, excluded)]
        lost += [name for name in self._parameters if name not in wrapped and _ends_in(name, wrapped)]
        lost += [name for name in wrapped if name not in self._parameters]
        if lost:
            raise InputError(
                f"{self.network.ref}: PEFT would not tell {lost[0]!r} from another layer whose name ends "
                "alike, expected names that differ at the end; leave it out with only (--only)"
            )
        return others

    @cached_property
    def _parameters(self) -> set[str]:
        return {name for name, _ in self.network.model.named_parameters(remove_duplicate=False)}


def adaptable(vector: Delta) -> Adaptable | None:
    """The network that a vector's base is the weights of; ``None`` without transformers or a config.json, and
    for one that is of another model."""
    base = vector.base.weights
    network = None if base is None else network_of(base)
    if base is None or network is None:
        return None
    made = Adaptable(network, base.specs)
    return made if 2 * len(made.layout.unknown) < len(base) else None


def _ends_in(name: str, suffixes: set[str]) -> bool:
    """Whether what follows a dot in a name is one of ``suffixes``."""
    places = (place for place, letter in enumerate(name) if letter == ".")
    return any(name[place + 1 :] in suffixes for place in places)


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer multiplies by its weights, which ``Conv1D`` of transformers keeps as (in, out)."""
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def _is_map(layer: nn.Module, leaf: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter multiplies what its layer is given: routers, experts in a stack."""
    if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention):
        return False
    return _MAP.search(leaf) is not None and len(shape) in (2, 3) and min(shape) > 1
