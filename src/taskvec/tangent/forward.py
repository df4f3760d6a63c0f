"""Forward-mode derivatives, on kernels that have them."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from taskvec.errors import InputError

Params = Mapping[str, Tensor]

_Out = TypeVar("_Out")

with warnings.catch_warnings(), forward_ad.dual_level():
    # The first dual number of a process makes torch compile its decompositions, which warns of its own doing.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    forward_ad.make_dual(torch.zeros(()), torch.zeros(()))  # type: ignore[no-untyped-call]


class NoTangent(InputError):
    """A derivative is missing somewhere, and the linearized output would be wrong without it."""


class NoRoute(NoTangent):
    """The function itself loses a derivative or is random, so that no way of computing it can be right."""


@contextmanager
def forward_mode() -> Iterator[None]:
    """Kernels with a forward-mode rule, for a while.

    Fused attention has none, and neither has the fast path of ``nn.MultiheadAttention``: the math kernel
    takes their place. Settings are as they were afterwards.
    """
    with without_fast_path(), sdpa_kernel(SDPBackend.MATH):
        yield


def on_plain_kernels(run: Callable[[], _Out]) -> _Out:
    """What ``run`` gives; where fused recurrent layers lack a forward-mode rule, by plain kernels."""
    try:
        return run()
    except (NotImplementedError, RuntimeError) as error:
        if not any(sign in str(error) for sign in ("mkldnn_rnn", "cudnn_rnn")):
            raise
    fused = torch._C._get_mkldnn_enabled()  # its public setting warns of devices that are not there
    torch._C._set_mkldnn_enabled(False)
    try:
        with torch.backends.cudnn.flags(enabled=False):
            return run()
    finally:
        torch._C._set_mkldnn_enabled(fused)


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Attention layers of torch call their parts one by one, for a while."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def jvp(function: Callable[[Params], Any], theta0: Params, tau: Params) -> tuple[Any, Any]:
    """``(f(theta0), J(theta0) tau)`` by ``torch.func``; tensors of ``theta0`` without a tangent get none.

    Returns: twice the structure that ``function`` returns; what is no floating-point tensor is the same in
        both.
    Raises: NoTangent for an operation without a forward-mode rule.
    """
    structure: list[Any] = []

    def flat(moved: dict[str, Tensor]) -> tuple[Tensor, ...]:
        leaves, spec = tree_flatten(function({**theta0, **moved}))
        structure[:] = [leaves, spec]
        return tuple(leaf for leaf in leaves if differentiable(leaf))

    at = {name: theta0[name].detach() for name in tau}
    step = {name: tau[name].to(value) for name, value in at.items()}
    try:
        with forward_mode():
            pair: Any = on_plain_kernels(lambda: torch.func.jvp(flat, (at,), (step,)))
    except NoTangent:
        raise
    except (NotImplementedError, RuntimeError) as error:
        raise missing(error) from None
    values, slopes = pair
    leaves, spec = structure
    out, tangent = list(leaves), list(leaves)
    places = [place for place, leaf in enumerate(leaves) if differentiable(leaf)]
    for place, value, slope in zip(places, values, slopes, strict=True):
        out[place], tangent[place] = value, slope
    return tree_unflatten(out, spec), tree_unflatten(tangent, spec)


def differentiable(value: object) -> bool:
    """Whether a value can have a tangent."""
    return isinstance(value, Tensor) and value.is_floating_point()


_SIGNS = ("forward ad", "forward mode", "forward-mode", "jvp", "functorch", "vmap", "data pointer")


def missing(error: Exception, what: str = "an operation") -> Exception:
    """The error, or NoTangent in its place if it says that a derivative is missing."""
    message = str(error).strip().splitlines()[0]
    if not any(sign in message.lower() for sign in _SIGNS):
        return error
    return NoTangent(
        f"{what} has no forward-mode derivative ({message[:160]}); write it in plain torch operations"
    )


def named_in(module: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, which runs ``module``; when a derivative is missing, the part at fault is named."""

    def named(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (NotImplementedError, RuntimeError, NoTangent) as error:
            clear = error if isinstance(error, NoTangent) else missing(error)
            if not isinstance(clear, NoTangent):
                raise
            with _tracing(module) as running, suppress(NotImplementedError, RuntimeError, NoTangent):
                function(*args, **kwargs)
            raise type(clear)(f"{running[-1]}: {clear}" if running else str(clear)) from None

    return named


@contextmanager
def _tracing(module: nn.Module) -> Iterator[list[str]]:
    """The names and types of the modules that are running, innermost last; a failed one stays in the list."""
    running: list[str] = []
    handles = []
    for name, part in module.named_modules():
        label = f"{name or 'the model'!r} ({type(part).__name__})"
        handles.append(part.register_forward_pre_hook(lambda _, __, label=label: running.append(label)))
        handles.append(part.register_forward_hook(lambda *_: running.pop() and None))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()
