"""How often a rule goes through a model, found by letting it go through a made-up one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from taskvec.rules import Rule
from taskvec.vectors import TaskVector, combine
from taskvec.weights import TensorSpec, Weights, open_weights

ROWS = 1 << 18
"""Of the made-up tensors: enough that a rule takes no shortcut, and that a sample of them is no pass."""


def passes(rule: Rule, params: Mapping[str, Any], tasks: int, names: Sequence[str]) -> int:
    """How often a rule goes through the whole model: once to combine, and as often as it does to prepare.

    Found by a rehearsal with a model of these names, of which two tensors have deltas. The rule is asked for
    the first; what it reads of the second it reads to prepare.

    Raises: InputError for parameters that do not fit.
    """
    rule.settings(params, tasks)
    if rule.prepare is None or len(names) < 2:
        return 1
    first, second, *rest = names
    base = open_weights(
        {first: torch.zeros(ROWS, 1), second: torch.zeros(ROWS, 1)} | {n: torch.zeros(1) for n in rest}
    )
    deltas = [_MadeUp(task, (first, second)) for task in range(tasks)]
    stats = [open_weights({first: torch.ones(ROWS, 1), second: torch.ones(ROWS, 1)})] * tasks
    made = combine(
        rule,
        [TaskVector.from_tensors(one, base) for one in deltas],
        stats=stats if "_stats" in rule.keywords else None,
        **params,
    )
    made.read(first)
    return 1 + round(deltas[0].rows[second] / ROWS)


class _MadeUp(Weights):
    """Deltas that count how many rows are read of them."""

    def __init__(self, task: int, names: Sequence[str]) -> None:
        specs = dict.fromkeys(names, TensorSpec((ROWS, 1), torch.float32))
        super().__init__(f"rehearsal {task}", specs, ("rehearsal", task))
        self.rows = dict.fromkeys(names, 0)
        self._values = torch.linspace(-1, 1 + task, ROWS)[:, None]

    def _read(self, name: str, rows: slice | None) -> Tensor:
        found = self._values if rows is None else self._values[rows]
        self.rows[name] += len(found)
        return found
