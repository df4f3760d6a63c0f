"""A network that something else trains, followed from where it started."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from taskvec.errors import BaseMismatch, InputError
from taskvec.integrations.adapted import adapter_of
from taskvec.integrations.start import is_adapted, moved, open_start
from taskvec.names import select_names
from taskvec.substitution import substituted
from taskvec.training.regimes import Regime
from taskvec.vectors import TaskVector
from taskvec.vectors.geometry import gram
from taskvec.weights import WeightsLike


class Followed:
    """What a regime trains of a network, and what that started from.

    Args:
        regime: ``None`` for what the network says by ``requires_grad``, or by its adapter.
        base: see :func:`taskvec.integrations.start.open_start`.
        main: whether this is the process that writes.
        apart: whether training puts the weights elsewhere, as FSDP does.
        anchored: keep ``theta0``, of what is trained, where the network is, in all processes.

    Attributes:
        moving: names of the parameters and running statistics that may change.
        start: what it started from; ``None`` in processes that do not need it.
        theta0: by the names of the network; empty unless it is anchored.

    Raises: InputError for a regime that selects nothing, and where the network is not what it was loaded
        from.
    """

    def __init__(
        self,
        network: nn.Module,
        regime: Regime | None,
        base: WeightsLike | None,
        *,
        main: bool = True,
        apart: bool = False,
        anchored: bool = False,
    ) -> None:
        _check_kind(network, regime)
        self.network, self.regime = network, regime
        self._own = {name: value.requires_grad for name, value in network.named_parameters()}
        self._asked = self._own if regime is None else _asked(network, regime)
        self.freeze()
        self.moving = frozenset(_moving(network))
        if not any(value.requires_grad for value in network.parameters()):
            raise InputError(
                f"{type(network).__name__}: no parameter has requires_grad, expected some to train; name a "
                "regime, such as regime='full'"
            )
        copied = frozenset(network.state_dict()) if apart else self.moving
        self._main = main
        self.start = open_start(network, base, copied, exact=anchored) if main or anchored else None
        self.theta0 = dict(self._copied()) if anchored else {}

    @property
    def regime_name(self) -> str | None:
        """What the provenance says; ``None`` for a selection of the user's own."""
        if is_adapted(self.network):
            return "lora"
        if self.regime is not None:
            return self.regime.name
        return "full" if all(self._own.values()) else None

    def freeze(self) -> None:
        """Train what is asked for, and nothing else."""
        _set(self.network, self._asked)

    def unfreeze(self) -> None:
        """Give the parameters the ``requires_grad`` that they had."""
        _set(self.network, self._own)

    @contextmanager
    def vector(self) -> Iterator[TaskVector | None]:
        """The vector as it is now, to be used inside the context; ``None`` in processes that do not write.

        All processes that share the weights have to ask together.
        """
        sharded = any(isinstance(value, DTensor) for value in self.network.parameters())
        state = self.network.state_dict()
        if sharded:
            state = _whole(state, keep=self._main)
        if self.start is None or not self._main:
            yield None
        elif is_adapted(self.network):
            with adapter_of(self.network, self.start, state if sharded else None) as vector:
                yield vector
        else:
            yield moved(self.start, state, self.moving)

    def figures(self, others: Mapping[str, TaskVector]) -> dict[str, float]:
        """The norm of the vector as it is now, and its cosine with others; empty where nothing is written.

        Raises: BaseMismatch for a vector of another base.
        """
        with self.vector() as vector:
            if vector is None:
                return {}
            products = gram([vector, *others.values()])
        lengths = products.diagonal().sqrt()
        angles = (products[0] / (lengths[0] * lengths)).tolist()[1:]
        named = {f"taskvec/cosine/{name}": angle for name, angle in zip(others, angles, strict=True)}
        return {
            "taskvec/norm": float(lengths[0]),
            **{name: angle for name, angle in named.items() if not math.isnan(angle)},
        }

    def bind_others(self, others: Mapping[str, TaskVector]) -> dict[str, TaskVector]:
        """Vectors to be compared with, adapters as vectors of this base; none where nothing is written.

        Raises: BaseMismatch for those of another base.
        """
        if self.start is None or not self._main:
            return {}
        bound = {name: v.with_base(self.start) if v.base.unbound else v for name, v in others.items()}
        for name, vector in bound.items():
            if vector.base.fingerprint() != self.start.fingerprint():
                raise BaseMismatch(
                    f"vectors: {name!r} is of base {vector.base}, expected {self.start.ref} (fingerprint "
                    f"{self.start.fingerprint()}), from which this training starts; leave it out"
                )
        return bound

    def is_finite(self) -> bool:
        """Whether the weights in this process are; of those that lie on several the training must tell."""
        held = [p.detach() for p in self.network.parameters() if p.requires_grad]
        held = [value for value in held if not isinstance(value, DTensor) and value.numel()]
        norms = [norm.to(held[0].device, torch.float32) for norm in torch._foreach_norm(held)]
        return not norms or bool(torch.stack(norms).isfinite().all())

    @contextmanager
    def at(self, coefficient: float) -> Iterator[None]:
        """The network at the start plus so much of the vector, for a while; then the very same tensors again.

        It must be anchored.
        """
        held = dict(self.network.named_parameters())
        with torch.no_grad():
            if is_adapted(self.network):  # the product of two factors goes with the second
                outer = [name for name in self.theta0 if ".lora_B." in name or ".lora_embedding_B." in name]
                values = {name: coefficient * held[name] for name in outer}
            else:
                start = {name: value.to(held[name].device) for name, value in self.theta0.items()}
                values = {name: value + coefficient * (held[name] - value) for name, value in start.items()}
        with substituted(self.network, values):
            yield

    def _copied(self) -> Iterator[tuple[str, Tensor]]:
        for name, value in self.network.named_parameters():
            if value.requires_grad:
                if (is_adapted(self.network) and ".lora_" not in name) or "magnitude" in name:
                    raise InputError(
                        f"coefficients: {name!r} is trained beside plain LoRA, expected its factors alone; "
                        "leave "
                        "coefficients out"
                    )
                yield name, value.detach().clone()


