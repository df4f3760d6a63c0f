"""Safetensors files: the header is parsed on opening, tensors are views of the mapped file."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from taskvec.errors import CorruptFile, InputError
from taskvec.weights.dtypes import CODES
from taskvec.weights.source import TensorSpec, Weights


class StoredWeights(Weights):
    """One safetensors file.

    Raises: CorruptFile if the header does not describe the file; InputError for a dtype torch lacks.
    """

    def __init__(self, path: Path, *, ref: str | None = None, folder: Path | None = None) -> None:
        header = _read_header(path)
        metadata: Mapping[str, str] = header.pop("__metadata__", None) or {}
        specs = {name: _spec(path, name, entry) for name, entry in _in_file_order(header)}
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
        self._file = _map(path)

    def _read(self, name: str, rows: slice | None) -> Tensor:
        try:
            tensor: Tensor = self._file.get_tensor(name)
        except SafetensorError as error:
            raise CorruptFile(f"{self.ref}: {name!r} cannot be read ({error})") from None
        return tensor if rows is None else tensor[rows]

    def close(self) -> None:
        """Close the file. Tensors read before stay valid."""
        self._file.__exit__(None, None, None)


def file_identity(path: Path) -> tuple[str, int, int]:
    """What tells one state of a file from another: resolved path, size, time of last change."""
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An ``object_pairs_hook`` for JSON: a name given twice is an error, not a lottery."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the name {key!r} is given twice")
        found[key] = value
    return found


def _read_header(path: Path) -> dict[str, Any]:
    damaged = "download or write it again"
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
            left = path.stat().st_size - 8
            if size is None or size > left:
                raise CorruptFile(f"{path}: not a whole safetensors file, its header is cut off; {damaged}")
            header = json.loads(file.read(size), object_pairs_hook=unique_keys)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        if isinstance(error, CorruptFile):
            raise
        raise CorruptFile(f"{path}: the safetensors header is not valid JSON ({error}); {damaged}") from None
    if not isinstance(header, dict):
        raise CorruptFile(f"{path}: the safetensors header is no mapping; {damaged}")
    end = max(
        (_end(path, name, entry) for name, entry in header.items() if name != "__metadata__"), default=0
    )
    if end != left - size:
        raise CorruptFile(f"{path}: the header promises {end} bytes of data, found {left - size}; {damaged}")
    return header


def _end(path: Path, name: str, entry: Any) -> int:
    try:
        return int(entry["data_offsets"][1])
    except (TypeError, KeyError, IndexError, ValueError):
        raise CorruptFile(
            f"{path}: {name!r} has no data offsets in the header; write the file again"
        ) from None


def _in_file_order(header: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(header.items(), key=lambda item: item[1]["data_offsets"][0])


def _spec(path: Path, name: str, entry: Any) -> TensorSpec:
    code, shape = entry.get("dtype"), entry.get("shape")
    if code not in CODES:
        raise InputError(f"{path}: {name!r} has dtype {code}, expected one of {', '.join(CODES)}")
    if not isinstance(shape, list):
        raise CorruptFile(f"{path}: {name!r} has no shape in the header; write the file again")
    return TensorSpec(tuple(shape), CODES[code])


def _map(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt").__enter__()  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        what = str(error).removeprefix("Error while deserializing header: ")
        raise CorruptFile(f"{path}: damaged safetensors file ({what}); download or write it again") from None
