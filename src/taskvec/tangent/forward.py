"""Forward-mode derivatives, on kernels that have them."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from taskvec.errors import InputError

Params = Mapping[str, Tensor]

with warnings.catch_warnings(), forward_ad.dual_level():
    # The first dual number of a process makes torch compile its decompositions, which warns of its own doing.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    forward_ad.make_dual(torch.zeros(()), torch.zeros(()))  # type: ignore[no-untyped-call]


class NoTangent(InputError):
    """A derivative is missing somewhere, and the linearized output would be wrong without it."""


@contextmanager
def forward_mode() -> Iterator[None]:
    """Kernels with a forward-mode rule, for a while.

    Fused attention has none, and neither has the fast path of ``nn.MultiheadAttention``: the math kernel
    takes their place. Settings are as they were afterwards.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def jvp(function: Callable[[Params], Any], theta0: Params, tau: Params) -> tuple[Any, Any]:
    """``(f(theta0), J(theta0) tau)`` by ``torch.func``; tensors of ``theta0`` without a tangent get none.

    Returns: twice the structure that ``function`` returns; in the second, what is no floating-point tensor
        is None.
    Raises: NoTangent for an operation without a forward-mode rule.
    """
    structure: list[Any] = []

    def flat(moved: dict[str, Tensor]) -> tuple[Tensor, ...]:
        leaves, spec = tree_flatten(function({**theta0, **moved}))
        structure[:] = [leaves, spec]
        return tuple(leaf for leaf in leaves if differentiable(leaf))

    at = {name: theta0[name].detach() for name in tau}
    step = {name: tau[name].to(value.dtype) for name, value in at.items()}
    try:
        with forward_mode():
            values, slopes = torch.func.jvp(flat, (at,), (step,))  # type: ignore[misc]
    except NotImplementedError as error:
        raise NoTangent(
            f"no forward-mode derivative ({_first_line(error)}); use a plain implementation of this layer"
        ) from None
    leaves, spec = structure
    out, tangent = list(leaves), [None] * len(leaves)
    places = [place for place, leaf in enumerate(leaves) if differentiable(leaf)]
    for place, value, slope in zip(places, values, slopes, strict=True):
        out[place], tangent[place] = value, slope
    return tree_unflatten(out, spec), tree_unflatten(tangent, spec)


def differentiable(value: object) -> bool:
    """Whether a value can have a tangent."""
    return isinstance(value, Tensor) and value.is_floating_point()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160]
