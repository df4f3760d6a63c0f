"""Which tensors of a task vector go into an adapter, and which are left out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from taskvec.errors import InputError, and_more
from taskvec.names import select_names
from taskvec.vectors.delta import Delta
from taskvec.vectors.lora.adaptable import Adaptable, adaptable
from taskvec.vectors.lora.adapter import Adapter
from taskvec.vectors.lora.contents import Product
from taskvec.vectors.lora.fit import orientations
from taskvec.vectors.lora.sums import Factors, factors_of
from taskvec.vectors.lora.targets import Form, Target, orient, targets_by_name
from taskvec.vectors.stored.files import is_changed
from taskvec.weights.lazy import Lazy

NAMES_OF_FILE = (
    "layers are called as in the checkpoint, and PEFT looks for them in the network, where names can differ: "
    "install transformers and keep config.json beside the base for those of the network"
)


@dataclass(frozen=True)
class Selection:
    """What an adapter is to hold of a task vector.

    Attributes:
        targets: the matrices.
        factors: of those, by name, that are sums of products of adapters' factors.
        left_out: other tensors that the vector changes.
        network: that the adapter is for, where it is known.
    """

    targets: Sequence[Target]
    factors: Mapping[str, Factors]
    left_out: Sequence[str]
    network: Adaptable | None

    @property
    def modules(self) -> Mapping[str, str]:
        """What the layer of each target is called in the file of an adapter, by the target's place."""
        if self.network is None:
            return {target.place: target.module for target in self.targets}
        return self.network.stored_names(self.targets)

    @property
    def notes(self) -> Iterator[str]:
        """What the user has to know of the adapter."""
        if self.network is None and not all(target.name in self.factors for target in self.targets):
            yield NAMES_OF_FILE
        wrapped = [target.place for target in self.targets if target.form == "parameter"]
        if wrapped:
            yield (
                f"{wrapped[0]!r}{and_more(wrapped)} is written for target_parameters of PEFT, which other "
                "programs may not read; leave such matrices out with only (--only)"
            )


def select(vector: Delta, only: str, *, exact: bool = False) -> Selection:
    """What of a vector goes into an adapter.

    Args:
        only: which matrices, as for ``select_names``.
        exact: refuse what is no sum of products of factors.

    Raises: InputError.
    """
    _check_shaped(vector)
    changed = [name for name in vector if is_changed(vector, name)]
    factors = {name: held for name in changed if (held := factors_of(vector, name)) is not None}
    network = adaptable(vector)
    if network is not None:
        targets = [target for target in network.targets(vector.specs) if network.finds(target)]
    else:
        apart = _modules(vector)
        found_by_name = (target for target in targets_by_name(vector) if target.name not in factors)
        targets = [target for target in found_by_name if not target.name.startswith(apart)]
    found = {source for target in targets for source in target.sources}
    targets += [
        _target_of(vector, name, held, network) for name, held in factors.items() if name not in found
    ]
    if not targets:
        raise InputError(
            f"{vector.ref}: has no matrix of a linear layer, expected some to make an adapter of"
        )
    chosen = _chosen(vector, targets, only, set(changed))
    if network is None:
        known = orientations({name: spec.shape for name, spec in vector.specs.items()})
        chosen = [t if t.name in factors else orient(vector, t, known) for t in chosen]
    taken = {source for target in chosen for source in target.sources}
    left_out = [name for name in changed if name not in taken]
    if exact:
        _check_exact(vector, [name for name in changed if only == "all" or name in taken], factors)
    return Selection(chosen, factors, left_out, network)


def _modules(vector: Delta) -> tuple[str, ...]:
    """What the names of modules beside the network begin with, where no adapter reaches.

    Raises: InputError if the network is a module itself.
    """
    parts = () if vector.base.weights is None else vector.base.weights.layout
    prefixes = [part.prefix for part in parts if part.prefix]
    if prefixes and len(prefixes) == len(parts):
        raise InputError(
            f"{vector.ref}: the model lies in the folders of its modules, where no adapter is looked for; "
            f"take the difference of one of them: {vector.base.ref}/{parts[0].folder}"
        )
    return tuple(prefixes)


def _chosen(vector: Delta, targets: Sequence[Target], only: str, changed: set[str]) -> list[Target]:
    """The targets that are asked for and change something."""
    sources = [source for target in targets for source in target.sources]
    wanted = set(sources if only == "all" else select_names(sources, only, vector.ref))
    chosen = [target for target in targets if wanted.issuperset(target.sources)]
    chosen = [target for target in chosen if not changed.isdisjoint(target.sources)]
    if not chosen:
        raise InputError(f"{vector.ref}: changes none of {len(targets)} linear layers that were asked for")
    return chosen


def _target_of(vector: Delta, name: str, factors: Factors, network: Adaptable | None) -> Target:
    """The target of factors of adapters, by the name of the network or else of the first of them."""
    [first, *_] = factors.parts
    place = f"{first.layer.module}.{name.rpartition('.')[2]}"
    if network is not None:
        place = network.layout.renamed.get(name, place)
    form: Form = "linear"
    if first.layer.embedding:
        form = "embedding"
    elif len(first.inputs) > 1:
        form = "convolution"
    piece = first.adapter.contents.pieces[name]
    turned = isinstance(piece, Product) and piece.transposed
    return Target(name, (name,), place, vector.specs[name], form, turned)


def _check_shaped(vector: Delta) -> None:
    """Refuse adapters that change tensors whose shape only their base tells, where that is not at hand."""
    for adapter in _adapters_in(vector) if vector.base.unbound else ():
        unknown = [name for name in adapter.contents.pieces if name not in adapter.specs]
        if unknown:
            raise InputError(
                f"{adapter.ref}: the shape of {unknown[0]!r}{and_more(unknown)} is unknown without the "
                "base, expected it too: with_base(base), or base: in the recipe"
            )


def _adapters_in(part: Lazy) -> Iterator[Adapter]:
    if isinstance(part, Adapter):
        yield part
    for inner in part.parts:
        yield from _adapters_in(inner)


def _check_exact(vector: Delta, names: Sequence[str], factors: Mapping[str, Factors]) -> None:
    others = [name for name in names if name not in factors]
    if others:
        raise InputError(
            f"{vector.ref}: {others[0]!r} is not changed by factors alone{and_more(others)}, expected a "
            "weighted sum of plain LoRA adapters; give the rank of an approximation: rank (--rank)"
        )
