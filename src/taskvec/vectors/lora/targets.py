"""The tensors of a task vector that an adapter can hold, each with the layer that PEFT adapts for it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from taskvec.errors import InputError
from taskvec.names import is_lookup
from taskvec.vectors.delta import Delta
from taskvec.vectors.lora.fit import bias_of, is_transposed, kind
from taskvec.weights.blocks import TensorSpec
from taskvec.weights.network import Conversion

if TYPE_CHECKING:
    from torch import Tensor

Form = Literal["linear", "embedding", "convolution", "parameter"]


@dataclass(frozen=True)
class Target:
    """A matrix, or a stack of matrices, that an adapter can change.

    Attributes:
        name: of the tensor in the vector, or in the network where that has several of them in one.
        sources: the tensors of the vector that it is made of.
        place: its name in the network.
        spec: shape, and dtype of computing; (experts, …) for a stack.
        form: what PEFT makes of it; a ``parameter`` is wrapped by name, whatever its layer is.
        turned: whether a matrix is stored as (in, out).
        conversion: how its sources become the tensor of the network, where that is another.
    """

    name: str
    sources: tuple[str, ...]
    place: str
    spec: TensorSpec
    form: Form = "linear"
    turned: bool = False
    conversion: Conversion | None = field(default=None, compare=False)

    @property
    def module(self) -> str:
        """The layer that PEFT adapts."""
        return self.place.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        """What the layer calls it."""
        return self.place.rpartition(".")[2]

    @property
    def address(self) -> str:
        """What PEFT is told to adapt."""
        return self.place if self.form == "parameter" else self.module

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of each matrix, as stored."""
        if self.form == "convolution":
            return self.spec.shape[0], math.prod(self.spec.shape[1:])
        rows, columns = self.spec.shape[-2:]
        return rows, columns

    @property
    def experts(self) -> int:
        """How many matrices it is."""
        return self.spec.shape[0] if self.form == "parameter" and len(self.spec.shape) == 3 else 1

    def read(self, vector: Delta) -> "Tensor":
        """The delta of the tensor, whole, as the network stores it."""
        if self.conversion is None:
            return vector.read(self.sources[0])
        return self.conversion.convert({name: vector.read(name) for name in self.sources})[self.place]

    def working_bytes(self, vector: Delta) -> int:
        """Bytes that reading it takes, about."""
        read = sum(vector.specs[name].nbytes for name in self.sources) if self.conversion else 0
        return read + max(vector.working_bytes(name) for name in self.sources)


def targets_by_name(vector: Delta) -> Iterator[Target]:
    """The matrices of linear layers, as far as names and biases tell."""
    tied = set() if vector.base.weights is None else set(vector.base.weights.tied.values())
    for name in vector:
        if _looks_linear(vector, name) and name not in tied:
            yield Target(name, (name,), name, vector.specs[name])


def orient(vector: Delta, target: Target, known: Mapping[str, set[bool]]) -> Target:
    """A target that was found by name, with what biases tell of its orientation.

    Args:
        known: ``orientations`` of the vector's tensors.

    Raises: InputError where nothing tells.
    """
    if bias_of(target.name) not in vector.specs:  # only layers with a bias are ever stored as (in, out)
        return target
    turned = is_transposed(target.name, known, default=False)
    if turned is None:
        raise InputError(
            f"{vector.ref}: {target.name!r}: layers of the model have both orientations, and none of this "
            "kind tells its own, expected one with a bias; leave it out with only (--only)"
        )
    return replace(target, turned=turned)


def _looks_linear(vector: Delta, name: str) -> bool:
    shape = vector.specs[name].shape
    if len(shape) != 2 or 0 in shape or not name.endswith(".weight") or name.count(".") < 1:
        return False
    return bias_of(name) in vector.specs or not is_lookup(kind(name))
