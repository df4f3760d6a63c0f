"""One forward pass that notes every operation a selected parameter takes part in.

The operations are watched, not the modules: a parameter that is used twice, tied, or used directly in a
``forward`` is seen like any other. Every note holds what the operation's rule (``rules``) needs and a handle
on the gradient at its output; parameters themselves enter the graph detached, so that no backward pass
computes a parameter's gradient.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from taskvec.errors import InputError
from taskvec.tangent.ntk.rules import RULES, Part

Signature = tuple[str, tuple[str, ...]]
"""What an operation is called, and the parameters it uses."""


@dataclass(frozen=True)
class Use:
    """An operation whose output's gradient is wanted."""

    at: GradientEdge | Tensor
    parts: Sequence[Part]


@dataclass(frozen=True)
class Made:
    """A tensor of parameters alone: a slice, a lookup that is the same for all samples, a product.

    Args:
        value: it, with a graph down to the leaves of ``names``.
        names: the parameters that it was made of.
        read: rows that were looked up in the one parameter, if it is a plain lookup.
    """

    value: Tensor
    names: tuple[str, ...]
    read: Tensor | None = None


class Recorder(TorchFunctionMode):
    """Notes the uses of parameters while it is active.

    Args:
        leaves: the parameters that matter, by name, each detached and requiring gradient.
        names: name of each, by the identity of the model's own parameter.
        generic: names that are not to be noted.
        samples: n, the first dimension of the inputs.
    """

    def __init__(
        self,
        leaves: Mapping[str, Tensor],
        names: Mapping[int, str],
        generic: frozenset[str],
        samples: int,
    ) -> None:
        super().__init__()
        self.leaves, self.names, self.generic, self.samples = leaves, names, generic, samples
        self.uses: list[Use] = []
        self.uncovered: set[str] = set()
        self.signature: list[Signature] = []
        self.made: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.out: Tensor = torch.empty(0)
        self._sampled: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._kept: list[tuple[Tensor, int]] = []

    def start(self, inputs: Sequence[object]) -> None:
        """Say which tensors are samples."""
        for tensor in _tensors(inputs):
            self._sampled[tensor] = True

    def sampled(self, value: object) -> bool:
        """Whether a value depends on the samples."""
        return isinstance(value, Tensor) and value in self._sampled

    def selected(self, value: object) -> bool:
        """Whether a value is a noted parameter, or made of such alone."""
        return isinstance(value, Tensor) and (self._name(value) is not None or value in self.made)

    def keep(self, x: Tensor) -> Tensor:
        """An activation for later, detached."""
        self._kept.append((x.detach(), x._version))
        return self._kept[-1][0]

    def check_kept(self) -> None:
        """Refuse a model that has overwritten a kept activation: it cannot be trained either.

        Raises: InputError.
        """
        for x, version in self._kept:
            if x._version != version:
                raise InputError(
                    f"ntk: the model overwrites an activation {tuple(x.shape)} that its gradients need; "
                    "replace the operation in place after it"
                )

    def made_of(self, target: Tensor) -> Made:
        """How a target came to be."""
        name = self._name(target)
        return Made(self.leaves[name], (name,)) if name is not None else self.made[target]

    def _name(self, value: Tensor) -> str | None:
        name = self.names.get(id(value)) if isinstance(value, nn.Parameter) else None
        return None if name in self.generic else name

    def __torch_function__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        _refuse_chance(func, args, given)
        tensors = list(_tensors((args, given)))
        wanted = [t for t in tensors if self.selected(t)]
        if not wanted:
            return self._plain(func, args, given, tensors)
        if not any(t in self._sampled for t in tensors) and not self._copies(func, args):
            return self._make(func, args, given, wanted)
        return self._use(func, args, given, tensors, wanted)

    def _plain(self, func: Any, args: Sequence[Any], given: Mapping[str, Any], tensors: list[Tensor]) -> Any:
        out = func(*_mapped(_detached, args), **_mapped(_detached, given))
        if any(t in self._sampled for t in tensors):
            self._mark(out)
            if _in_place(func):
                self._mark(args[0])
        return out

    def _copies(self, func: Any, args: Sequence[Any]) -> bool:
        """Whether this makes one value a sample of parameters alone: a token or a lookup for each."""
        if func is F.embedding:
            return isinstance(args[0], Tensor) and args[0].ndim > 1 and len(args[0]) == self.samples
        if func is not torch.Tensor.expand or len(args) < 2 or not self.selected(args[0]):
            return False
        sizes = args[1]
        first = sizes[0] if isinstance(sizes, Sequence) and sizes else sizes
        return isinstance(first, int) and first == self.samples

    def _make(self, func: Any, args: Sequence[Any], given: Mapping[str, Any], wanted: list[Tensor]) -> Any:
        roots = tuple(dict.fromkeys(name for t in wanted for name in self.made_of(t).names))
        substitute = {id(t): self.made_of(t).value for t in wanted}

        def leaf(value: object) -> object:
            return substitute.get(id(value), value) if isinstance(value, Tensor) else value

        out = func(*_mapped(leaf, args), **_mapped(leaf, given))
        plain = func is F.embedding and self._name(wanted[0]) is not None and _plain_lookup(args, given)
        for tensor in _tensors((out,)):
            if tensor.requires_grad and tensor not in self.made:
                self.made[tensor] = Made(tensor, roots, args[0] if plain else None)
        return out

    def _use(
        self,
        func: Any,
        args: Sequence[Any],
        given: Mapping[str, Any],
        tensors: list[Tensor],
        wanted: list[Tensor],
    ) -> Any:
        self.out = out = func(*_mapped(_detached_of(wanted), args), **_mapped(_detached_of(wanted), given))
        reads_only = not list(_tensors((out,))) and not _in_place(func)
        if reads_only:
            return out
        names = tuple(dict.fromkeys(name for t in wanted for name in self.made_of(t).names))
        self.signature.append((getattr(func, "__name__", str(func)), names))
        rule = RULES.get(func)
        parts = None
        if rule is not None and isinstance(out, Tensor) and len({id(t) for t in wanted}) == len(wanted):
            parts = rule(self, *args, **given)
        if parts is None:
            self.uncovered.update(names)
        elif torch.is_grad_enabled():
            out = self._note(out, parts)
        self._mark(out)
        if _in_place(func):
            self._mark(args[0])
        return out

    def _note(self, out: Tensor, parts: Sequence[Part]) -> Tensor:
        if out.requires_grad:
            self.uses.append(Use(get_gradient_edge(out), parts))
            return out
        # The first operation of the graph: its output is a leaf, which nothing may change in place.
        leaf = out.requires_grad_()
        self.uses.append(Use(leaf, parts))
        return leaf.clone()

    def _mark(self, out: object) -> None:
        for tensor in _tensors((out,)):
            self._sampled[tensor] = True


