"""Scores of candidates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from taskvec.edits.merge import Merge
from taskvec.searching.objective import Figures, Portion

Judge = Callable[[Mapping[str, Tensor]], float | Mapping[str, float]]


@dataclass(frozen=True)
class FunctionScore:
    """A function of the edited weights, a lazy mapping from names to tensors: a number, or named ones."""

    judge: Judge
    name: str

    parts = False

    @property
    def key(self) -> Mapping[str, object]:
        """Its name."""
        return {"function": self.name}

    def lower_is_better(self, figure: str) -> bool:
        """Never: more is better."""
        return False

    def evaluate(self, merge: Merge, part: Portion, scratch: Path) -> Figures:
        """What the function says of a candidate."""
        found = self.judge(merge.weights)
        return dict(found) if isinstance(found, Mapping) else {"score": float(found)}
