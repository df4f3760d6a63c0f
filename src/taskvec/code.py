"""Functions of the user's own, named as ``module:function`` or ``file.py:function``.

What the command line or a caller names is their own word; what a *file* names runs only where it is allowed.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import xxhash

from taskvec.errors import InputError
from taskvec.reading import printable, shortened
from taskvec.urls import is_url

_allowed: ContextVar[bool] = ContextVar("allowed", default=False)


@contextmanager
def allowing_code(allowed: bool = True) -> Iterator[None]:
    """Files that are read meanwhile may name code."""
    token = _allowed.set(allowed)
    try:
        yield
    finally:
        _allowed.reset(token)


def check_allowed(ref: str, where: str) -> None:
    """Refuse code that a file names, unless it is allowed. Nothing is imported. Raises: InputError."""
    if not _allowed.get():
        raise InputError(
            f"{where}: names code to run, {ref!r}; read it, and if you trust it give --allow-code "
            "(in Python, load the file inside taskvec.code.allowing_code())"
        )


def names_code(value: str) -> bool:
    """Whether a text has the form ``module:function``."""
    module, colon, function = value.rpartition(":")
    return bool(colon and module and function.isidentifier()) and not is_url(value)


def named_callable(ref: str, where: str, folder: Path | None = None) -> Callable[..., Any]:
    """The function behind ``module:function`` or ``file.py:function``, imported now.

    Args:
        where: opens messages, such as a file and its field.
        folder: what a relative file is relative to, and where modules are looked for first; the working
            directory by default.

    Raises: InputError if there is no such module or function, or importing it fails.
    """
    module, _, name = ref.rpartition(":")
    if not names_code(ref):
        raise InputError(f"{where}: {ref!r} is not of the form module:function or file.py:function")
    held = _module(module, where, folder or Path.cwd())
    found = getattr(held, name, None)
    if not callable(found):
        near = get_close_matches(name, [each for each, value in vars(held).items() if callable(value)], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{where}: {module} has no function {name!r}{hint}")
    return found  # type: ignore[no-any-return]


def _module(name: str, where: str, folder: Path) -> ModuleType:
    try:
        with _looking_in((folder / name).parent if name.endswith(".py") else folder):
            return _from_file(folder / name) if name.endswith(".py") else import_module(name)
    except (Exception, SystemExit) as error:  # whatever its own code raises, a script's end among it
        message = printable(shortened(" ".join(str(error).split()), 160))
        raise InputError(f"{where}: {name} cannot be imported ({type(error).__name__}: {message})") from error


def _from_file(path: Path) -> ModuleType:
    """The module that a file is; the one that it was, where it has not changed since."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    place = path.resolve()
    label = f"taskvec_code_{path.stem}_{xxhash.xxh3_64(str(place).encode()).hexdigest()}"
    changed = place.stat().st_mtime_ns
    known = sys.modules.get(label)
    if known is not None and getattr(known, "__changed__", None) == changed:
        return known
    module = _made(label, place)
    module.__dict__["__changed__"] = changed
    return module


def _made(label: str, path: Path) -> ModuleType:
    spec = spec_from_file_location(label, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no Python file: {path}")
    module = module_from_spec(spec)
    sys.modules[label] = module  # so that what it defines can be pickled
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[label]
        raise
    return module


@contextmanager
def _looking_in(folder: Path) -> Iterator[None]:
    """Modules are looked for in a folder first, as for a script in it."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
