"""Loops over entries as machine code, where a chain of tensor operations would read everything many times."""

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The same function of numpy arrays and numbers, compiled by numba on its first call.

    It runs without Python's lock. The machine code is kept beside the source, or in the user's cache folder
    where that may not be written to, so only the very first call waits for the compiler.
    """
    return _compiled(function)


def reassociated(function: Callable[P, R]) -> Callable[P, R]:
    """As ``compiled``, with sums in whatever order is fastest; their last digits depend on the machine."""
    return _compiled(function, fastmath={"reassoc"})


def _compiled(function: Callable[P, R], fastmath: bool | set[str] = False) -> Callable[P, R]:
    @cache
    def made(keep: bool) -> Callable[P, R]:
        import numba

        compiler = numba.njit(nogil=True, error_model="numpy", cache=keep, fastmath=fastmath)
        dispatcher: Callable[P, R] = compiler(function)
        return dispatcher

    keep = True

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal keep
        if keep:
            try:
                return made(True)(*args, **kwargs)
            except Exception:  # no folder or no room to keep it in, or what is there is damaged
                keep = False
        return made(False)(*args, **kwargs)

    return call
