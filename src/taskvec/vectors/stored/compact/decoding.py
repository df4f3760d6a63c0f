"""A compact file as the tensors that were encoded."""

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

from taskvec.errors import CorruptFile
from taskvec.vectors.info import CompactInfo
from taskvec.vectors.stored.compact.form import PLAIN, ContradictoryParts, Form, Parts, part_name
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.blocks import block_size, rows_of
from taskvec.weights.dtypes import compute_code, name_of
from taskvec.weights.lazy import Lazy

if TYPE_CHECKING:
    from torch import Tensor

_COPIES = 10
"""Of a block, while it is decoded: int64 places and their like."""


class Decoded(Weights):
    """The tensors of a compact file, decoded as they are read, by rows as well as whole.

    Raises: CorruptFile unless the file holds just the parts that its header speaks of.
    """

    def __init__(self, weights: Weights, form: Form, info: CompactInfo) -> None:
        coded = {name: _parts(weights, form, name, shape) for name, shape in info.coded.items()}
        claimed = {part_name(name, part) for name, parts in coded.items() for part in parts.specs}
        _check_stored(weights, info, claimed)
        super().__init__(
            weights.ref,
            {name: _spec(weights, name, info.coded.get(name), coded.get(name)) for name in info.errors},
            weights.identity,
            parts=[weights],
        )
        self.stored, self._coded = weights, coded
        self.form, self.info = form, info

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        shape = self._specs[name].shape
        if rows is not None and rows.step not in (None, 1):
            return rows_of(self._read(name, None), rows)
        if name not in self._coded:
            return self.stored.read(name, rows).to(self._specs[name].dtype)
        try:
            return self.form.decode(self._coded[name], shape, rows)
        except ContradictoryParts as error:
            raise CorruptFile(f"{self.ref}: {name!r}: {error}; {_AGAIN}") from None

    def pair(self, name: str) -> "tuple[Tensor, Tensor]":
        """The two factors that a tensor of low rank is stored as."""
        parts = self._coded[name]
        return parts.read("left", None), parts.read("right", None)

    def made_of(self, name: str) -> Sequence[tuple[Lazy, str]]:
        parts = self._coded[name].specs if name in self._coded else [PLAIN]
        return [(self.stored, part_name(name, part)) for part in parts]

    def own_bytes(self, name: str) -> int:
        """Bytes that decoding a block takes, at most."""
        if name not in self._coded:
            return super().own_bytes(name)
        spec, parts = self.spec(name), self._coded[name].specs
        right = parts["right"].numel if "right" in parts else 0  # of low rank, which every block takes whole
        return (_COPIES * block_size(spec.shape) + 2 * right) * spec.itemsize


def _parts(weights: Weights, form: Form, name: str, shape: tuple[int, ...]) -> Parts:
    """The parts of one tensor.

    Raises: CorruptFile if one is missing, or is not what it has to be.
    """
    names = {part: part_name(name, part) for part in form.parts if part_name(name, part) in weights}
    stored = {part: weights.spec(there) for part, there in names.items()}
    try:
        wanted = form.layout(shape, stored)
        missing = next((part for part in wanted if part not in stored), None)
    except KeyError as error:
        missing = error.args[0]
    except ContradictoryParts as error:
        raise CorruptFile(f"{weights.ref}: {name!r}: {error}; {_AGAIN}") from None
    if missing is not None:
        raise CorruptFile(f"{weights.ref}: {part_name(name, missing)!r} is missing; {_AGAIN}")
    for part, spec in wanted.items():
        if stored[part] != spec:
            raise CorruptFile(
                f"{weights.ref}: {names[part]!r} is {_words(stored[part])}, expected {_words(spec)} "
                f"for a tensor of shape {shape}; {_AGAIN}"
            )
    return Parts(weights, name, wanted)


def _check_stored(weights: Weights, info: CompactInfo, claimed: Set[str]) -> None:
    """Every tensor of the file is a part of one, or one that is stored as it is."""
    plain = info.errors.keys() - info.coded.keys()
    for name in [*info.coded, *plain]:
        if name not in info.errors or (name in plain and name not in weights):
            raise CorruptFile(f"{weights.ref}: {name!r} is missing, expected it as in the header; {_AGAIN}")
    for name in weights:
        if name not in claimed and name not in plain:
            raise CorruptFile(f"{weights.ref}: {name!r} found, expected only what the header lists; {_AGAIN}")
        if name in plain and not weights.spec(name).editable:
            dtype = name_of(weights.spec(name).code)
            raise CorruptFile(f"{weights.ref}: {name!r} has dtype {dtype}, expected floating point; {_AGAIN}")


def _spec(weights: Weights, name: str, shape: tuple[int, ...] | None, parts: Parts | None) -> TensorSpec:
    """The shape of a tensor, and the precision that it is decoded to."""
    if shape is None or parts is None:
        spec = weights.spec(name)
        return TensorSpec(spec.shape, compute_code(spec.code))
    wide = any(spec.code == "F64" for spec in parts.specs.values())
    return TensorSpec(shape, "F64" if wide else "F32")


def _words(spec: TensorSpec) -> str:
    return f"{name_of(spec.code)} {spec.shape}"


_AGAIN = "download or write it again"
