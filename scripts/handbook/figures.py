"""A drawing a rule: what it makes of the same few numbers, computed by the rule itself.

Colours are classes of ``handbook.css``, so that drawings follow the light and the dark scheme.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from taskvec.combiners import COMBINERS
from taskvec.rules import RULES
from taskvec.rules.rule import Place, Rule


class Figure(NamedTuple):
    """A drawing, and what it shows."""

    svg: str
    caption: str


ENTRIES = 24
SIDE = 12


def figure(name: str) -> Figure | None:
    """What a rule does to two small vectors; none for what is no rule or needs data."""
    if name not in RULES or "inputs" in RULES[name].consumes:
        return None
    rule = RULES[name]
    if name in COMBINERS and not COMBINERS[name].entries and name not in ("mean", "sum"):
        return _arrows(rule)
    return _spectra(rule) if rule.scope == "matrix" else _bars(rule)


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def _merged(rule: Rule, stack: Tensor) -> Tensor:
    """By the rule at its defaults, completed to a chain."""
    whole = RULES[rule.name]
    base = torch.full(stack.shape[1:], 0.5, dtype=stack.dtype)
    context = {"_place": Place("layers.0.weight", axes=stack.dim() - 1), "_base": base}
    given = {key: value for key, value in context.items() if key in whole.keywords}
    return whole(stack, **given)


def _bars(rule: Rule) -> Figure:
    """Entries of both vectors and of the merge."""
    number = rule.tasks[1] or 2
    stack = _drawn(2, ENTRIES)[:number]
    rows = [*zip(("a", "b"), stack, strict=False), ("merged", _merged(rule, stack))]
    top = max(float(row.abs().max()) for _, row in rows)
    parts = [_row(place, label, row / top) for place, (label, row) in enumerate(rows)]
    return Figure(
        _svg(640, 96 * len(rows), f"Entries before and after {rule.name}", parts),
        f"{ENTRIES} entries of {'two vectors' if number > 1 else 'a vector'}. {_computed(rule)}",
    )


def _computed(rule: Rule) -> str:
    return f"*merged* is what `{rule.name}` makes of them at its defaults and scale 1, computed by the rule."


def _row(place: int, label: str, values: Tensor) -> str:
    middle, kind = 96 * place + 48, "merged" if label == "merged" else f"task-{label}"
    line = f'<line class="axis" x1="80" x2="632" y1="{middle}" y2="{middle}"/>'
    return _text(8, middle + 5, label) + line + _columns(values, kind, 80, middle, 40)


def _columns(values: Sequence[float] | Tensor, kind: str, left: float, zero: float, height: float) -> str:
    step = 552 / len(values)
    return "".join(
        f'<rect class="{kind}" x="{left + step * place:.1f}" y="{zero - max(0.0, value) * height:.1f}" '
        f'width="{step * 0.7:.1f}" height="{max(abs(value) * height, 0.6 if value else 0):.1f}"/>'
        for place, value in enumerate(map(float, values))
    )


def _spectra(rule: Rule) -> Figure:
    """Singular values of both matrices, of their sum and of the merge."""
    decay = torch.logspace(0, -1.3, SIDE, dtype=torch.float64)
    stack = torch.stack([_turned(place) * decay @ _turned(place + 9) for place in range(2)])
    rows = [("a", stack[0]), ("b", stack[1]), ("sum", stack.sum(0)), ("merged", _merged(rule, stack))]
    spectra = [(label, torch.linalg.svdvals(matrix)) for label, matrix in rows]
    top = max(float(values.max()) for _, values in spectra)
    parts = [
        _text(8, 96 * place + 84, label)
        + _columns(values / top, "merged" if label == "merged" else f"task-{label}", 80, 96 * place + 88, 80)
        for place, (label, values) in enumerate(spectra)
    ]
    return Figure(
        _svg(640, 96 * len(rows), f"Singular values before and after {rule.name}", parts),
        f"Singular values of two random ({SIDE}, {SIDE}) matrices and of their sum. {_computed(rule)}",
    )


def _turned(seed: int) -> Tensor:
    """A random orthogonal matrix."""
    drawn = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    turned: Tensor = torch.linalg.qr(drawn).Q
    return turned


CONFLICT = ((1.6, 0.3), (-0.7, 0.9))


def _arrows(rule: Rule) -> Figure:
    """Two vectors in the plane that conflict, and the merge."""
    stack = torch.tensor(CONFLICT, dtype=torch.float64)
    named = [("a", stack[0]), ("b", stack[1]), ("a + b", stack.sum(0)), ("merged", _merged(rule, stack))]
    kinds = ("task-a", "task-b", "task-sum", "merged")
    parts = [_arrow(kind, label, vector) for kind, (label, vector) in zip(kinds, named, strict=True)]
    return Figure(
        _svg(
            420,
            300,
            f"Two vectors that conflict, and what {rule.name} makes of them",
            parts,
            "handbook arrows",
        ),
        f"Two vectors that conflict, and their sum. {_computed(rule)}",
    )


def _arrow(kind: str, label: str, vector: Tensor) -> str:
    x, y = 190 + 110 * float(vector[0]), 250 - 110 * float(vector[1])
    return (
        f'<line class="{kind} arrow" x1="190" y1="250" x2="{x:.1f}" y2="{y:.1f}"/>'
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>' + _text(x + 8, y - 6, label)
    )


def _text(x: float, y: float, label: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}">{label}</text>'


def _svg(width: int, height: int, title: str, parts: Sequence[str], kind: str = "handbook") -> str:
    body = "".join(parts)
    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">'
        f"<title>{title}</title>{body}</svg>"
    )
