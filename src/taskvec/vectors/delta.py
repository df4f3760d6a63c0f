"""The one protocol of everything that is a direction in weight space."""

from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING

from taskvec.errors import KeyMismatch
from taskvec.later import torch
from taskvec.vectors.base import Base
from taskvec.vectors.info import BaseInfo, VectorInfo
from taskvec.vectors.linear import Operand, total
from taskvec.weights import Direction, TensorSpec, Weights
from taskvec.weights.blocks import rows_of
from taskvec.weights.dtypes import compute_code
from taskvec.weights.lazy import Lazy
from taskvec.weights.picked import Grown

if TYPE_CHECKING:
    from torch import Tensor

_serial = count()


class Delta(Lazy, Direction, Mapping[str, "Tensor"]):
    """A direction in weight space, read tensor by tensor: a task vector, or what task vectors are sums of.

    Whatever measures, stores, combines or applies directions knows nothing else of them.

    Attributes:
        ref: opens error messages.
        identity: what equality goes by: equal for two that are known to be the same direction.
        specs: shape, and dtype of computing, of every tensor, changed or not.
        base: the weights that it leads away from.
        recorded: provenance, where a file or a maker said it.
    """

    def __init__(
        self,
        ref: str,
        identity: Hashable,
        specs: Mapping[str, TensorSpec],
        base: Base,
        *,
        parts: Sequence[Lazy] = (),
        recorded: VectorInfo | None = None,
    ) -> None:
        self.ref = ref
        self.identity = identity
        self.specs = specs
        self.base = base
        self.parts = tuple(parts)
        self.recorded = recorded
        # Sums run over summands in this order, however they were written: a + b is b + a to the bit.
        self.order = (ref, next(_serial))

    @abstractmethod
    def terms_at(self, name: str, coefficient: float = 1.0) -> list["Term"]:
        """What ``coefficient`` times the direction is at one tensor, as a linear form; empty for zero."""

    @abstractmethod
    def bind(self, base: Weights, *, drop: bool = False) -> "Delta":
        """The same direction among the tensors of ``base``, for one that records no base itself.

        Args:
            drop: leave out tensors that ``base`` lacks.
        """

    def room(self, base: Weights) -> Weights:
        """The weights that the direction can be added to: ``base``, with the rows that it adds to it.

        An adapter may come with tokens of its own. Their rows are no direction: they are there whole,
        whatever its coefficient.

        Raises: KeyMismatch where two directions add rows.
        """
        known = self.base.weights
        rooms = [part.room(base) for part in self.parts if isinstance(part, Delta)]
        if isinstance(known, Grown) and known.before.identity == base.identity:
            rooms.append(known)
        grown = {room.identity: room for room in rooms if room is not base}
        if len(grown) > 1:
            raise KeyMismatch(
                f"{self.ref}: two adapters add rows to the vocabulary of {base.ref}, expected one at most; "
                "apply each by itself, and merge the results as models with vocab: union"
            )
        return next(iter(grown.values()), base)

    def read(self, name: str, rows: slice | None = None, dtype: "torch.dtype | None" = None) -> "Tensor":
        """The delta of one tensor, or of some of its rows, as a new tensor.

        Args:
            dtype: to compute in.

        Raises: KeyError for a name that is not there.
        """
        return self.evaluate(Reading(name, rows, dtype or self.specs[name].dtype))

    def evaluate(self, reading: "Reading") -> "Tensor":
        """The delta of what is being read."""
        terms = self.terms_at(reading.name)
        if terms:
            return total(reading.operands(terms), reading.dtype)
        zeros = torch.zeros((), dtype=reading.dtype).expand(self.specs[reading.name].shape)
        return rows_of(zeros, reading.rows).clone()

    @property
    def info(self) -> VectorInfo:
        """Provenance. A combination records what it is made of. Fingerprints an unread base."""
        recorded = self.recorded or VectorInfo(tuned=self.ref)
        base = BaseInfo(ref=self.base.ref, fingerprint=self.base.fingerprint())
        return recorded.model_copy(update={"base": base})

    def __getitem__(self, name: str) -> "Tensor":
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Delta) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)


