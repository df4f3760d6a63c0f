"""What of a machine decides whether results are the same there.

This file needs nothing but Python: it is sent to machines that may have another taskvec, or none.
"""

import hashlib
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

CODE = "the files of taskvec"


def describe() -> dict[str, str]:
    """Versions by name, and a digest of the package's files."""
    found = {"python": platform.python_version()}
    for package in ("taskvec", "torch", "transformers"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    with suppress(ImportError, ValueError):
        if (spec := find_spec("taskvec")) is not None:
            found[CODE] = digest_of(Path(next(iter(spec.submodule_search_locations or ["."]))))
    return found


def digest_of(package: Path) -> str:
    """Of all files of a package, but for what Python makes of them."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(package).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()