def _tensors(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _mapped(change: Callable[[object], object], values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _mapped(change, value) for key, value in values.items()}
    if isinstance(values, tuple) and type(values) is tuple:
        return tuple(_mapped(change, value) for value in values)
    if type(values) is list:
        return [_mapped(change, value) for value in values]
    return change(values)


def _detached(value: object) -> object:
    return value.detach() if isinstance(value, nn.Parameter) else value


def _detached_of(wanted: Sequence[Tensor]) -> Callable[[object], object]:
    made = {id(t) for t in wanted}

    def change(value: object) -> object:
        return value.detach() if isinstance(value, Tensor) and id(value) in made else _detached(value)

    return change


def _in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name in {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"} or (
        name.endswith("_") and not name.endswith("__") and not name.startswith("_")
    )


def _plain_lookup(args: Sequence[Any], given: Mapping[str, Any]) -> bool:
    options = dict(
        zip(("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq"), args[2:], strict=False)
    )
    options |= given
    return len(args) >= 2 and not any(
        options.get(key) not in (None, False) for key in ("padding_idx", "max_norm", "scale_grad_by_freq")
    )


def check_modules(model: nn.Module) -> None:
    """Refuse what would change by being called.

    Raises: InputError for a batch norm in training mode.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise InputError(
                f"ntk: {name or 'the model'} is a batch norm in training mode; call model.eval()"
            )


def _refuse_chance(func: Any, args: Sequence[Any], given: Mapping[str, Any]) -> None:
    """No kernel exists of a function that is random, or in which samples see each other."""
    if func is F.batch_norm:
        training = args[5] if len(args) > 5 else given.get("training", False)
        if training:
            raise InputError(
                "ntk: a batch norm uses the statistics of the batch, so that samples are not independent; "
                "call model.eval(), and give it running statistics"
            )
    elif func in _DROPOUTS:
        p = args[1] if len(args) > 1 else given.get("p", 0.5)
        training = args[2] if len(args) > 2 else given.get("training", True)
        if p > 0 and training:
            raise InputError("ntk: the model draws dropout, so that it is no function; call model.eval()")
    elif func is F.scaled_dot_product_attention:
        p = args[4] if len(args) > 4 else given.get("dropout_p", 0.0)
        if p > 0:
            raise InputError("ntk: attention draws dropout, so that it is no function; call model.eval()")


_DROPOUTS = {
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
}
