"""LiNeS: deeper layers change more."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from taskvec.errors import InputError
from taskvec.names import BLOCKS, block_depths
from taskvec.patterns import Pattern
from taskvec.reading import shown
from taskvec.rules.pairs import stacked
from taskvec.rules.rule import Rule, Stacks


def lines(
    merged: Tensor,
    *,
    alpha: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto",
    beta: Annotated[float, Field(ge=0)] = 0.5,
    blocks: str = BLOCKS,
    _depth: float = 0.0,
    _alpha: float | None = None,
) -> Tensor:
    """Scale what was merged by depth: shallow layers little, deep layers more.

        block l of L:   (alpha + beta l / (L - 1)) merged
        elsewhere:      alpha merged

    Blocks behind the last layer of config.json, which predict further tokens, are elsewhere.

    Args:
        merged: (*shape).
        alpha: scale of the first block and of all that is in none. ``auto`` is
            |sum_t tau_t| / (T |merged|), so 1 / T after ``sum``.
        beta: how much the last block gets beyond alpha; to be searched on validation data. To keep what
            one vector leaves alone: alpha = a, beta = 1 - a.
        blocks: regular expression whose group is the number of the block; the first match counts, and
            what precedes the match tells one stack of blocks from another.

    Source: Wang et al. 2025, arXiv:2410.17146.
    """
    start = _alpha if _alpha is not None else 1.0 if alpha == "auto" else alpha
    return merged * (start + beta * _depth)


def measure_model(
    merged: Stacks, *, alpha: float | str, beta: float, blocks: str, _given: Stacks, **_: Any
) -> Mapping[str, Mapping[str, Any]]:
    """The depth of each tensor, 0 to 1, and alpha if it is to be found."""
    if list(merged.shapes) == [""]:
        return {"": {"_depth": 0.0}}  # a tensor by itself has none
    depths = block_depths(merged.shapes, blocks, merged.behind)
    if beta and not depths:
        raise InputError(
            f"rule 'lines': no tensor name matches blocks {blocks!r}, the first is "
            f"{next(iter(merged.shapes), 'none')!r}; give an expression that does"
        )
    start = _matching(merged, _given) if alpha == "auto" else None
    return {name: {"_depth": depths.get(name, 0.0), "_alpha": start} for name in merged.changed}


def _matching(merged: Stacks, given: Stacks) -> float:
    """|sum_t tau_t| / (T |merged|)."""
    summed = made = 0.0
    tasks = 1
    for _, stack in given:
        tasks = len(stack)
        summed += _square(stacked(stack).sum(0))
    for _, tensor in merged:
        made += _square(tensor)
    return (summed / made) ** 0.5 / tasks if made else 1 / tasks


def _square(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def _check(tasks: int | None, *, blocks: str, **_: Any) -> str | None:
    try:
        groups = Pattern(blocks, f"blocks is {shown(blocks)}").groups
    except InputError as error:
        return str(error)
    return None if groups == 1 else f"blocks is {blocks!r}: {groups} groups, expected one, the block's number"


LINES = Rule("lines", lines, "model", stage="after", measure_model=measure_model, check=_check, copies=(1, 2))
