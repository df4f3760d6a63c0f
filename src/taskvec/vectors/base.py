"""Which base a direction belongs to. Directions of different bases do not mix."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from taskvec.errors import BaseMismatch
from taskvec.weights import Weights
from taskvec.weights.matched import renamed


@dataclass(frozen=True, eq=False)
class Base:
    """A base by its weights, or by what a file recorded of it.

    Attributes:
        ref: what it was called; for messages and provenance.
        recorded: the fingerprint from a file; ``None`` if the file has none.
        weights: the weights themselves where they are at hand.
        unbound: whether it is any base that the names and shapes fit, as for adapters, which record none.
        names: name in a direction -> name in this base, for one that was brought to other names.
    """

    ref: str | None
    recorded: str | None = None
    weights: Weights | None = None
    unbound: bool = False
    names: Mapping[str, str] = field(default_factory=dict)

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
        """Whether the other base is this one but for names."""
        if other.weights is None or not self.names or self.fingerprint() is None:
            return False
        names = {name: there for name, there in self.names.items() if name in other.weights}
        return renamed(other.weights, names).fingerprint() == self.fingerprint()

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
            f"{where}: base {other}, expected {first}; vectors of different bases do not mix unless "
            "allow_other_base (--allow-other-base) says so"
        )
    return first if first.weights is not None else other
