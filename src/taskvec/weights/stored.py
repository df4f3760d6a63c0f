"""Safetensors files: the header is parsed on opening, tensors are read from their place in the file.

Files are read, not mapped: a writable private mapping of a file larger than the memory is refused by the
kernel, and a file that is cut short while it is mapped kills the process instead of raising an error.
"""

import json
import os
import struct
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskvec.errors import CorruptFile, InputError
from taskvec.weights.dtypes import CODES, raw_bytes
from taskvec.weights.source import TensorSpec, Weights, row_count, row_size, rows_of, rows_shape


class StoredWeights(Weights):
    """One safetensors file.

    Raises: CorruptFile if the header does not describe the file; InputError for a dtype torch lacks.
    """

    def __init__(self, path: Path, *, ref: str | None = None, folder: Path | None = None) -> None:
        handle = os.open(path, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, handle)
        header, self._start = _read_header(path, handle)
        metadata: Mapping[str, str] = header.pop("__metadata__")
        specs = {name: _spec(path, name, entry) for name, entry in header.items()}
        # Where tensors were tied, the writer names the alias and what it stands for in the metadata.
        tied = {alias: kept for alias, kept in metadata.items() if kept in specs and alias not in specs}
        super().__init__(
            ref or str(path),
            specs,
            file_identity(path),
            tied=tied,
            folder=folder,
            metadata={key: text for key, text in metadata.items() if key not in tied},
            files=(path.resolve(),),
        )
        self._offsets = {name: entry["data_offsets"][0] for name, entry in header.items()}
        self._handle = handle

    def _read(self, name: str, rows: slice | None) -> Tensor:
        spec = self._specs[name]
        first, shape = 0, spec.shape
        if rows is not None:
            first, _, step = rows.indices(row_count(shape))
            if step != 1:
                return rows_of(self._read(name, None), rows)
            shape = rows_shape(shape, rows)
        tensor = torch.empty(shape, dtype=spec.dtype)
        place = self._start + self._offsets[name]
        if first:
            place += first * row_size(spec.shape) * spec.dtype.itemsize
        if not _fill(self._handle, raw_bytes(tensor), place):
            raise CorruptFile(f"{self.ref}: ends inside {name!r}; was it written to since it was opened?")
        return tensor

    def close(self) -> None:
        """Close the file. Tensors read before stay valid."""
        self._close()


def file_identity(path: Path) -> tuple[str, int, int, int, int]:
    """What tells one state of a file from another: resolved path, size, times of last change, inode.

    Copying and unpacking set the time of the last change of content (mtime) to what it was elsewhere; nothing
    sets that of the inode (ctime).
    """
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An ``object_pairs_hook`` for JSON: a name given twice is an error, not a lottery."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the name {key!r} is given twice")
        found[key] = value
    return found


def _fill(handle: int, buffer: memoryview, place: int) -> bool:
    """Read until the buffer is full; one call may give less. Whether the file was long enough."""
    done = 0
    while done < len(buffer):
        count = os.preadv(handle, [buffer[done:]], place + done)
        if count == 0:
            return False
        done += count
    return True


def _read_header(path: Path, handle: int) -> tuple[dict[str, Any], int]:
    """The parsed header, in file order, and where the data start.

    Raises: CorruptFile if it is no header, or does not describe exactly the bytes that follow.
    """
    length = os.fstat(handle).st_size
    prefix = os.pread(handle, 8, 0)
    size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else length
    if 8 + size > length:
        raise CorruptFile(f"{path}: no safetensors file, or cut off in its header; {_AGAIN}")
    try:
        header = json.loads(os.pread(handle, size, 8), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path}: the safetensors header is not valid JSON ({error}); {_AGAIN}") from None
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise CorruptFile(f"{path}: the safetensors header is no mapping of tensors; {_AGAIN}")
    metadata = header.pop("__metadata__", {})
    tensors = dict(sorted(header.items(), key=lambda item: _offsets(path, *item)))
    end = 0
    for name, entry in tensors.items():
        start, stop = _offsets(path, name, entry)
        if start != end or stop - start != _spec(path, name, entry).nbytes:
            raise CorruptFile(
                f"{path}: {name!r} lies at bytes {start} to {stop}, which does not fit; {_AGAIN}"
            )
        end = stop
    if end != length - 8 - size:
        raise CorruptFile(f"{path}: holds {length - 8 - size} bytes of data, expected {end}; {_AGAIN}")
    return {"__metadata__": metadata, **tensors}, 8 + size


def _offsets(path: Path, name: str, entry: Any) -> tuple[int, int]:
    match entry:
        case {"data_offsets": [int() as start, int() as stop]}:
            return start, stop
    raise CorruptFile(f"{path}: {name!r} has no place in the file; {_AGAIN}")


def _spec(path: Path, name: str, entry: Mapping[str, Any]) -> TensorSpec:
    code, shape = entry.get("dtype"), entry.get("shape")
    if code not in CODES:
        raise InputError(f"{path}: {name!r} has dtype {code}, expected one of {', '.join(CODES)}")
    if not isinstance(shape, list) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise CorruptFile(f"{path}: {name!r} has shape {shape}, expected a list of sizes; {_AGAIN}")
    return TensorSpec(tuple(shape), CODES[code])


_AGAIN = "download or write it again"
