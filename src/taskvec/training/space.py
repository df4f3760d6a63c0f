"""Spaces: how what is learned displaces a model."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
import xxhash
from torch import Tensor

from taskvec.errors import InputError
from taskvec.models.backbone import Backbone, on_device, refuse_sharded
from taskvec.models.functional import encode
from taskvec.models.selection import find_matrices
from taskvec.names import grouped
from taskvec.tangent.linearization import Linearization
from taskvec.training.regimes import Gates, Lora, Space
from taskvec.training.settings import TrainSettings
from taskvec.vectors.stored.factored import Pair, factored

Params = Mapping[str, Tensor]
Term = tuple[float, Callable[[int], Tensor]]
"""A strength, and a scalar to add to the loss at a step of that number, differentiable in the leaves."""


def linearized(backbone: Backbone, start: Mapping[str, Tensor] | None = None) -> Linearization:
    """The encoder in its tangent space: ``lin(tau, batch)`` gives features (N, d), affine in tau.

    Only the encoder is linear; a head that normalises the feature comes after it.

    Args:
        start: where the tangent space is taken, for parameters and running statistics that are not as the
            backbone has them.
    """
    refuse_sharded(backbone, "tangent space")
    theta0 = {name: value.detach() for name, value in backbone.encoder_parameters().items()}
    moved, example = (on_device(given, backbone.device) for given in (start or {}, backbone.example()))
    fixed = {name: moved[name] for name in backbone.statistics() if name in moved}
    start = {name: moved.get(name, value) for name, value in theta0.items()}
    return Linearization(partial(_encode, backbone, fixed), start, example=(example,))


def _encode(backbone: Backbone, fixed: Params, params: Params, batch: Mapping[str, Tensor]) -> Tensor:
    return encode(backbone, {**fixed, **params}, batch)


class Moved(ABC):
    """A model at ``start``, displaced already or not, plus what is being learned.

    Attributes:
        leaves: what the optimizer moves.
    """

    leaves: dict[str, Tensor]
    _pulls: ClassVar[Mapping[str, float]] = {}
    """Where weight decay adds so many times ``start`` to the leaves, beside shrinking them."""
    rates: Mapping[str, float] = {}
    """Leaves with a peak learning rate of their own; they are neither decayed nor clipped."""

    def __init__(self, backbone: Backbone, start: Params, displaced: Params | None = None) -> None:
        self.backbone = backbone
        self._start = self._held(start)
        self._before = {name: value for name, value in self._held(displaced or {}).items() if name in start}
        self._still: Params = {}  # by leaf, which of its entries stay where they are

    @abstractmethod
    def outputs(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(R, d), differentiable in the leaves."""

    def shift(self, batch: Mapping[str, Tensor]) -> Tensor:
        """How far the outputs (R, d) are from those at ``start``; differentiable in the leaves."""
        with torch.no_grad():
            before = encode(self.backbone, {**_detached(self.backbone), **self._start}, batch)
        return self.outputs(batch) - before

    @abstractmethod
    def tau(self) -> Params:
        """How far ``start`` has been displaced, by name in its shapes; differentiable in the leaves."""

    @abstractmethod
    def displacement(self) -> Params:
        """How far it has moved from where it began, ``start`` and what it was displaced by; a copy, on the
        CPU."""

    def _held(self, params: Params) -> dict[str, Tensor]:
        there = on_device(params, self.backbone.device)
        return {name: _widened(value.detach()) for name, value in there.items()}

    def _displaced(self, tau: Params) -> dict[str, Tensor]:
        """Of what has been learned and what there was before, their sum."""
        return {
            name: value + self._before[name] if name in self._before else value for name, value in tau.items()
        }

    def terms(self, steps: int) -> Sequence[Term]:
        """What the space itself adds to the loss, in a training of so many steps."""
        return ()

    def facts(self) -> dict[str, float]:
        """Figures of the space for the log."""
        return {}

    def confine(self, mask: Params) -> None:
        """Move no entry of the leaves outside of a mask (bool, by leaf, in their shapes).

        Raises: InputError for a space whose leaves are not the parameters.
        """
        if self.leaves.keys() != self._start.keys():
            raise InputError("mask: goes with regimes that train whole tensors, in ordinary or tangent space")
        inside = {name: mask[name].to(leaf.device) for name, leaf in self.leaves.items()}
        self._still = {name: ~of for name, of in inside.items()}
        for name, leaf in self.leaves.items():
            leaf.register_hook(partial(torch.mul, inside[name]))  # type: ignore[no-untyped-call]

    def _decayed(self) -> Sequence[str]:
        """The leaves that weight decay acts on."""
        return list(self.leaves)

    @torch.no_grad()
    def decay(self, settings: TrainSettings, lr: float) -> None:
        """Decoupled weight decay, before the optimizer's step as in AdamW."""
        amount, names = lr * settings.weight_decay, self._decayed()
        pull = self._pulls.get(settings.decay_towards)
        if not names:
            return
        leaves = [self.leaves[name] for name in names]
        held = {name: self.leaves[name][of] for name, of in self._still.items()}
        torch._foreach_mul_(leaves, 1 - amount)
        if pull is not None:
            torch._foreach_add_(leaves, [self._start[name] for name in names], alpha=pull * amount)
        for name, values in held.items():
            self.leaves[name][self._still[name]] = values


