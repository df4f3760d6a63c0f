"""Files of ``torch.save``, loaded without executing anything they hold."""

import io
import os
import pickle
import pickletools
import re
import struct
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn, cast

from taskvec.errors import CorruptFile, UnsafeFile
from taskvec.later import torch
from taskvec.reading import check_regular, printable

_STRANGERS = 200
"""Classes that a file may name beside torch's own; a trainer's checkpoint has a dozen."""

_CALLED = (
    *(
        "argparse",
        "collections",
        "datetime",
        "decimal",
        "enum",
        "fractions",
        "numpy",
        "pathlib",
        "types",
        "uuid",
    ),
    *("accelerate", "lightning", "lightning_fabric", "omegaconf", "pytorch_lightning", "transformers"),
)
"""Packages whose objects of settings are pickled as a call; any other call is a reason to refuse the file."""

_BUILT = ("builtins.frozenset", "builtins.range", "builtins.slice")
"""Plain values that are pickled as a call."""

_OTHERS = (
    "catboost",
    "flax",
    "jax",
    "jaxlib",
    "joblib",
    "keras",
    "lightgbm",
    "sklearn",
    "tensorflow",
    "xgboost",
)
"""Packages whose models are none of torch's."""

_LOOK = 1000
"""Steps of a pickle that are looked at for the class that it begins with."""

_TENSORS = ("_", "ao.", "distributed.", "fx.", "jit.", "nn.")
"""Parts of torch whose objects hold tensors: what is loaded in the place of one would lack them."""

_LOADING = Lock()
"""Of what torch is told to take for a class, which it keeps for the whole process."""


class Inert:
    """Stands for an object of a class that is not loaded: it keeps nothing, and does nothing.

    Attributes:
        called: the class, in the words of the file.
    """

    called = ""

    def __new__(cls, *_: object) -> "Inert":  # noqa: D102
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None: ...


class _Uncalled(type):
    """Of a class that may be named and filled in, not called."""

    def __call__(cls, *_: object) -> NoReturn:
        raise pickle.UnpicklingError(f"a call of GLOBAL {cls.__module__}.{cls.__qualname__}")


class _Mapping(Inert):
    def __new__(cls, *_: object) -> Any:
        return OrderedDict()


class _List(Inert):
    def __new__(cls, *_: object) -> Any:
        return []


def load_pickle(path: Path) -> Any:
    """What ``torch.save`` wrote, mapped into memory where the format allows.

    Objects of classes beside torch's own (settings, counters) come as ``Inert`` ones: no code of theirs is
    imported.

    Raises: InputError if there is no such file; UnsafeFile if loading would run code; CorruptFile if it is
        damaged, or not as torch writes it.
    """
    check_regular(path)
    # Only the zip format, torch's own since 1.6, can be mapped.
    mapped = zipfile.is_zipfile(path)
    if mapped:
        _check_archive(path)
    return _with_stand_ins(path, lambda: _load(path, mapped))


def load_placed(path: Path) -> tuple[Any, dict[int, tuple[int, int]]]:
    """What an archive of ``torch.save`` holds, with tensors on the meta device, and where they lie.

    Returns: also the first byte, and the number of bytes, of every storage in the file, by its address.
    Raises: as ``load_pickle``; Unplaced for other files, and for archives that are damaged.
    """
    check_regular(path)
    if not zipfile.is_zipfile(path):
        raise Unplaced
    _check_archive(path)
    try:
        return cast("tuple[Any, dict[int, tuple[int, int]]]", _with_stand_ins(path, lambda: _place(path)))
    except CorruptFile:  # whoever reads it as torch does says why
        raise Unplaced from None


class Unplaced(Exception):
    """The tensors of a file have no plain places in it."""


def _place(path: Path) -> tuple[Any, dict[int, tuple[int, int]]]:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        [pickled] = [name for name in members if name.endswith("/data.pkl")]
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != sys.byteorder.encode():
            raise Unplaced
        content = archive.read(pickled)
    storages: dict[str, Any] = {}
    places: dict[int, tuple[int, int]] = {}
    untyped, typed = cast("Any", torch.UntypedStorage), cast("Any", torch.storage.TypedStorage)

    def stored(saved: tuple[Any, ...]) -> Any:
        _, kind, key, _, numel = saved
        dtype = torch.uint8 if kind is torch.UntypedStorage else kind.dtype
        if key not in storages:
            member = members[f"{root}data/{key}"]
            if type(numel) is not int or not 0 <= numel * dtype.itemsize <= member.file_size:
                raise Unplaced
            held = untyped(numel * dtype.itemsize, device="meta")
            storages[key] = typed(wrap_storage=held, dtype=dtype, _internal=True)
            places[held._cdata] = _begin(path, member), numel * dtype.itemsize
        return storages[key]

    # What torch.load itself uses; were it to change, files would be mapped.
    unpickler: Any = import_module("torch._weights_only_unpickler").Unpickler(
        io.BytesIO(content), encoding="utf-8"
    )
    unpickler.persistent_load = stored
    return unpickler.load(), places


