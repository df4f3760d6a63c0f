"""Training in tangent space by whoever calls a network: it gives the outputs of its linearization."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from taskvec.errors import InputError
from taskvec.models.backbone import evaluating
from taskvec.substitution import substituted
from taskvec.tangent.linearization import Linearization
from taskvec.tangent.linearize import check_modules

Loss = Callable[[Tensor, Tensor, Any], Tensor]
"""Logits, labels, and over how many labels the loss is a mean, where it is not over these."""

_IGNORED = -100
_TOLERANCE = 1e-3


def check_tangent(trainer: Any) -> None:
    """Refuse what would leave tangent space, or is not affine in it. Raises: InputError."""
    args = trainer.args
    from_trl = any(kind.__module__.startswith("trl.") for kind in type(trainer).__mro__)
    for found, what, remedy in (
        (from_trl, f"{type(trainer).__name__} makes the loss inside of the network", "train by Trainer"),
        (args.fp16, "fp16=True rounds what is small in it", "set bf16=True, or neither"),
        (_checkpoints(args), "it is not run again for the backward pass", "set gradient_checkpointing=False"),
        (args.torch_compile, "compiled code may lose the tangent", "set torch_compile=False"),
        (args.use_liger_kernel, "Liger's kernels have no forward mode", "set use_liger_kernel=False"),
        (args.neftune_noise_alpha is not None, "the function must not be random", "leave NEFTune out"),
        (trainer.model_init is not None, "model_init makes another network later", "pass the model itself"),
        (args.n_gpu > 1, "DataParallel runs copies of the network", "start it with torchrun"),
        (
            getattr(args, "predict_with_generate", False),
            "it gives no text",
            "set predict_with_generate=False",
        ),
    ):
        if found:
            raise InputError(f"regime: of space tangent, but {what}; {remedy}, or take an ordinary regime")


def _generates(args: Any) -> bool:
    return bool(getattr(args, "predict_with_generate", False))


def _checkpoints(args: Any) -> bool:
    names = ("gradient_checkpointing", "activation_checkpointing")  # the older name and the newer
    return any(bool(getattr(args, name, False)) for name in names)


class TangentForward:
    """Has a network, called as ever, give logits to first order in what its parameters have moved.

        f(x; theta0) + J(x; theta0) (theta - theta0)

    theta are the network's own parameters, so that optimizers, checkpoints and wrappers need not know. The
    loss is that of these logits, which is no linear function of them. Dropout is off.

    Args:
        theta0: of the parameters that are trained, copies.

    Attributes:
        on: whether it does so now; else the network is as it was.

    Raises: InputError for weights that are not float32.
    """

    def __init__(self, network: nn.Module, theta0: Mapping[str, Tensor]) -> None:
        for name, value in theta0.items():
            if value.dtype not in (torch.float32, torch.float64):
                raise InputError(
                    f"regime: space tangent, but {name!r} has dtype {value.dtype}, expected float32; load "
                    "the "
                    "model with dtype=torch.float32, and compute in half precision with bf16=True"
                )
        self.on = False
        self._network, self._theta0 = network, dict(theta0)
        self._forward: Callable[..., Any] = network.forward
        self._linearization: Linearization | None = None
        self._loss: Loss | None = None

        @wraps(type(network).forward)  # the trainer looks at its signature
        def forward(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._called(*args, **kwargs)

        network.forward = MethodType(forward, network)

    @contextmanager
    def active(self, on: bool = True) -> Iterator[None]:
        """In tangent space, or not, for a while."""
        before, self.on = self.on, on
        try:
            yield
        finally:
            self.on = before

    def _called(self, *args: Any, **kwargs: Any) -> Any:
        if not self.on:
            return self._forward(*args, **kwargs)
        inputs = dict(inspect.signature(self._forward).bind_partial(*args).arguments) | kwargs
        labels, count = inputs.pop("labels", None), inputs.pop("num_items_in_batch", None)
        if labels is not None and "decoder_input_ids" not in inputs:
            shift: Any = getattr(self._network, "prepare_decoder_input_ids_from_labels", None)
            inputs |= {} if shift is None else {"decoder_input_ids": shift(labels=labels)}
        make = import_module("transformers.modeling_outputs").CausalLMOutput  # a loss and logits
        needed = {} if hasattr(self._network, "loss_function") else {"labels": labels}
        logits = self._logits({**inputs, **needed})  # networks of one's own may not do without
        if labels is None:
            return make(logits=logits)
        if self._loss is None:
            self._loss = self._choose_loss(inputs, labels, count)
        return make(loss=self._loss(logits, labels, count), logits=logits)

    def _logits(self, inputs: Mapping[str, Any]) -> Any:
        held = dict(self._network.named_parameters())
        device = next(iter(held.values())).device
        if self._linearization is None:  # only now is everything on its device
            self._theta0 = {name: value.to(device) for name, value in self._theta0.items()}
            theta0 = {name: self._theta0.get(name, value.detach()) for name, value in held.items()}
            self._linearization = Linearization(self._run, theta0, module=self._network)
        tau = {name: held[name] - value for name, value in self._theta0.items()}
        with evaluating(self._network):
            return self._linearization(tau, **inputs)

    def _run(self, params: Mapping[str, Tensor], **inputs: Any) -> Any:
        """The logits at other parameters."""
        check_modules(self._network)
        with substituted(self._network, {**params, **dict(self._network.named_buffers())}):
            return _logits_in(self._forward(**inputs), self._network)

    @torch.no_grad()
    def _choose_loss(self, inputs: Mapping[str, Any], labels: Tensor, count: Any) -> Loss:
        """What makes the network's own loss of its own logits.

        Raises: InputError for a network whose loss is another function.
        """
        known = {} if count is None else {"num_items_in_batch": count}
        with evaluating(self._network), substituted(self._network, self._theta0):
            out = self._forward(**inputs, labels=labels, **known)
        logits, expected = _logits_in(out, self._network).float(), out["loss"].float()
        for loss in (_loss_of(self._network), _of_tokens, _of_next_tokens):
            try:
                made = loss(logits, labels, count)
            except (ValueError, TypeError, RuntimeError, IndexError):  # of other shapes than it takes
                continue
            if torch.allclose(made.float(), expected, rtol=_TOLERANCE, atol=_TOLERANCE):
                return loss
        raise InputError(
            f"regime: space tangent, but the loss of {type(self._network).__name__} is no function of "
            "logits and "
            "labels that is known here; give Trainer a compute_loss_func, or take an ordinary regime"
        )


def _logits_in(out: Any, network: nn.Module) -> Any:
    """The logits among the outputs. Raises: InputError where there are none."""
    if "logits" not in out:
        raise InputError(
            f"regime: space tangent, but {type(network).__name__} has no logits, expected some to take a "
            "loss "
            "of; take an ordinary regime"
        )
    return out["logits"]


def _loss_of(network: nn.Module) -> Loss:
    """The one that transformers has for networks of its class."""
    own: Any = getattr(network, "loss_function", None)

    def loss(logits: Tensor, labels: Tensor, count: Any) -> Tensor:
        config = getattr(network, "config", None)
        known = {"pooled_logits": logits, "config": config, "vocab_size": logits.shape[-1]}
        known |= {} if count is None else {"num_items_in_batch": count}
        value: Tensor = own(logits=logits, labels=labels, **known)
        return value

    return loss


def _of_tokens(logits: Tensor, labels: Tensor, count: Any) -> Tensor:
    """The cross-entropy of each label."""
    kind = "mean" if count is None else "sum"
    rows, wanted = logits.flatten(0, -2).float(), labels.flatten().to(logits.device)
    return cross_entropy(rows, wanted, ignore_index=_IGNORED, reduction=kind) / (
        1 if count is None else count
    )


def _of_next_tokens(logits: Tensor, labels: Tensor, count: Any) -> Tensor:
    """The cross-entropy of each label with the logits before it."""
    return _of_tokens(logits[:, :-1], labels[:, 1:], count)
