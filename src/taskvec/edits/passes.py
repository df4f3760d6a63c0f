"""How often a rule looks at the deltas, found by letting it look at made-up ones."""

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from taskvec.errors import InputError
from taskvec.rules import Rule
from taskvec.rules.rule import Place, Stacks

ROWS = 1 << 18
"""Of the made-up tensors: enough that a rule takes no shortcut, and that a sample of them is no pass."""


def passes(rule: Rule, params: Mapping[str, Any], tasks: int, names: Sequence[str]) -> int:
    """How often a rule goes through the whole model: once to combine, and as often as it does to prepare.

    Found by a rehearsal on two made-up tensors, the second of which no early look at the first counts for.

    Raises: InputError for parameters that do not fit.
    """
    settings = rule.settings(params, tasks)
    if rule.prepare is None or len(names) < 2:
        return 1
    made_up = torch.linspace(-1, 1, tasks * ROWS).reshape(tasks, ROWS, 1)
    seen: Counter[str] = Counter()

    def read(name: str, rows: slice | None) -> Tensor:
        stack = made_up if rows is None else made_up[:, rows]
        seen[name] += stack.shape[1]
        return stack.clone()

    def context(name: str, rows: slice | None) -> Mapping[str, Any]:
        first = 0 if rows is None else rows.start
        base = made_up[0] if rows is None else made_up[0, rows]
        return {"_place": Place(name, first), "_base": base, "_stats": [base.abs()] * tasks}

    halves = [slice(0, ROWS // 2), slice(ROWS // 2, ROWS)]
    shapes = dict.fromkeys(names, (ROWS, 1))
    stacks = Stacks(shapes, list(names[:2]), lambda _: halves, read, context)
    rule.prepare(stacks, **settings, _given=stacks)
    return 1 + round(seen[names[1]] / ROWS)


def check_varying(
    rule: Rule,
    params: Mapping[str, Any],
    each: Mapping[str, Mapping[str, Any]],
    tasks: int,
    names: Sequence[str],
) -> None:
    """Refuse a parameter that varies from tensor to tensor, where a rule settles it for the whole model.

    Raises: InputError.
    """
    kinds = list({repr(own): own for own in each.values()}.values())
    for part in rule.stages or (rule,):
        asked = inspect.signature(part.prepare).parameters if part.prepare else {}
        varying = sorted({name for own in kinds for name in own} & asked.keys())
        if varying and any(passes(part, part.own({**params, **own}), tasks, names) > 1 for own in kinds):
            raise InputError(
                f"parameters.{varying[0]}: differs from tensor to tensor, but {part.name!r} looks at the "
                "whole model with it, expected one value"
            )
