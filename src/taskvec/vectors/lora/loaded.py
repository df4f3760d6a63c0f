"""Adapters of a network whose tensors have other names, or other shapes, in the files of its base."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING

from taskvec.errors import MissingExtra
from taskvec.later import torch
from taskvec.vectors.base import Base
from taskvec.vectors.delta import Summand, computed_specs
from taskvec.vectors.lora.contents import Contents
from taskvec.vectors.lora.foreign import choose_component
from taskvec.vectors.lora.naming import has_layers, is_found
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.blocks import rows_of
from taskvec.weights.lazy import Lazy
from taskvec.weights.network import Layout, Network, network_of
from taskvec.weights.picked import Picked, Step

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)

_KEPT = 2
"""Groups of converted tensors that stay in memory."""


class Loaded(Picked):
    """A model's weights as the network has them once they are loaded."""

    def __init__(self, base: Weights, network: Network, layout: Layout) -> None:
        self.base, self.network, self.layout = base, network, layout
        super().__init__(
            base,
            {there: name for name, there in layout.renamed.items() if there in network.specs},
            tied=network.tied,
            steps=[Step(each.sources, each.targets, each.convert) for each in layout.converted],
        )

    def __reduce__(self) -> tuple[object, tuple[Weights]]:
        """Made anew of the config.json beside the base."""
        return _load, (self.base,)


def _load(base: Weights) -> Loaded:
    network = network_of(base)
    if network is None:
        raise MissingExtra(
            f"{base.ref}: an adapter under the names of a network was pickled, expected transformers and "
            "the config.json to find them again; pip install transformers"
        )
    return Loaded(base, network, network.layout(base.specs))


class Reverted(Summand):
    """A direction of the network, under the names and in the shapes of the files of its base."""

    def __init__(self, inner: Summand, view: Loaded) -> None:
        base, layout = view.base, view.layout
        super().__init__(
            inner.ref,
            ("reverted", inner.identity, base.identity),
            computed_specs(base),
            Base.of(base),
            parts=(inner,),
            recorded=inner.recorded,
        )
        self.inner, self._view, self._renamed = inner, view, layout.renamed
        self._converted = {name: c for c in layout.converted for name in c.sources}
        self._lock = Lock()
        self._groups = lru_cache(_KEPT)(self._revert)

    def __reduce__(self) -> tuple[type["Reverted"], tuple[Summand, Loaded]]:
        """Made anew, without what is in memory."""
        return Reverted, (self.inner, self._view)

    def changes(self, name: str) -> bool:
        return any(self.inner.changes(there) for there in self._places(name))

    def compute(self, name: str, rows: slice | None, dtype: "torch.dtype") -> "Tensor":
        """The change of one tensor of a file."""
        if name in self._renamed:
            return self.inner.compute(self._renamed[name], rows, dtype)
        with self._lock:  # each of several threads would else make the same group
            group = self._groups(self._converted[name].sources, dtype)
        return rows_of(group[name], rows)

    def made_of(self, name: str) -> Sequence[tuple[Lazy, str]]:
        return [(self.inner, there) for there in self._places(name) if self.inner.changes(there)]

    def in_rows(self, name: str) -> bool:
        """Whether it is in the file as it is in the network."""
        return super().in_rows(name) and name in self._renamed

    def own_bytes(self, name: str) -> int:
        specs = self._converted[name].targets.values() if name in self._converted else ()
        return super().own_bytes(name) + sum(_KEPT * spec.numel * torch.float32.itemsize for spec in specs)

    def _places(self, name: str) -> Sequence[str]:
        if name in self._renamed:
            return [self._renamed[name]]
        return list(self._converted[name].targets) if name in self._converted else []

    def _revert(self, sources: tuple[str, ...], dtype: "torch.dtype") -> "dict[str, Tensor]":
        """What a change of the network is in all tensors of a file that are converted together."""
        conversion = self._converted[sources[0]]
        changes = {
            name: self.inner.compute(name, None, dtype)
            if self.inner.changes(name)
            else torch.zeros(spec.shape, dtype=dtype)
            for name, spec in conversion.targets.items()
        }
        return conversion.revert(changes)


def place(contents: Contents, base: Weights) -> tuple[Contents, Loaded | None]:
    """The contents under names that can be looked up, and the view of the base that they are looked up in.

    The names of an adapter are those of the network. Where the base has others, and a config.json that
    transformers knows, they are matched as transformers does when it loads the files.

    Returns: no view where they are to be looked up in the base itself.
    """
    contents = choose_component(contents, base, _log.warning)
    network = None if is_found(contents, base) else network_of(base)
    if network is not None:
        view = _load(base)
        for named in (contents, _as_loaded(contents, network)):
            if has_layers(named, view):
                return named, view
    return contents, None


def renamed(contents: Contents, view: Loaded) -> Contents:
    """Fitted contents under the names of the files, where all tensors are stored as the network has them."""
    names = {there: name for name, there in view.layout.renamed.items()}
    base = view.base
    specs = computed_specs(base)
    return replace(contents, pieces={names[name]: p for name, p in contents.pieces.items()}, specs=specs)


def _as_loaded(contents: Contents, network: Network) -> Contents:
    """The contents under the network's names, of an adapter that has those of older files."""
    unknown = TensorSpec((1,), torch.float32)
    layout = network.layout({name: contents.specs.get(name, unknown) for name in contents.pieces})
    return contents.renamed({name: layout.renamed.get(name, name) for name in contents.pieces})