def _check_kind(network: nn.Module, regime: Regime | None) -> None:
    """Refuse what cannot be followed. Raises: InputError."""
    where = type(network).__name__
    if regime is not None and is_adapted(network):
        raise InputError(
            f"regime: {regime.name!r} given, but {where} trains an adapter of PEFT, which says what is "
            "trained; leave it out"
        )
    if any(hasattr(value, "ds_id") for value in network.parameters()):
        raise InputError(
            f"{where}: its parameters are partitioned by DeepSpeed (stage 3), expected whole ones; use stage "
            "2, or FSDP with fsdp_version 2"
        )
    if regime is not None and any(value.dtype.itemsize == 1 for value in network.parameters()):
        raise InputError(
            f"{where}: its weights are quantized, which no regime trains; add an adapter of PEFT and leave "
            "regime out"
        )


def _asked(network: nn.Module, regime: Regime) -> dict[str, bool]:
    """Whether each parameter is to be trained."""
    known = {name: value for name, value in network.named_parameters() if value.is_floating_point()}
    chosen = set(select_names(known, regime.selection, type(network).__name__))
    return {name: name in chosen for name in known}


def _moving(network: nn.Module) -> Iterator[str]:
    """The names under which the state dict has what may change, those of tied parameters too."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    for name, value in network.state_dict().items():
        trained = parameters[name].requires_grad if name in parameters else value.is_floating_point()
        if trained:
            yield name


def _set(network: nn.Module, wanted: Mapping[str, bool]) -> None:
    for name, value in network.named_parameters():
        if name in wanted and value.requires_grad != wanted[name]:
            value.requires_grad_(wanted[name])


def _whole(state: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Tensors that lie on several devices, gathered one by one into memory where they are kept."""
    whole = {}
    for name, value in state.items():
        gathered = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            whole[name] = gathered.cpu()
    return whole
