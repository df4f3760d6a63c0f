"""A device that is not there: tensors of the CPU that say they are elsewhere, and may not meet others.

Numbers, graphs and transforms are those of the CPU, so that what runs ``elsewhere`` gives the same bits; but
a tensor that was left behind is found by the first operation that mixes it with one that was moved.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from taskvec.tangent.dual import Dual  # imported first: what torch compiles then is not to see our functions

ELSEWHERE = torch.device("hpu:0")
"""A kind of device that torch has a name for, and this machine does not have."""

_FACTORIES = "arange empty eye full linspace ones rand randn randperm scalar_tensor tensor zeros as_tensor"
_LIKE = "empty_like full_like ones_like zeros_like rand_like randn_like"
_ACROSS = ("aten::copy_", "aten::_foreach_copy_")
"""What may read one device and write another."""

_MADE_UP = ("aten::zeros", "aten::_efficientzerotensor")
"""How derivatives begin that nobody gave: a zero, which is expanded."""


class Mixture(AssertionError):
    """An operation met tensors of two devices."""


class Storages:
    """A set of tensors that share all views of them."""

    def __init__(self) -> None:
        self._known: dict[
            int, StorageWeakRef
        ] = {}  # weak references keep the addresses from being used again

    def __contains__(self, tensor: Tensor) -> bool:
        storage = _storage(tensor)
        return storage is not None and storage._cdata in self._known

    def add(self, tensor: Tensor) -> Tensor:
        """Put it in; returned."""
        if (storage := _storage(tensor)) is not None:
            self._known[storage._cdata] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        return tensor

    def remove(self, tensor: Tensor) -> Tensor:
        """Take it out; returned."""
        if (storage := _storage(tensor)) is not None:
            self._known.pop(storage._cdata, None)
        return tensor


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    """The memory behind a tensor, a dual number, or what a transform wraps; none on other devices."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    if isinstance(tensor, Dual):
        return _storage(tensor.primal)
    return None if tensor.layout != torch.strided or tensor.is_meta else tensor.untyped_storage()


class Moved(Storages):
    """What is elsewhere.

    Attributes:
        unstated: zeros that torch made up itself in derivatives: on a real device they are made there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unstated = Storages()
        self.attending = False
        """Whether attention there is computed in its parts, for which torch makes masks itself."""


class NoMixture(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Results are where their arguments are, and arguments are all in one place.

    Attributes:
        waits: how often numbers were taken out of a tensor elsewhere, for which a real device stands still.
    """

    def __init__(self, moved: Moved) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved, self.waits = moved, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        given = [tensor for tensor in given if tensor not in self.moved.unstated]
        far = [tensor in self.moved for tensor in given]
        name = func.name().split(".")[0]
        if name in _ACROSS or not any(far):
            out = func(*args, **(kwargs or {}))
            if name in _MADE_UP and out.ndim == 0:
                self.moved.unstated.add(out)
            return self.moved.add(out) if self.moved.attending and not given else out
        # A number on the CPU may go with tensors of a device.
        left = [tuple(t.shape) for t, away in zip(given, far, strict=True) if not away and t.ndim]
        if left:
            raise Mixture(f"{name} of tensors elsewhere and of {left} on the CPU")
        self.waits += name == "aten::_local_scalar_dense"
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.moved.add(leaf)
        return out


def _is_elsewhere(device: Any) -> bool:
    return device is not None and torch.device(device).type == ELSEWHERE.type


class _Transfer(torch.autograd.Function):
    """A copy on the other side, whose gradient comes back."""

    @staticmethod
    def forward(ctx: Any, moved: Moved, value: Tensor, away: bool) -> Tensor:
        ctx.moved, ctx.away = moved, away
        copied = value.clone()
        return moved.add(copied) if away else moved.remove(copied)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        copied = slope.clone()
        return None, ctx.moved.remove(copied) if ctx.away else ctx.moved.add(copied), None


@contextmanager
def elsewhere() -> Iterator[NoMixture]:
    """``ELSEWHERE`` is a device, for a while; raises Mixture where tensors of two devices meet."""
    moved = Moved()
    watched = NoMixture(moved)
    listed: Any = Tensor.tolist

    def taken_out(tensor: Tensor) -> Any:
        watched.waits += tensor in moved
        return listed(tensor)

    with pytest.MonkeyPatch.context() as patch:
        _know_device(patch, moved)
        patch.setattr(Tensor, "tolist", taken_out)
        with watched:
            yield watched


