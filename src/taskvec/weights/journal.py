"""What an output that is being written has finished, so that an interrupted run can be resumed."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any

import torch
import xxhash

from taskvec._version import __version__
from taskvec.config import Config
from taskvec.errors import InputError, TaskvecError
from taskvec.reading import read_json
from taskvec.weights.source import Weights
from taskvec.weights.staging import remove
from taskvec.weights.stored import StoredWeights

FILE = "journal.json"


class _Record(Config):
    """What the file holds."""

    key: str
    shards: dict[str, dict[str, str]]


class Journal:
    """The finished shards of one output, with the digest of every tensor in them.

    Args:
        partial: the hidden folder; the journal is a file in it.
        work: the folder of the shards.
        headers: of all shards to be.
        weights: what is being written. What can change behind our back is never resumed.
    """

    def __init__(self, partial: Path, work: Path, headers: Iterable[bytes], weights: Weights) -> None:
        self._path, self._work = partial / FILE, work
        said = f"{__version__}\0{_said(weights.identity)}"
        self._key = xxhash.xxh3_128_hexdigest(b"".join(headers) + said.encode())
        self._lasting = weights.frozen
        self._shards: dict[str, dict[str, str]] = {}

    def finished(self) -> set[str]:
        """The shards of an earlier run that are whole and the same; everything else is removed."""
        for name, digests in self._recorded().items() if self._lasting else ():
            if _digests(self._work / name) == digests:
                self._shards[name] = digests
        for file in self._work.iterdir():
            if file.name not in self._shards:
                remove(file)
        return set(self._shards)

    def _recorded(self) -> Mapping[str, dict[str, str]]:
        try:
            said = _Record.parse(FILE, read_json(self._path))
        except InputError:
            return {}
        mine = said.shards if said.key == self._key else {}
        return {name: digests for name, digests in mine.items() if Path(name).name == name}

    def add(self, shard: str, digests: Mapping[str, str]) -> None:
        """Record a shard that is on the disk."""
        self._shards[shard] = dict(digests)
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps({"key": self._key, "shards": self._shards}), encoding="utf-8")
        fresh.replace(self._path)

    def digests(self) -> dict[str, bytes]:
        """The digest of every tensor of every finished shard."""
        return {name: bytes.fromhex(text) for shard in self._shards.values() for name, text in shard.items()}


def _digests(shard: Path) -> dict[str, str] | None:
    try:
        with StoredWeights(shard) as weights:
            return {name: digest.hex() for name, digest in weights.digests().items()}
    except (OSError, TaskvecError):
        return None


def _said(identity: Any) -> str:
    """An identity in words that are the same in another process; if there are none, it is never the same."""
    match identity:
        case tuple() | list():
            return f"({','.join(map(_said, identity))})"
        case frozenset() | set():
            return f"{{{','.join(sorted(map(_said, identity)))}}}"
        case Callable() as function if hasattr(function, "__qualname__"):
            return f"{function.__module__}.{function.__qualname__}"
        case str() | bytes() | int() | float() | None | Path() | torch.dtype():
            return repr(identity)
    inner = getattr(identity, "identity", None)
    return token_hex() if inner is None else _said(inner)
