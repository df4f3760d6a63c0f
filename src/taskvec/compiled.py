"""Loops over entries as machine code, where a chain of tensor operations would read everything many times."""

import os
import stat
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The same function of numpy arrays and numbers, compiled by numba on its first call.

    It runs without Python's lock. The machine code is kept beside the source, or in the user's cache folder
    where that may not be written to, so only the very first call waits for the compiler. A folder that
    others can write to (``NUMBA_CACHE_DIR``) is not used: what lies there is run.
    """
    return _compiled(function)


def reassociated(function: Callable[P, R]) -> Callable[P, R]:
    """As ``compiled``, with sums in whatever order is fastest; their last digits depend on the machine."""
    return _compiled(function, fastmath={"reassoc"})


def _compiled(function: Callable[P, R], fastmath: bool | set[str] = False) -> Callable[P, R]:
    @cache
    def made(keep: bool) -> Callable[P, R]:
        import numba

        dispatcher: Any = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)
        if keep:
            dispatcher.enable_caching()
            if not _is_safe(Path(dispatcher.stats.cache_path)):
                return made(False)
        return cast("Callable[P, R]", dispatcher)

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


def _is_safe(folder: Path) -> bool:
    """Whether nobody but this user, and root, can put files into a folder, or another one in its place.

    Beside the source they could as well change the source.
    """
    if folder.is_relative_to(Path(__file__).parent):
        return True
    ours = (0, os.geteuid())
    real = Path(os.path.realpath(folder))
    for place in (real, *real.parents):
        if not place.exists():
            continue
        status = place.stat()
        shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if status.st_uid not in ours or (shared and (place == real or not status.st_mode & stat.S_ISVTX)):
            return False
    return True
