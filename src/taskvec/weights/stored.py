"""Safetensors files: the header is parsed on opening, tensors are read from their place in the file.

Files are read, not mapped: a writable private mapping of a file larger than the memory is refused by the
kernel, and a file that is cut short while it is mapped kills the process instead of raising an error.
"""

import math
import os
import struct
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskvec.errors import CorruptFile, InputError, TaskvecError
from taskvec.later import torch
from taskvec.reading import fill, open_regular, parse_json, reason, shown
from taskvec.weights.blocks import TensorSpec, row_count, row_size, rows_of, rows_shape
from taskvec.weights.dtypes import HEADER_LIMIT, TYPES, array_type, raw_bytes, size_of
from taskvec.weights.lazy import Weights
from taskvec.weights.remote.file import RemoteIdentity
from taskvec.weights.remote.mirror import file_behind

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST = 1 << 63
"""What sizes, and a tensor's bytes, stay below."""


class StoredWeights(Weights):
    """One safetensors file.

    Raises: CorruptFile if the header does not describe the file; InputError for a dtype torch lacks.
    """

    def __init__(self, path: Path, *, ref: str | None = None, folder: Path | None = None) -> None:
        handle = open_regular(path)
        self._close = weakref.finalize(self, os.close, handle)
        self._handle = handle
        length = os.fstat(handle).st_size
        header = read_header(str(path), length, lambda size, place: os.pread(handle, size, place))
        self._places = header.places
        super().__init__(
            ref or str(path),
            header.specs,
            file_identity(path),
            tied=header.tied,
            folder=folder,
            metadata=header.metadata,
            files=(path.resolve(),),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_close", "_handle")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        [path] = self.own_files
        if file_identity(path) != self.identity:
            raise InputError(f"{self.ref}: was written to since it was pickled; open it again")
        handle = self._handle = open_regular(path)
        self._close = weakref.finalize(self, os.close, handle)

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        return read_rows(self, name, partial(fill, self._handle), self._places[name], rows)

    def _read_array(self, name: str, rows: slice | None) -> NDArray[Any]:
        return read_array(self, name, partial(fill, self._handle), self._places[name], rows)

    def close(self) -> None:
        """Close the file. Tensors read before stay valid."""
        self._close()


Fill = Callable[[memoryview, int], bool]
"""Fills a buffer with what lies at a byte of a file; says whether the file is long enough."""


def read_rows(weights: Weights, name: str, fill: Fill, place: int, rows: slice | None) -> "Tensor":
    """A tensor, or some of its rows, that lies in a file in order and without gaps.

    Args:
        place: where in the file it begins.

    Raises: as ``fill_tensor``.
    """
    spec = weights.spec(name)
    if rows is not None and rows.step not in (None, 1):
        return rows_of(read_rows(weights, name, fill, place, None), rows)
    start, shape = place + _offset(spec, rows), rows_shape(spec.shape, rows)
    return fill_tensor(weights, name, fill, start, torch.empty(shape, dtype=spec.dtype))


def read_array(weights: Weights, name: str, fill: Fill, place: int, rows: slice | None) -> NDArray[Any]:
    """The same as an array: of ``bfloat16`` and 8-bit floats the bits."""
    spec = weights.spec(name)
    if rows is not None and rows.step not in (None, 1):
        return read_array(weights, name, fill, place, None).reshape(row_count(spec.shape), -1)[rows]
    start, shape = place + _offset(spec, rows), rows_shape(spec.shape, rows)
    array = np.empty(shape, array_type(spec.code))
    _fill(weights, name, fill, start, raw_bytes(array))
    return array


def _offset(spec: TensorSpec, rows: slice | None) -> int:
    """The byte within a tensor at which its rows begin."""
    first = 0 if rows is None else rows.indices(row_count(spec.shape))[0]
    return first and first * row_size(spec.shape) * spec.itemsize


def fill_tensor(weights: Weights, name: str, fill: Fill, place: int, tensor: "Tensor") -> "Tensor":
    """Fill what is to hold a tensor, or a part of it, with what lies in a file.

    Raises: TaskvecError; CorruptFile if the file ends before.
    """
    _fill(weights, name, fill, place, raw_bytes(tensor))
    return tensor


def _fill(weights: Weights, name: str, fill: Fill, place: int, content: memoryview) -> None:
    try:
        whole = fill(content, place)
    except OSError as error:  # of the input: not to be taken for one of an output being written
        raise TaskvecError(f"{weights.ref}: could not be read ({reason(error)}) inside {name!r}") from error
    if not whole:
        raise CorruptFile(f"{weights.ref}: ends inside {name!r}; was it written to since it was opened?")


class FileIdentity(NamedTuple):
    """What tells one state of a file from another: resolved path, size, times of last change, inode."""

    path: str
    size: int
    mtime: int
    ctime: int
    inode: int

    @property
    def anywhere(self) -> tuple[str | int, ...]:
        """What of it holds on other machines too, that see the file elsewhere or have a copy with its times.

        A download of the hub's cache is called as its content's digest; its time is that of the download.
        """
        path = Path(self.path)
        return (path.name, self.size, *(() if path.parent.name == "blobs" else (self.mtime,)))


def file_identity(path: Path) -> FileIdentity:
    """The state that a file is in.

    Copying and unpacking set the time of the last change of content (mtime) to what it was elsewhere; nothing
    sets that of the inode (ctime).

    Raises: InputError if it is gone.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: could not be read ({reason(error)}); was it removed meanwhile?") from None
    return FileIdentity(str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def identity_of(path: Path) -> FileIdentity | RemoteIdentity:
    """The state that a file is in, here or elsewhere.

    Raises: InputError if it is gone.
    """
    elsewhere = file_behind(path)
    return file_identity(path) if elsewhere is None else elsewhere.identity


class Header(NamedTuple):
    """What the header of a file says.

    Attributes:
        specs: of its tensors, in file order.
        places: the byte at which each begins.
        tied: alias -> the name under which the tensor is stored.
        metadata: the free text.
    """

    specs: dict[str, TensorSpec]
    places: dict[str, int]
    tied: dict[str, str]
    metadata: dict[str, str]


def read_header(path: str, length: int, read: Callable[[int, int], bytes]) -> Header:
    """The header of a file of so many bytes.

    Args:
        path: opens messages.
        read: gives so many bytes from a place on.

    Raises: CorruptFile if it is no header, or does not describe exactly the bytes that follow.
    """
    prefix = read(8, 0)
    size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else length
    if 8 + size > length:
        raise CorruptFile(f"{path}: no safetensors file, or cut off in its header; {_AGAIN}")
    if size > HEADER_LIMIT:
        raise InputError(
            f"{path}: a header of {size / 1e6:,.0f} MB, expected {HEADER_LIMIT / 1e6:,.0f} MB at most; "
            "save fewer tensors in a file"
        )
    header = parse_json(read(size, 8), f"{path}: the safetensors header")
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise CorruptFile(f"{path}: the safetensors header is no mapping of tensors; {_AGAIN}")
    metadata = header.pop("__metadata__", {})
    for key, text in metadata.items():
        if not isinstance(text, str):
            raise CorruptFile(
                f"{path}: {shown(key)} in the metadata is {shown(text)}, expected text; {_AGAIN}"
            )
    offsets = {name: _offsets(path, name, entry) for name, entry in header.items()}
    specs: dict[str, TensorSpec] = {}
    end = 0
    for name in sorted(offsets, key=offsets.__getitem__):
        start, stop = offsets[name]
        specs[name] = _spec(path, name, header[name])
        if start != end or stop - start != specs[name].nbytes:
            raise CorruptFile(
                f"{path}: {name!r} lies at bytes {shown(start)} to {shown(stop)}, "
                f"which does not fit; {_AGAIN}"
            )
        end = stop
    if end != length - 8 - size:
        raise CorruptFile(f"{path}: holds {length - 8 - size} bytes of data, expected {shown(end)}; {_AGAIN}")
    places = {name: 8 + size + start for name, (start, _) in offsets.items()}
    # Where tensors were tied, the writer names the alias and what it stands for in the metadata.
    tied = {alias: kept for alias, kept in metadata.items() if kept in specs and alias not in specs}
    return Header(specs, places, tied, {key: text for key, text in metadata.items() if key not in tied})


def _offsets(path: str, name: str, entry: Any) -> tuple[int, int]:
    match entry:
        case {"data_offsets": [start, stop]} if type(start) is type(stop) is int:
            return start, stop
    raise CorruptFile(f"{path}: {name!r} has no place in the file; {_AGAIN}")


def _spec(path: str, name: str, entry: Mapping[str, Any]) -> TensorSpec:
    code, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(code, str) or code not in TYPES:
        raise InputError(f"{path}: {name!r} has dtype {_quote(code)}, expected one of {', '.join(TYPES)}")
    # A tensor of no elements has strides all the same, which must be numbers too.
    sizes: list[Any] = shape if isinstance(shape, list) else [None]
    if not all(type(size) is int and 0 <= size < _LARGEST for size in sizes) or (
        math.prod(max(1, size) for size in sizes) * size_of(code) >= _LARGEST
    ):
        raise CorruptFile(f"{path}: {name!r} has shape {shown(shape)}, expected a list of sizes; {_AGAIN}")
    return TensorSpec(tuple(sizes), code)


def _quote(value: object) -> str:
    return value if isinstance(value, str) and len(value) < 20 else shown(value)


_AGAIN = "download or write it again"