class Summand(Delta):
    """A direction that is no sum of others: what linear forms have coefficients of."""

    ends: tuple[Weights, Weights] | None = None
    """The weights it leads from and to, where it is the difference of two."""
    held: Weights | None = None
    """The weights that hold its entries, where it is no more than those."""

    @abstractmethod
    def compute(self, name: str, rows: slice | None, dtype: "torch.dtype") -> "Tensor":
        """The direction of one tensor. Not to be written into: it may be memory of a file."""

    def changes(self, name: str) -> bool:
        """Whether the direction of ``name`` can be other than zero."""
        return name in self.specs

    def terms_at(self, name: str, coefficient: float = 1.0) -> list["Term"]:
        """Itself, where it can be other than zero."""
        return [(self, coefficient)] if self.changes(name) else []

    def bind(self, base: Weights, *, drop: bool = False) -> "Summand":
        """Itself: it records its base."""
        return self

    def own_bytes(self, name: str) -> int:
        """Bytes of a block twice: before and after it is computed."""
        spec = self.specs[name]
        return 2 * spec.itemsize * self.block_size(name, spec.shape)


Term = tuple[Summand, float]


class Reading:
    """Some rows of one tensor, in a precision; weights that several differences start from are read once.

    Attributes:
        name: of the tensor.
        rows: slice of its rows; ``None`` for all.
        dtype: of computing, float32 or float64.
    """

    def __init__(
        self,
        name: str,
        rows: slice | None,
        dtype: "torch.dtype",
        known: "tuple[Weights, Tensor] | None" = None,
    ) -> None:
        """Begin to read.

        Args:
            known: weights of which these rows are read already, and what was read.
        """
        self.name, self.rows, self.dtype = name, rows, dtype
        self._starts: dict[Hashable, Tensor] = {} if known is None else {known[0].identity: known[1]}

    def operands(self, terms: Sequence[Term]) -> list[Operand]:
        """What is to be added up, read or computed."""
        return [self._operand(*term) for term in terms]

    def joined(self, terms: Sequence[Term]) -> Operand | None:
        """One operand of factor 1 that a form comes to; ``None`` for zero."""
        if not terms:
            return None
        if len(terms) == 1 and terms[0][1] == 1.0:
            return self._operand(*terms[0])
        return Operand(1.0, total(self.operands(terms), self.dtype), None)

    def _operand(self, summand: Summand, factor: float) -> Operand:
        if summand.ends is None:
            return Operand(factor, summand.compute(self.name, self.rows, self.dtype), None)
        start, end = summand.ends
        return Operand(factor, end.read(self.name, self.rows), self._start(start))

    def _start(self, weights: Weights) -> "Tensor":
        if weights.identity not in self._starts:
            self._starts[weights.identity] = weights.read(self.name, self.rows)
        return self._starts[weights.identity]


def computing(spec: TensorSpec) -> TensorSpec:
    """The same shape in the precision that arithmetic is done in."""
    return TensorSpec(spec.shape, compute_code(spec.code))


def computed_specs(base: Weights) -> dict[str, TensorSpec]:
    """Of every tensor of a base that an edit may change, as arithmetic is done with it."""
    return {name: computing(spec) for name, spec in base.specs.items() if spec.editable}


def join_specs(where: str, specs: Mapping[str, TensorSpec], other: Delta) -> Mapping[str, TensorSpec]:
    """The tensors of some specs, which ``where`` names, and of a direction.

    Raises: KeyMismatch if one has another shape in the two.
    """
    if specs is other.specs:
        return specs
    joined = dict(specs)
    for name, spec in other.specs.items():
        known = joined.setdefault(name, spec)
        if known.shape != spec.shape:
            raise KeyMismatch(
                f"{other.ref}: {name!r} has shape {spec.shape}, expected {known.shape} as in {where}"
            )
        if spec.code == "F64":
            joined[name] = spec
    return joined
