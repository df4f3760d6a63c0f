"""How often a rule looks at the deltas, found by letting it look at made-up ones."""

import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from taskvec.errors import InputError
from taskvec.rules import Rule
from taskvec.rules.magnitude import SMALL
from taskvec.rules.rule import Place, Stacks


def passes(rule: Rule, params: Mapping[str, Any], tasks: int, names: Sequence[str]) -> int:
    """How often a rule reads the deltas: once to combine them, and as often as it does to prepare.

    Found by a rehearsal on two made-up tensors, the second of which no shortcut leaves out.

    Raises: InputError for parameters that do not fit.
    """
    settings = rule.settings(params, tasks)
    if rule.prepare is None or len(names) < 2:
        return 1
    made_up = torch.linspace(-1, 1, tasks * (SMALL + 1)).reshape(tasks, SMALL + 1, 1)
    reads: Counter[str] = Counter()

    def read(name: str) -> Tensor:
        reads[name] += 1
        return made_up.clone()

    def context(name: str) -> Mapping[str, Any]:
        return {"_place": Place(name), "_base": made_up[0], "_stats": [None] * tasks}

    stacks = Stacks(names, names[:2], read, context)
    rule.prepare(stacks, **settings, _given=stacks)
    return 1 + reads[names[1]]


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
