"""Models made of other models' layers, put one after the other; and the zero that they may start from."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from taskvec.later import torch
from taskvec.weights import Weights
from taskvec.weights.blocks import rows_of
from taskvec.weights.change import Change
from taskvec.weights.lazy import Lazy

if TYPE_CHECKING:
    from torch import Tensor


class Origin(Weights):
    """A base of zeros, from which the task vector of a model is its weights.

    Integers are those of the model, as no edit changes them.
    """

    def __init__(self, model: Weights) -> None:
        super().__init__(
            "zero",
            model.specs,
            ("origin", model.identity),
            parts=[model],
            tied=model.tied,
        )
        self._model = model

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        spec = self._specs[name]
        if not spec.editable:
            return self._model.read(name, rows)
        zeros = torch.zeros((), dtype=spec.dtype).expand(spec.shape)
        return rows_of(zeros, rows)


class Joined(Weights):
    """Several sets of weights that have no tensor in common, as one.

    Args:
        taken: the tensors of each part that are seen; all, if nothing is said.
        ref: what messages call it; the names of all parts, if nothing is said.
    """

    def __init__(
        self,
        parts: Sequence[Weights],
        taken: Sequence[Iterable[str]] | None = None,
        ref: str = "",
    ) -> None:
        pairs = zip(parts, parts if taken is None else taken, strict=True)
        self._owner = {name: part for part, names in pairs for name in names}
        super().__init__(
            ref or " | ".join(dict.fromkeys(part.ref for part in parts)),
            {name: part.spec(name) for name, part in self._owner.items()},
            ("joined", *(part.identity for part in parts), *map(tuple, taken or ())),
            parts=parts,
            tied={
                alias: kept
                for part in parts
                for alias, kept in part.tied.items()
                if self._owner.get(kept) is part
            },
        )

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        return self._owner[name].read(name, rows)

    def read_with_change(self, name: str, rows: slice | None = None) -> "tuple[Tensor, Change | None]":
        """That of the part that has it."""
        return self._owner[name].read_with_change(name, rows)

    def array_with_change(self, name: str, rows: slice | None = None) -> "tuple[NDArray[Any], Change | None]":
        """That of the part that has it."""
        return self._owner[name].array_with_change(name, rows)

    def change_to(self, name: str, rows: slice | None, made: "Tensor") -> Change | None:
        """That of the part that has it."""
        return self._owner[name].change_to(name, rows, made)

    def made_of(self, name: str) -> Sequence[tuple[Lazy, str]]:
        """The part that has it."""
        return [(self._owner[self._stored_name(name)], name)]

    def own_bytes(self, name: str) -> int:
        """None: what was read is passed on."""
        return 0
