"""Arrays of a cell in a file beside the records, which name it by its digest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from taskvec.errors import CorruptFile
from taskvec.group import current
from taskvec.reading import inside, read_bytes
from taskvec.writing import replacing

FOLDER = "outputs"
_LIMIT = 1 << 26
"""Bytes of one file."""

Arrays = Mapping[str, NDArray[Any]]


def write_arrays(folder: Path, name: Path, arrays: Arrays) -> dict[str, str]:
    """Write arrays into a run folder; what a record says of the file.

    Args:
        name: below ``FOLDER``, without an ending.
    """
    path = folder / FOLDER / name.with_name(f"{name.name}.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
    if current().first:
        with replacing(path) as file:
            file.write(content)
    return {"file": str(path.relative_to(folder)), "digest": xxhash.xxh3_128_hexdigest(content)}


def read_arrays(folder: Path, name: str, digest: str) -> dict[str, NDArray[Any]]:
    """The arrays of a file that a record names.

    Raises: InputError if it is not there, not in the folder or too large; CorruptFile for other content than
        was written.
    """
    path = inside(folder, name, folder)
    content = read_bytes(path, _LIMIT)
    if xxhash.xxh3_128_hexdigest(content) != digest:
        raise CorruptFile(f"{path}: was changed after a run wrote it")
    try:
        return load(content)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CorruptFile(f"{path}: holds no arrays ({' '.join(str(error).split())})") from None
