"""How often a plan says that inputs are read, and how often they are."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from taskvec.edits.passes import count_passes
from taskvec.rules import RULES
from taskvec.vectors import TaskVector, combine
from taskvec.weights import TensorSpec, Weights, open_weights
from taskvec.weights.blocks import row_blocks

LARGE = "layers.1.weight"


class Counted(Weights):
    """Deltas that count how many entries of each tensor are read."""

    def __init__(self, seed: int, side: int) -> None:
        shapes = {"layers.0.weight": (3, 3), LARGE: (side, side)}
        super().__init__("counted", {n: TensorSpec(s, torch.float32) for n, s in shapes.items()}, seed)
        generator = torch.Generator().manual_seed(seed)
        self.deltas = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        self.read_of: Counter[str] = Counter()

    def _read(self, name: str, rows: slice | None) -> Tensor:
        found = self.deltas[name] if rows is None else self.deltas[name][rows]
        self.read_of[name] += found.numel()
        return found


@pytest.mark.parametrize(
    ("rule", "params", "ahead"),
    [
        ("sum", {}, 0),
        ("ties", {}, 0),
        ("dare+ties", {"density": 0.5}, 0),
        ("ties", {"trim": "global"}, 3),
        ("pcb", {}, 7),
        ("tsv", {}, 0),
        ("metagpt", {}, 1),
    ],
)
def test_the_plan_says_how_often_an_edit_reads(rule: str, params: dict[str, Any], ahead: int) -> None:
    side = 64 if RULES[rule].scope == "matrix" else 1200
    deltas = [Counted(seed, side) for seed in (10, 11)]
    base = open_weights({name: torch.zeros_like(value) for name, value in deltas[0].deltas.items()})
    made = combine(rule, [TaskVector.from_tensors(one, base) for one in deltas], **params)
    for name in base:
        for rows in row_blocks(base.spec(name).shape):
            made.read(name, rows)
    said = count_passes(0.5 * made.scaled({LARGE: 2.0}))
    assert said == (deltas[0].read_of[LARGE] // side**2, ahead)
    assert (said.all > 1 + ahead) == ("ties" in rule and not ahead)  # a cut takes a look at the tensor alone
