"""What a search is scored by: options, and the score that they make."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from taskvec.errors import InputError

if TYPE_CHECKING:
    from taskvec.searching.objective import Objective, Score


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What candidates are scored by; flattened into options (``flattened``)."""

    score: Annotated[tuple[str, ...], Parameter(name=["--score"], negative=())] = ()
    """`module:function` or `file.py:function`, which is given the edited weights, a mapping from names to
    tensors, and returns a number or a mapping of named ones; more is better."""

    def opened(self) -> "tuple[Score, Objective]":
        """The score and what of it is maximized. Raises: InputError."""
        from taskvec.code import named_callable
        from taskvec.searching.objective import Objective
        from taskvec.searching.scores import FunctionScore

        if len(self.score) != 1:
            raise InputError(f"--score: {len(self.score)} given, expected what candidates are scored by")
        return FunctionScore(named_callable(self.score[0], "--score"), self.score[0]), Objective()
