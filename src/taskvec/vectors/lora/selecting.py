"""Which tensors of a task vector go into an adapter, and which are left out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from taskvec.errors import InputError, and_more
from taskvec.names import select_names
from taskvec.vectors.delta import Delta
from taskvec.vectors.lora.adaptable import Adaptable, adaptable
from taskvec.vectors.lora.adapter import Adapter
from taskvec.vectors.lora.factoring import AdapterPart, Factors, StoredPart, factors_of
from taskvec.vectors.lora.fit import orientations
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
        out_of_reach: matrices of linear layers among those left out that PEFT cannot adapt.
    """

    targets: Sequence[Target]
    factors: Mapping[str, Factors]
    left_out: Sequence[str]
    network: Adaptable | None
    out_of_reach: Sequence[str] = ()

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
        if self.out_of_reach:
            yield (
                f"{self.out_of_reach[0]!r}{and_more(self.out_of_reach)} is left out: PEFT cannot adapt the "
                "layer by itself"
            )
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
    network = adaptable(vector)
    targets, factors = _find(vector, changed, network)
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
        plain = {source for target in chosen if target.name in factors for source in target.sources}
        asked = changed if only == "all" else [name for name in changed if name in taken]
        _check_exact(vector, [name for name in asked if name not in plain])
    found = {source for target in targets for source in target.sources}
    beyond = [name for name in left_out if name not in found and network and network.holds_matrix(name)]
    return Selection(chosen, factors, left_out, network, beyond)


def _modules(vector: Delta) -> tuple[str, ...]:
    """What the names of modules beside the network begin with, where no adapter reaches.

    Raises: InputError if the network is a module itself.
    """
    sites = () if vector.base.weights is None else vector.base.weights.sites
    prefixes = [site.prefix for site in sites if site.prefix]
    if prefixes and len(prefixes) == len(sites):
        raise InputError(
            f"{vector.ref}: the model lies in the folders of its modules, where no adapter is looked for; "
            f"take the difference of one of them: {vector.base.ref}/{sites[0].folder}"
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


def _find(
    vector: Delta, changed: Sequence[str], network: Adaptable | None
) -> tuple[list[Target], dict[str, Factors]]:
    """All tensors that an adapter can hold, and the factors of those that are products of some.

    Layers that the vector has as factors count whatever they are; embeddings and convolutions among them.
    """
    if network is not None:
        found = {t.name: t for t in network.targets(vector.specs) if network.finds(t)}
        known = {source for target in found.values() for source in target.sources}
    else:
        apart, known = _modules(vector), set()
        found = {t.name: t for t in targets_by_name(vector) if not t.name.startswith(apart)}
    held = {name: factors_of(vector, found[name]) for name in found if network is not None}
    factors = {name: product for name, product in held.items() if product is not None}
    places = {} if network is None else network.layout.renamed
    turns = orientations({name: spec.shape for name, spec in vector.specs.items()})
    for name in changed:
        target = Target(name, (name,), places.get(name, name), vector.specs[name])
        product = None if name in known else factors_of(vector, target)
        if network is None and product is not None and isinstance(product.parts[0], StoredPart):
            target = orient(vector, target, turns) if len(target.spec.shape) == 2 else target
            product = factors_of(vector, target)
        if product is not None:
            factors[name] = product
            found[name] = _as_factors(target, product, is_placed=name in places)
    return list(found.values()), factors


def _as_factors(target: Target, factors: Factors, *, is_placed: bool) -> Target:
    """A layer in the form that factors of it have; without a network as the first adapter calls it."""
    first = factors.parts[0]
    form: Form = "embedding" if factors.embeds else "convolution" if factors.filters else "linear"
    place = target.place
    if isinstance(first, AdapterPart) and not is_placed:
        place = f"{first.piece.layer.module}.{target.leaf}"
    return replace(target, place=place, form=form, turned=first.turned)


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


def _check_exact(vector: Delta, others: Sequence[str]) -> None:
    if others:
        raise InputError(
            f"{vector.ref}: {others[0]!r} is not changed by factors alone{and_more(others)}, expected a "
            "weighted sum of plain LoRA adapters; give the rank of an approximation: rank (--rank), of "
            "linear layers alone; or write a model"
        )