def _know_device(patch: pytest.MonkeyPatch, moved: Moved) -> None:
    """Teach torch's Python face about the device."""
    to: Any = Tensor.to
    deepcopy: Any = Tensor.__deepcopy__
    numpy: Any = Tensor.numpy
    transfer: Any = _Transfer.apply
    device = torch._C.TensorBase.device

    def place_of(tensor: Tensor) -> torch.device:
        if isinstance(tensor, Dual):
            return place_of(tensor.primal)
        return ELSEWHERE if tensor in moved else device.__get__(tensor)

    def move(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        target = options.pop("device", None)
        rest = []
        for value in args:
            if isinstance(value, Tensor):
                target, value = place_of(value), value.dtype
            if isinstance(value, str | torch.device):
                target = value
            elif isinstance(value, torch.dtype):
                rest.append(value)
        if target is not None and torch.device(target).type not in ("cpu", ELSEWHERE.type):
            moved_on: Tensor = to(tensor, target, *rest, **options)
            return moved_on
        if target is not None and _is_elsewhere(target) != (tensor in moved):
            away = _is_elsewhere(target)
            if tensor.requires_grad:
                tensor = transfer(moved, tensor, away)
            else:
                tensor = moved.add(tensor.clone()) if away else moved.remove(tensor.clone())
        options.pop("non_blocking", None)
        placed: Tensor = to(tensor, *rest, **options) if rest or options else tensor
        return placed

    def copied(tensor: Tensor, memo: Any) -> Tensor:
        out = deepcopy(tensor, memo)
        return moved.add(out) if tensor in moved else out

    def as_array(tensor: Tensor, **options: Any) -> Any:
        if tensor in moved:
            raise Mixture("numpy of a tensor elsewhere")
        return numpy(tensor, **options)

    patch.setattr(Tensor, "device", property(place_of), raising=False)
    patch.setattr(Tensor, "to", move)
    patch.setattr(Tensor, "cpu", lambda tensor: move(tensor, "cpu"))
    patch.setattr(Tensor, "__deepcopy__", copied)
    patch.setattr(Tensor, "numpy", as_array)
    patch.setattr(Tensor, "norm", _norm)
    patch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    for name in (*_FACTORIES.split(), *_LIKE.split()):
        patch.setattr(torch, name, _placing(getattr(torch, name), moved))
    for name in ["new_zeros", "new_ones", "new_empty", "new_full", "new_tensor"]:
        patch.setattr(Tensor, name, _placing(getattr(Tensor, name), moved), raising=False)
    attend = torch.nn.functional.scaled_dot_product_attention

    def attended(query: Tensor, *args: Any, **options: Any) -> Tensor:
        moved.attending = query in moved
        try:
            return attend(query, *args, **options)
        finally:
            moved.attending = False

    patch.setattr(torch.nn.functional, "scaled_dot_product_attention", attended)
    wrapper = Tensor._make_wrapper_subclass
    patch.setattr(Tensor, "_make_wrapper_subclass", lambda *a, **k: wrapper(*a, **_on_cpu(k)), raising=False)
    for name in ("autocast", "is_autocast_enabled", "get_autocast_dtype"):
        real = getattr(torch, name)
        patch.setattr(
            torch,
            name,
            lambda kind, *a, real=real, **k: real("cpu" if _is_elsewhere(kind) else kind, *a, **k),
        )


def _norm(tensor: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, **options: Any) -> Tensor:
    """As on a CPU; torch has another way for devices that it does not know."""
    length: Tensor = torch.linalg.vector_norm(tensor, 2 if p == "fro" else p, dim, keepdim, **options)
    return length


def _on_cpu(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "device": torch.device("cpu")} if _is_elsewhere(options.get("device")) else options


def _placing(make: Callable[..., Tensor], moved: Moved) -> Callable[..., Tensor]:
    """A factory that knows the device."""

    def made(*args: Any, **options: Any) -> Tensor:
        out = make(*args, **_on_cpu(options))
        moved.unstated.remove(out)
        stated = options.get("device")
        if stated is None:
            return out
        return moved.add(out) if _is_elsewhere(stated) else moved.remove(out)

    return made