def _begin(path: Path, member: zipfile.ZipInfo) -> int:
    """The first byte of what a part of an archive holds."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        head = file.read(30)
    if len(head) < 30 or head[:4] != b"PK\3\4":
        raise Unplaced
    begin = member.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
    if begin + member.file_size > path.stat().st_size:
        raise Unplaced
    return int(begin)


def _with_stand_ins(path: Path, load: Callable[[], Any]) -> Any:
    inert: dict[str, type[Inert]] = {}
    while True:
        try:
            with _standing_in(inert), warnings.catch_warnings():
                # A pickle of an unusual protocol draws a remark from torch; what counts is whether it loads.
                warnings.simplefilter("ignore")
                return load()
        except Unplaced:
            raise
        except pickle.UnpicklingError as error:
            if not _stand_in(inert, str(error)):
                _refuse(path, str(error))
        except Exception as error:  # damaged pickles fail in every way there is
            what = printable(" ".join(str(error).split()[:12])) or type(error).__name__
            raise CorruptFile(
                f"{path}: damaged or no state dict ({what}); download or save it again"
            ) from None


def _load(path: Path, mapped: bool) -> Any:
    if mapped:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    with _Reader(io.FileIO(path)) as file:
        return torch.load(file, weights_only=True, map_location="cpu")


@contextmanager
def _standing_in(inert: dict[str, type[Inert]]) -> Iterator[None]:
    if not inert:
        yield
        return
    with _LOADING, torch.serialization.safe_globals([(made, name) for name, made in inert.items()]):
        yield


def _stand_in(inert: dict[str, type[Inert]], text: str) -> bool:
    """Add, or change, what stands for the class that torch stopped at; whether that may help."""
    if filled := re.search(r"Can only (SETITEM|append|extend).*<class '([\w.]+)'>", text):
        name, kind = filled[2], _Mapping if filled[1] == "SETITEM" else _List
    elif found := re.search(r"Unsupported global: GLOBAL ([\w.]+) was not", text):
        name, kind = found[1] if "." in found[1] else f"builtins.{found[1]}", Inert
    else:
        return False
    package, _, rest = name.partition(".")
    if (
        (package == "torch" and rest.startswith(_TENSORS))
        or inert.get(name) is kind
        or len(inert) > _STRANGERS
    ):
        return False
    maker = type if package in _CALLED or name in _BUILT else _Uncalled
    module, _, own = name.rpartition(".")
    inert[name] = maker(own, (kind,), {"__module__": module, "__qualname__": own, "called": name})
    return True


def _refuse(path: Path, text: str) -> NoReturn:
    if "truncated" in text or "invalid load key" in text:
        raise CorruptFile(f"{path}: damaged or no state dict; download or save it again") from None
    named = re.search(r"GLOBAL ([^\s,]+)", text)
    raise unsafe(path, named[1] if named else _first_class(path)) from None


def unsafe(path: Path, culprit: str | None) -> UnsafeFile:
    """The refusal of a file for what it holds beside tensors."""
    what = f" ({culprit})" if culprit else ""
    remedy = "save its state_dict() as safetensors"
    if culprit and culprit.partition(".")[0] in _OTHERS:
        remedy = "it is no model of torch, and has no state dict"
    elif culprit and culprit.startswith("torch._utils."):
        remedy = "it is a plain pickle: save what it holds as safetensors, or with torch.save"
    return UnsafeFile(f"{path}: holds more than tensors{what}, and loading it could run code; {remedy}")


def _first_class(path: Path) -> str | None:
    """The first class that a plain pickle of a newer protocol names."""
    texts: list[str] = []
    try:
        with _Reader(io.FileIO(path)) as file:
            for code, value, _ in islice(pickletools.genops(file), _LOOK):
                if code.name == "STACK_GLOBAL":
                    return printable(".".join(texts[-2:]))
                texts += [value] if isinstance(value, str) else []
    except Exception:  # not a pickle as the library knows them
        pass
    return None


class _Reader(io.BufferedReader):
    """A file of which no more is asked for than it has, as room is made for all that is asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes, all that are left by default."""
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _check_archive(path: Path) -> None:
    """Refuse what torch never writes and would misread: compressed members, two of one name.

    Raises: CorruptFile.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # odd archives fail in every way there is
        raise CorruptFile(
            f"{path}: damaged or no state dict ({printable(str(error))}); download or save it again"
        ) from None
    odd = next((m for m in members if m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1), None)
    if odd is not None:
        what = f"{odd.filename!r} is compressed"
    elif len({member.filename for member in members}) < len(members):
        what = "two parts have the same name"
    elif sum(member.file_size for member in members) > path.stat().st_size:
        what = "its parts have more bytes than it has itself"
    else:
        return
    raise CorruptFile(f"{path}: no archive as torch writes them, {what}; save it again with torch.save")
