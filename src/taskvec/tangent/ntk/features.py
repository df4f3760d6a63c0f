"""From a model and samples to the per-sample gradients of every selected parameter."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskvec.errors import InputError
from taskvec.substitution import substituted
from taskvec.tangent.ntk.recording import Made, Recorder, Signature
from taskvec.tangent.ntk.samples import Samples
from taskvec.tangent.ntk.terms import Dense, Scatter, Term, jacobian, matrix_shape

Features = dict[str, list[Term]]
"""By parameter, what its uses contribute; a parameter without gradient is not in it."""


@dataclass
class Plan:
    """How a model's per-sample gradients are taken.

    Args:
        parameters: the selected ones, by name.
        generic: names that no rule covers; they are differentiated sample by sample.
        signature: the operations that a pass must meet, none before the first pass.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    generic: frozenset[str] = frozenset()
    signature: tuple[Signature, ...] | None = None
    leaves: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.leaves = {name: p.detach().requires_grad_() for name, p in self.parameters.items()}

    def recorded(self, samples: Samples) -> tuple[Tensor, Recorder]:
        """Outputs (n, C) with a graph, and what was noted on the way.

        Raises: InputError for a model that is random, or whose outputs are not (n, C).
        """
        while True:
            names = {id(p): name for name, p in self.parameters.items()}
            noted = Recorder(self.leaves, names, self.generic, len(samples))
            noted.start((samples.args, samples.kwargs))
            with torch.enable_grad(), noted:
                out = samples.through(self.model)
            check_outputs(out, len(samples))
            noted.check_kept()
            if not noted.uncovered and self._as_before(noted):
                return out, noted
            self._widen(noted)

    def _as_before(self, noted: Recorder) -> bool:
        """Whether the same uses were met: what was taken for samples was not so by a coincidence of sizes.

        For one sample every reading of a size is right.
        """
        if self.signature is None:
            self.signature = tuple(noted.signature)
        return noted.samples == 1 or self.signature == tuple(noted.signature)

    def _widen(self, noted: Recorder) -> None:
        """Take parameters whose uses are not covered, or differ between passes, sample by sample."""
        differing = set(noted.uncovered)
        if not differing:
            assert self.signature is not None
            before, now = set(self.signature), set(noted.signature)
            differing = {name for _, names in before ^ now for name in names} or set(self.leaves)
        self.generic |= differing
        self.signature = None

    def features(self, samples: Samples) -> tuple[Features, int]:
        """Per-sample gradients of all outputs, and C."""
        out, noted = self.recorded(samples)
        found = collect(out, noted)
        for name, values in self.one_by_one(samples, self.generic).items():
            found[name] = [Dense(values.reshape(*values.shape[:2], *matrix_shape(self.leaves[name].shape)))]
        return found, out.shape[1]

    def called(self, values: Mapping[str, Tensor], samples: Samples) -> Any:
        """The model's outputs at other values of some selected parameters."""
        with substituted(self.model, values):
            return samples.through(self.model)

    def one_by_one(self, samples: Samples, names: frozenset[str]) -> dict[str, Tensor]:
        """Jacobians (n, C, *shape) of some parameters, by one backward pass a sample and class."""
        if not names:
            return {}
        leaves = {name: self.leaves[name] for name in sorted(names)}
        rows: dict[str, list[Tensor]] = {name: [] for name in leaves}
        for i in range(len(samples)):
            one = samples[i : i + 1]
            with torch.enable_grad():
                out: Tensor = self.called(leaves, one)
            for c in range(out.shape[1]):
                more = c + 1 < out.shape[1]
                if not out.requires_grad:
                    slopes: tuple[Tensor | None, ...] = (None,) * len(leaves)
                else:
                    column = torch.zeros_like(out)
                    column[0, c] = 1.0
                    slopes = torch.autograd.grad(
                        out, list(leaves.values()), column, retain_graph=more, allow_unused=True
                    )
                for (name, leaf), slope in zip(leaves.items(), slopes, strict=True):
                    rows[name].append(torch.zeros_like(leaf) if slope is None else slope)
        n = len(samples)
        return {name: torch.stack(found).view(n, -1, *leaves[name].shape) for name, found in rows.items()}


def collect(out: Tensor, noted: Recorder) -> Features:
    """One backward pass a column of ``out`` (n, C), down to the noted operations only."""
    n, classes = out.shape
    uses = noted.uses
    kept: list[list[list[Tensor | None]]] = [[[None] * classes for _ in use.parts] for use in uses]
    at: Any = [use.at for use in uses]
    if uses and out.requires_grad:
        for c in range(classes):
            column = torch.zeros_like(out)
            column[:, c] = 1.0
            slopes = torch.autograd.grad(out, at, column, retain_graph=c + 1 < classes, allow_unused=True)
            with torch.no_grad():
                for use, slots, slope in zip(uses, kept, slopes, strict=True):
                    if slope is not None:
                        for part, of_classes in zip(use.parts, slots, strict=True):
                            of_classes[c] = part.reduce(slope)
    terms: Features = {}
    chained: dict[int, tuple[Made, list[Term]]] = {}
    with torch.no_grad():
        for use, slots in zip(uses, kept, strict=True):
            for part, values in zip(use.parts, slots, strict=True):
                found = [value for value in values if value is not None]
                if not found:
                    continue
                zero = torch.zeros_like(found[0]) if len(found) < classes else found[0]
                term = part.build([zero if value is None else value for value in values])
                made = noted.made_of(part.target)
                if not term.tensors()[0].numel():
                    continue  # no token of it reaches an output
                if made.value is noted.leaves[made.names[0]]:
                    terms.setdefault(made.names[0], []).append(term)
                else:
                    chained.setdefault(id(made.value), (made, []))[1].append(term)
        for made, parts in chained.values():
            for name, term in _chain(made, parts, noted.leaves, n, classes):
                terms.setdefault(name, []).append(term)
    return terms


def _chain(
    made: Made, parts: list[Term], leaves: Mapping[str, Tensor], n: int, classes: int
) -> list[tuple[str, Term]]:
    """From the Jacobian of a value made of parameters to theirs."""
    full = jacobian(parts, n, classes, made.value.shape)
    if made.read is not None:
        index = made.read.reshape(1, -1).expand(n, -1)
        return [(made.names[0], Scatter(index, full.reshape(n, classes, index.shape[1], -1)))]
    slopes = torch.autograd.grad(
        made.value,
        [leaves[name] for name in made.names],
        full.reshape(n * classes, *made.value.shape),
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=True,
    )
    return [
        (name, Dense(slope.reshape(n, classes, *matrix_shape(leaves[name].shape))))
        for name, slope in zip(made.names, slopes, strict=True)
        if slope is not None
    ]


def check_outputs(out: object, n: int) -> None:
    """Raise InputError unless ``out`` is a floating-point tensor (n, C)."""
    if not isinstance(out, Tensor):
        raise InputError(
            f"ntk: the model returns a {type(out).__name__}, expected a tensor (N, C); wrap it in a module "
            "that returns its logits"
        )
    if out.ndim != 2 or len(out) != n or out.shape[1] == 0:
        raise InputError(f"ntk: the model's output is {tuple(out.shape)} for {n} samples, expected ({n}, C)")
    if not out.is_floating_point():
        raise InputError(f"ntk: the model's output is {out.dtype}, expected floating-point numbers")
