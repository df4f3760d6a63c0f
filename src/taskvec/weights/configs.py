"""The config.json beside weights, as far as these depend on it."""

from pathlib import Path
from typing import Any

from taskvec.reading import read_mapping


def config_beside(folder: Path | None) -> dict[str, Any]:
    """The settings of a model folder; empty where no such file lies.

    Raises: CorruptFile.
    """
    path = None if folder is None else folder / "config.json"
    return read_mapping(path) if path is not None and path.is_file() else {}