class Ordinary(Moved):
    """The leaves are the parameters themselves."""

    _pulls: ClassVar[Mapping[str, float]] = {"pretrained": 1}

    def __init__(self, backbone: Backbone, start: Params, displaced: Params | None = None) -> None:
        super().__init__(backbone, start, displaced)
        self._rest = _detached(backbone)
        self._origin = self._displaced(self._start)
        self.leaves = {name: value.clone().requires_grad_() for name, value in self._origin.items()}

    def outputs(self, batch: Mapping[str, Tensor]) -> Tensor:
        return encode(self.backbone, {**self._rest, **self.leaves}, batch)

    def tau(self) -> Params:
        return {name: leaf - self._start[name] for name, leaf in self.leaves.items()}

    def displacement(self) -> Params:
        return {name: (leaf.detach() - self._origin[name]).cpu() for name, leaf in self.leaves.items()}


class Tangent(Moved):
    """The leaves are tau in ``f(start) + J(start) tau``."""

    _pulls: ClassVar[Mapping[str, float]] = {"zero": -1}

    def __init__(self, backbone: Backbone, start: Params, displaced: Params | None = None) -> None:
        super().__init__(backbone, start, displaced)
        self._lin = linearized(backbone, self._start)
        origin = {name: self._before.get(name, torch.zeros_like(v)) for name, v in self._start.items()}
        self.leaves = {name: value.clone().requires_grad_() for name, value in origin.items()}

    def outputs(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self._lin(self.leaves, batch)  # type: ignore[no-any-return]

    def shift(self, batch: Mapping[str, Tensor]) -> Tensor:
        """``J tau``."""
        return self._lin.jvp(self.leaves, batch)  # type: ignore[no-any-return]

    def tau(self) -> Params:
        return self.leaves

    def displacement(self) -> Params:
        moved = {name: leaf.detach().clone() for name, leaf in self.leaves.items()}
        for name, before in self._before.items():
            moved[name] -= before
        return {name: value.cpu() for name, value in moved.items()}


class Factors(Moved):
    """LoRA: the leaves are the factors of displacements of matrices, ``alpha / rank * B A``.

    A (rank, in) starts as PEFT draws it, uniform within ``1 / sqrt(in)``, and B (out, rank) at zero. The draw
    depends on the seed and the name of the matrix alone, so that tasks start from the same A. What is
    selected beside matrices stays where it is. Weight decay shrinks the factors, and so the displacement.

    Raises: InputError where no matrix is selected, or the rank is larger than that of one.
    Source: Hu et al. 2021, arXiv:2106.09685.
    """

    def __init__(
        self, backbone: Backbone, start: Params, lora: Lora, seed: int, displaced: Params | None = None
    ) -> None:
        super().__init__(backbone, start, displaced)
        self._turned = find_matrices(backbone, self._start)
        self._start = {name: self._start[name] for name in self._turned}
        self._rest, self._scaling = _detached(backbone), lora.scaling
        self._downs = {name: self._drawn(name, lora.rank, seed) for name in self._turned}
        self._ups = {name: self._zeros(name, lora.rank).requires_grad_() for name in self._turned}
        self.leaves = dict(self._name_leaves())

    def _name_leaves(self) -> Iterator[tuple[str, Tensor]]:
        for name in self._turned:
            yield f"{name}#A", self._downs[name].requires_grad_()
            yield f"{name}#B", self._ups[name]

    def outputs(self, batch: Mapping[str, Tensor]) -> Tensor:
        moved = {name: self._start[name] + step for name, step in self.tau().items()}
        return encode(self.backbone, {**self._rest, **moved}, batch)

    def displacement(self) -> Params:
        pairs = {
            name: Pair(*(half.detach().clone().cpu() for half in self._pair(name))) for name in self._turned
        }
        return factored(pairs, {name: self._start[name].shape for name in pairs})

    def tau(self) -> Params:
        device = next(iter(self._start.values())).device.type
        with torch.autocast(device, enabled=False):
            steps = {n: self._pair(n).product().view(value.shape) for n, value in self._start.items()}
            return self._displaced(steps)

    def _pair(self, name: str) -> Pair:
        """The factors of a displacement as it is stored, from the left and from the right."""
        up, down = self._scaling * self._ups[name], self._downs[name]
        return Pair(down.mT, up.mT) if self._turned[name] else Pair(up, down)

    def _sides(self, name: str, rank: int) -> tuple[int, int]:
        """Outputs and inputs of a matrix; those of a convolution are each place of its filter."""
        value = self._start[name]
        sides = len(value), math.prod(value.shape[1:])
        if rank > min(sides):
            raise InputError(
                f"rank: {rank}, expected at most {min(sides)}, that of {name!r} ({sides[0]} x {sides[1]}); "
                "lower it, or select other parameters"
            )
        return sides[::-1] if self._turned[name] else sides

    def _drawn(self, name: str, rank: int, seed: int) -> Tensor:
        """A as ``torch.nn.Linear`` draws weights, which is Kaiming-uniform with ``a = sqrt(5)``."""
        inputs = self._sides(name, rank)[1]
        generator = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed}/{name}".encode()) >> 1)
        drawn = torch.rand(rank, inputs, generator=generator).mul_(2).sub_(1).div_(math.sqrt(inputs))
        return drawn.to(self._start[name])

    def _zeros(self, name: str, rank: int) -> Tensor:
        return self._start[name].new_zeros(self._sides(name, rank)[0], rank)


