"""Which examples of a test split a reader is shown, and what two models say of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from taskvec.tasks.objective import Tally

How = Literal["lost", "gained", "both"]
"""What the merge got wrong and the single model right, the reverse, and what both got wrong."""


@dataclass(frozen=True)
class Said:
    """What two models say of an example.

    Args:
        row: its place in the tallies.
        merge, single: what each says, and with classes the share that it gives to it.
    """

    row: int
    how: How
    label: str
    merge: tuple[str, float | None]
    single: tuple[str, float | None]


def choose_classified(merge: Tally, single: Tally, classes: Sequence[str], most: int) -> list[Said]:
    """Examples of a classification on which a model is wrong: ``most`` that the merge lost, and half as many
    others.

    Args:
        merge, single: of the same examples, ``logits`` (N, C) and ``labels`` (N,).
    """
    labels = merge["labels"]
    shares = [tally["logits"].double().softmax(1) for tally in (merge, single)]
    chosen = {how: spread(rows, _share(how, most)) for how, rows in sorts_of(merge, single).items()}
    return [
        Said(row, how, classes[int(labels[row])], *(_says(of, row, classes) for of in shares))
        for how, rows in chosen.items()
        for row in rows
    ]


def sorts_of(merge: Tally, single: Tally) -> dict[How, Tensor]:
    """The rows (n,) of each sort, in order."""
    labels = merge["labels"]
    right = [tally["logits"].argmax(1) == labels for tally in (merge, single)]
    sorts: dict[How, Tensor] = {
        "lost": ~right[0] & right[1],
        "gained": right[0] & ~right[1],
        "both": ~right[0] & ~right[1],
    }
    return {how: mask.nonzero().flatten() for how, mask in sorts.items()}


def choose_regressed(merge: Tally, single: Tally, most: int) -> list[Said]:
    """The examples of a regression on which the merge's error exceeds the single model's by most."""
    labels = merge["labels"].double()
    errors = [(tally["predicted"].double() - labels).abs() for tally in (merge, single)]
    worst = (errors[0] - errors[1]).argsort(descending=True, stable=True)
    rows = [int(row) for row in worst[:most] if errors[0][row] > errors[1][row]]
    return [
        Said(
            row,
            "lost",
            f"{labels[row]:.4g}",
            *((f"{tally['predicted'][row]:.4g}", None) for tally in (merge, single)),
        )
        for row in rows
    ]


def spread(rows: Tensor, most: int) -> list[int]:
    """At most so many of some rows, evenly spaced, so that a sorted split gives every class a chance."""
    if len(rows) <= most:
        return [int(row) for row in rows]
    return [int(rows[place]) for place in torch.linspace(0, len(rows) - 1, most).round().long()]


def _share(how: How, most: int) -> int:
    return most if how == "lost" else most // 4


def _says(shares: Tensor, row: int, classes: Sequence[str]) -> tuple[str, float]:
    place = int(shares[row].argmax())
    return classes[place], round(float(shares[row, place]), 3)
