"""How often a rule reads a model, counted by letting it merge a made-up one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from taskvec.later import torch
from taskvec.rules import Rule
from taskvec.vectors import TaskVector, combine
from taskvec.vectors.combining import Combined
from taskvec.vectors.delta import Delta
from taskvec.vectors.directions import Scaled
from taskvec.weights import TensorSpec, Weights, open_weights

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 1 << 20
"""Of the made-up tensors: too many for shortcuts, and so many that a sample does not count as a pass."""


class Passes(NamedTuple):
    """How often an edit reads its inputs.

    Attributes:
        all: in all.
        ahead: before the first tensor can be made.
    """

    all: int = 1
    ahead: int = 0


def count_passes(*vectors: Delta) -> Passes:
    """How often the rules behind vectors read their inputs, measuring included."""
    counts = [Passes()]
    for source in {source for vector in vectors for source in vector.parts}:
        if isinstance(source, Scaled):
            counts.append(count_passes(source.delta))
        if isinstance(source, Combined):
            counts.append(_rehearse(source.rule, source.settings, len(source.vectors), list(source.specs)))
    return most(counts)


def most(counts: Sequence[Passes]) -> Passes:
    """Those of edits that are made together."""
    return Passes(max(each.all for each in counts), max(each.ahead for each in counts))


def _rehearse(rule: Rule, params: Mapping[str, Any], tasks: int, names: Sequence[str]) -> Passes:
    """The passes of a rule over a made-up model of these names, of which two tensors have deltas.

    What is read of the second counts; into the first, rules may look once more to see what is there.
    """
    if rule.measure_model is None and rule.measure_tensor is None:
        return Passes()
    first, second, *rest = dict.fromkeys([*names, "rehearsal", "another"])
    base = open_weights(
        {first: torch.zeros(ROWS, 1), second: torch.zeros(ROWS, 1)} | {n: torch.zeros(1) for n in rest}
    )
    deltas = [_MadeUp(task, (first, second)) for task in range(tasks)]
    stats = [open_weights({first: torch.ones(ROWS, 1), second: torch.ones(ROWS, 1)})] * tasks
    made = combine(
        rule,
        [TaskVector.from_tensors(delta, base) for delta in deltas],
        stats=stats if "_stats" in rule.keywords else None,
        **params,
    )
    made.prepare()
    ahead = deltas[0].rows[second]
    made.read(second)
    return Passes(deltas[0].rows[second] // ROWS, ahead // ROWS)


class _MadeUp(Weights):
    """Deltas that count how many rows are read of them."""

    def __init__(self, task: int, names: Sequence[str]) -> None:
        specs = dict.fromkeys(names, TensorSpec((ROWS, 1), torch.float32))
        super().__init__(f"rehearsal {task}", specs, ("rehearsal", task))
        self.rows = dict.fromkeys(names, 0)
        self._values = torch.randn(ROWS, 1, generator=torch.Generator().manual_seed(task))

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        values = self._values if rows is None else self._values[rows]
        self.rows[name] += len(values)
        return values