class TangentFactors(Factors):
    """L-LoRA: the model is linearized in its factors, where LoRA starts.

    There B is zero, so that the derivative in A is zero too: A stays, and what is learned is a tau of low
    rank, ``alpha / rank * B A``, in the tangent space of the weights.

    Source: Tang et al. 2023, arXiv:2310.04742.
    """

    def __init__(
        self, backbone: Backbone, start: Params, lora: Lora, seed: int, displaced: Params | None = None
    ) -> None:
        super().__init__(backbone, start, lora, seed, displaced)
        self._lin = linearized(backbone, start)

    def _name_leaves(self) -> Iterator[tuple[str, Tensor]]:
        for name in self._turned:
            yield f"{name}#B", self._ups[name]

    def outputs(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self._lin(self.tau(), batch)  # type: ignore[no-any-return]

    def shift(self, batch: Mapping[str, Tensor]) -> Tensor:
        """``J tau``."""
        return self._lin.jvp(self.tau(), batch)  # type: ignore[no-any-return]


class Gated(Moved):
    """The leaves are residuals R, and a score s for each layer: ``w = start + 1[s >= threshold] R``.

    The gradient passes straight through the step function, ``d loss / d s = <d loss / d w, R>`` over the
    tensors of a layer. Scores have a learning rate of their own, and are neither decayed nor clipped; weight
    decay acts where gates are open. Only open layers are displaced.

    Source: Wallingford et al. 2022 (TAPS), arXiv:2203.16708.
    """

    _pulls: ClassVar[Mapping[str, float]] = {"zero": -1}
    _SCORES = "#scores"  # a leaf (L,); no parameter has such a name

    def __init__(self, backbone: Backbone, start: Params, gates: Gates) -> None:
        super().__init__(backbone, start)
        self._rest, self._gates = _detached(backbone), gates
        self._layers = list(grouped(self._start, gates.gates).values())
        self._residuals = {name: torch.zeros_like(v).requires_grad_() for name, v in self._start.items()}
        like = next(iter(self._start.values()))
        self.scores = like.new_full((len(self._layers),), gates.score_start).requires_grad_()
        self.leaves = {**self._residuals, self._SCORES: self.scores}
        self.rates = {self._SCORES: gates.score_lr}

    def outputs(self, batch: Mapping[str, Tensor]) -> Tensor:
        moved = {name: self._start[name] + step for name, step in self.tau().items()}
        return encode(self.backbone, {**self._rest, **moved}, batch)

    def tau(self) -> Params:
        scores = self.scores
        gates = self._open().to(scores) + (scores - scores.detach())
        by_layer = zip(self._layers, gates.unbind(), strict=True)
        return {name: gate * self._residuals[name] for names, gate in by_layer for name in names}

    def displacement(self) -> Params:
        moved = {name: self._residuals[name].detach() for name in self._decayed()}
        return {name: step.clone().cpu() for name, step in moved.items() if bool(step.any())}

    def terms(self, steps: int) -> Sequence[Term]:
        begin, strength = round(self._gates.score_warmup * steps), self._gates.strength
        return [(strength, lambda step: self.scores.abs().mean() * (step >= begin))] if strength else []

    def facts(self) -> dict[str, float]:
        return {"open_layers": self._open().sum().item() / len(self._layers)}

    def _open(self) -> Tensor:
        return self.scores.detach() >= self._gates.threshold

    def _decayed(self) -> Sequence[str]:
        by_layer = zip(self._layers, self._open().tolist(), strict=True)
        return [name for names, is_open in by_layer if is_open for name in names]


def move(
    backbone: Backbone,
    start: Params,
    space: Space,
    lora: Lora | None,
    seed: int,
    gates: Gates | None = None,
    displaced: Params | None = None,
) -> Moved:
    """The model at ``start`` and a displacement, to be moved on by whole tensors or by factors; or in layers
    with gates, which are closed at the two together."""
    if gates is not None:
        before = {name: value for name, value in (displaced or {}).items() if name in start}
        return Gated(backbone, {**start, **{n: start[n] + v.to(start[n]) for n, v in before.items()}}, gates)
    if lora is None:
        return (Tangent if space == "tangent" else Ordinary)(backbone, start, displaced)
    kind = TangentFactors if space == "tangent" else Factors
    return kind(backbone, start, lora, seed, displaced)


def _widened(value: Tensor) -> Tensor:
    """In float32, or float64 as it is."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _detached(backbone: Backbone) -> dict[str, Tensor]:
    """The backbone's own parameters, without gradients computed for, or left in, them."""
    return {name: value.detach() for name, value in backbone.encoder_parameters().items()}
