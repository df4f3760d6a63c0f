"""Which base a direction belongs to. Directions of different bases do not mix."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from taskvec.errors import BaseMismatch
from taskvec.weights import Weights
from taskvec.weights.matched import named_as, renamed


@dataclass(frozen=True, eq=False)
class Base:
    """A base by its weights, or by what a file recorded of it.

    Attributes:
        ref: what it was called; for messages and provenance.
        recorded: the fingerprint from a file; ``None`` if the file has none.
        weights: the weights themselves where they are at hand.
        unbound: whether it is any base that the names and shapes fit, as for adapters, which record none.
        names: name in a direction -> name in this base, for one that was brought to other names.
        layout: names and shapes of a direction before its tensors were stacked, split or turned.
    """

    ref: str | None
    recorded: str | None = None
    weights: Weights | None = None
    unbound: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    layout: Weights | None = None

    @classmethod
    def of(cls, weights: Weights | None) -> "Base":
        """The base that ``weights`` are; an unknown one for ``None``."""
        return cls(None) if weights is None else cls(weights.ref, weights=weights)

    def fingerprint(self) -> str | None:
        """As recorded, or computed from the weights; ``None`` for an unknown base."""
        return self.weights.fingerprint() if self.weights is not None else self.recorded

    def same_as(self, other: "Base") -> bool:
        """Whether both are equal, or both unknown. Reads data only if it must."""
        if self.unbound or other.unbound:
            return self.unbound and other.unbound
        mine, others = self.weights, other.weights
        if mine is not None and others is not None and mine.identity == others.identity:
            return True
        return self.fingerprint() == other.fingerprint() or self._is_renamed(other) or other._is_renamed(self)

    def _is_renamed(self, other: "Base") -> bool:
        """Whether the other base is this one but for names and layout."""
        if other.weights is None or self.fingerprint() is None:
            return False
        if self.layout is not None:
            return named_as(self.layout, other.weights).weights.fingerprint() == self.fingerprint()
        names = {name: there for name, there in self.names.items() if name in other.weights}
        return bool(names) and renamed(other.weights, names).fingerprint() == self.fingerprint()

    def describe_layout(self) -> str:
        """Why a base may be the right one though its fingerprint is another; for messages."""
        if self.layout is None:
            return ""
        return (
            "its tensors are stacked, split or turned here, so that the fingerprint of the same base may "
            "differ; "
        )

    def __str__(self) -> str:
        return f"{self.ref or 'unknown'} (fingerprint {self.fingerprint() or 'unknown'})"


def check_bound(where: str, base: Base) -> None:
    """Refuse to store what belongs to any base that it fits: it would lose what it can be found by.

    Raises: BaseMismatch.
    """
    if base.unbound:
        raise BaseMismatch(
            f"{where}: an adapter, which records no base, cannot be stored as a vector before it has one; "
            "make it one of its base first, with with_base(base) or: taskvec diff BASE ADAPTER -o VECTOR"
        )


_OF_TWO_NAMINGS = "; those of one model under two sets of names can, after with_base(base) on each"
"""Advice where no base is at hand."""


def shared_base(where: str, first: Base, other: Base) -> Base:
    """The base of both, with its weights if either has them.

    Raises: BaseMismatch, with both fingerprints.
    """
    if first.unbound != other.unbound:
        raise BaseMismatch(
            f"{where}: an adapter, which records no base, meets vectors of one; make it one of theirs first, "
            "with with_base(base) or: taskvec diff BASE ADAPTER -o VECTOR"
        )
    if first is not other and not first.same_as(other):
        raise BaseMismatch(
            f"{where}: base {other}, expected {first}; {other.describe_layout()}vectors of different bases "
            "do not mix unless allow_other_base (--allow-other-base) says so"
            f"{_OF_TWO_NAMINGS if first.weights is None else ''}"
        )
    return first if first.weights is not None else other
