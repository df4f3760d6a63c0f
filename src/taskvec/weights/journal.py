"""What an output that is being written has finished, so that an interrupted run can be resumed."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
import xxhash

from taskvec._version import __version__
from taskvec.config import Config
from taskvec.errors import InputError, TaskvecError
from taskvec.reading import read_json
from taskvec.weights.lazy import Weights
from taskvec.weights.plan import Shard
from taskvec.weights.staging import JOURNAL
from taskvec.weights.stored import StoredWeights
from taskvec.writing import remove, replace_text

_log = logging.getLogger(__name__)


class _Written(Config):
    """The content of a journal: what was being written, and the digests of the tensors of finished shards."""

    key: str
    shards: dict[str, dict[str, str]]


class Journal:
    """The finished shards of one output, with the digest of every tensor in them.

    Args:
        partial: the hidden folder; the journal is a file in it.
        work: the folder of the shards.
        shards: all that will be.
        weights: what is being written. What can change behind our back is never resumed.
    """

    def __init__(self, partial: Path, work: Path, shards: Sequence[Shard], weights: Weights) -> None:
        self._path, self._work = partial / JOURNAL, work
        origin = f"{__version__}\0{_spell(weights.identity)}".encode()
        self._key = xxhash.xxh3_128_hexdigest(b"".join(shard.header for shard in shards) + origin)
        self._lasting = weights.frozen
        self._planned = {shard.file for shard in shards}
        self._shards: dict[str, dict[str, str]] = {}

    def keep_finished(self) -> set[str]:
        """The shards of an earlier run that are whole and the same; everything else is removed."""
        recorded = self._read()
        if recorded is not None and not (self._lasting and recorded.key == self._key):
            _log.warning(
                "%s: begins afresh, as inputs or settings are not surely those of the interrupted run",
                self._path.parent,
            )
        elif recorded is not None:
            self._shards = {
                name: digests
                for name, digests in recorded.shards.items()
                # Those of modules are small, and files are copied beside them: they are written again.
                if name in self._planned
                and Path(name).name == name
                and _digests(self._work / name) == digests
            }
        for file in self._work.iterdir():
            if file.name not in self._shards:
                remove(file)
        return set(self._shards)

    def _read(self) -> _Written | None:
        if not self._path.exists():
            return None
        try:
            return _Written.parse(str(self._path), read_json(self._path))
        except InputError:
            return _Written(key="", shards={})

    def add(self, shard: str, digests: Mapping[str, bytes]) -> None:
        """Record a shard that is on the disk."""
        self._shards[shard] = {name: digest.hex() for name, digest in digests.items()}
        replace_text(self._path, json.dumps({"key": self._key, "shards": self._shards}))

    def digests(self) -> dict[str, bytes]:
        """The digest of every tensor of every finished shard."""
        return {name: bytes.fromhex(text) for shard in self._shards.values() for name, text in shard.items()}


def _digests(shard: Path) -> dict[str, str] | None:
    if shard.is_symlink():  # nothing of ours
        return None
    try:
        with StoredWeights(shard) as weights:
            return {name: digest.hex() for name, digest in weights.digests().items()}
    except (OSError, TaskvecError):
        return None


def _spell(identity: Any) -> str:
    """An identity in words that are the same in another process; one that has none never matches."""
    match identity:
        case tuple() | list():
            return f"({','.join(map(_spell, identity))})"
        case frozenset() | set():
            return f"{{{','.join(sorted(map(_spell, identity)))}}}"
        case Callable() as function if hasattr(function, "__qualname__"):
            return f"{function.__module__}.{function.__qualname__}"
        case str() | bytes() | int() | float() | None | Path() | torch.dtype():
            return repr(identity)
    inner = getattr(identity, "identity", None)
    return token_hex() if inner is None else _spell(inner)
