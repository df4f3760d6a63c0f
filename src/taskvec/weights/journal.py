"""What an output that is being written has finished, so that an interrupted run can be resumed."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

import xxhash
from pydantic import Field

from taskvec._version import __version__
from taskvec.config import Config
from taskvec.errors import InputError, TaskvecError
from taskvec.reading import read_json
from taskvec.weights.change import Change
from taskvec.weights.lazy import Weights
from taskvec.weights.plan import Shard
from taskvec.weights.stored import FileIdentity, StoredWeights, file_identity
from taskvec.writing import replace_text

_Digests = dict[str, str]


class Finished(Config):
    """The content of a journal.

    Attributes:
        key: of what is being written.
        shards: file -> the digest of each tensor in it.
        changes: tensor -> how far it is from what it was made of, its floats in hexadecimal.
        states: file -> what it looked like when it was finished.
        others: of an output elsewhere, what may lie there too.
        inputs: for each input in its order, tensor -> digest, as far as known.
    """

    key: str
    shards: dict[str, _Digests]
    changes: dict[str, tuple[int, int, str, str]]
    states: dict[str, str] = Field(default_factory=dict)
    others: list[str] = Field(default_factory=list)
    inputs: list[_Digests] = Field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Finished | None":
        """A journal; none if there is none, an empty one for a damaged one."""
        if not path.exists():
            return None
        try:
            found = cls.parse(str(path), read_json(path))
            found.digests(), found.moved(), found.digests_of_inputs()
        except (InputError, ValueError, OverflowError):
            return cls(key="", shards={}, changes={})
        return found

    def digests(self) -> dict[str, bytes]:
        """The digest of every tensor of every finished shard."""
        return {name: bytes.fromhex(text) for shard in self.shards.values() for name, text in shard.items()}

    def moved(self) -> dict[str, Change]:
        """How far the tensors are from what they were made of."""
        return {
            name: Change(entries, changed, float.fromhex(distance), float.fromhex(norm))
            for name, (entries, changed, distance, norm) in self.changes.items()
        }

    def digests_of_inputs(self) -> list[dict[str, bytes]]:
        """What is known of the tensors of each input."""
        return [{name: bytes.fromhex(text) for name, text in digests.items()} for digests in self.inputs]

    def without(self, shards: Collection[str]) -> "Finished":
        """The same but for some shards."""
        kept = {name: digests for name, digests in self.shards.items() if name not in shards}
        return self.model_copy(update={"shards": kept})


class Journal:
    """The finished shards of one output, or of a part of it.

    Args:
        path: of the file it is kept in.
        places: file -> where it is, or will be, of all shards.
        key: of what is being written; an earlier run's with another is not gone on with.
    """

    def __init__(self, path: Path, places: Mapping[str, Path], key: str) -> None:
        self._path, self._places = path, places
        self.finished = Finished(key=key, shards={}, changes={})

    def keep_finished(self) -> bool | None:
        """Take over the shards of an earlier run that are whole and the same.

        Returns: whether that run was writing the same; none if there was no such run.
        """
        before = Finished.read(self._path)
        if before is None or before.key != self.finished.key:
            return None if before is None else False
        bad = {name for name in before.shards if name not in self._places or not self._is_whole(name, before)}
        self.finished = before.without(bad)
        return True

    def forget(self, shards: Iterable[str]) -> None:
        """Take shards for unfinished."""
        self.finished = self.finished.without(set(shards))

    def add(self, shard: str, digests: Mapping[str, bytes], changes: Mapping[str, Change]) -> None:
        """Record a shard that is on the disk."""
        self.know(shard, digests, changes)
        self._keep(states={**self.finished.states, shard: self._state(shard)})

    def know(self, shard: str, digests: Mapping[str, bytes], changes: Mapping[str, Change]) -> None:
        """Keep in mind what is known of a shard; that it is finished is recorded by ``add``."""
        spelled = {
            name: (each.entries, each.changed, float(each.distance).hex(), float(each.norm).hex())
            for name, each in ((name, changes[name]) for name in digests if name in changes)
        }
        hexed = {name: digest.hex() for name, digest in digests.items()}
        more = {
            "shards": {**self.finished.shards, shard: hexed},
            "changes": {**self.finished.changes, **spelled},
        }
        self.finished = self.finished.model_copy(update=more)

    def add_inputs(self, inputs: Sequence[Mapping[str, bytes]]) -> None:
        """Record what is known of the inputs."""
        before = self.finished.inputs or [{}] * len(inputs)
        self._keep(
            inputs=[
                old | {name: digest.hex() for name, digest in new.items()}
                for old, new in zip(before, inputs, strict=True)
            ]
        )

    def _state(self, shard: str) -> str:
        return state_of(self._places[shard])

    def _is_whole(self, shard: str, before: Finished) -> bool:
        return digests_of(self._places[shard]) == before.shards[shard]

    def begin(self, others: Sequence[str]) -> None:
        """Record that work begins, at a place where other files may lie."""
        self._keep(others=list(others))

    def _keep(self, **more: object) -> None:
        self.finished = self.finished.model_copy(update=more)
        replace_text(self._path, json.dumps(self.finished.model_dump()))


def state_of(file: Path) -> str:
    """What a finished file looks like: whoever finds it so need not read it again."""
    return " ".join(map(str, file_identity(file)[1:]))


def digests_of(shard: Path) -> _Digests | None:
    """The digests of the tensors in a shard; none for what is no whole shard of ours."""
    if shard.is_symlink() or shard.parent.is_symlink():
        return None
    try:
        with StoredWeights(shard) as weights:
            return {name: digest.hex() for name, digest in weights.digests().items()}
    except (OSError, TaskvecError):
        return None


def key_of(shards: Sequence[Shard], weights: Weights) -> str:
    """What tells one output from another: of weights that can change behind our back, one that never comes
    again."""
    origin = f"{__version__}\0{spell(weights.identity) if weights.frozen else token_hex()}".encode()
    return xxhash.xxh3_128_hexdigest(b"".join(shard.header for shard in shards) + origin)


def spell(identity: Any, *, anywhere: bool = False) -> str:
    """An identity in words that are the same in another process; one that has none never matches.

    Args:
        anywhere: the same on another machine too, which has the same files elsewhere.
    """

    def inner(part: Any) -> str:
        return spell(part, anywhere=anywhere)

    match identity:
        case FileIdentity() if anywhere:
            return repr(identity.anywhere)
        case tuple() | list():
            return f"({','.join(map(inner, identity))})"
        case frozenset() | set():
            return f"{{{','.join(sorted(map(inner, identity)))}}}"
        case Callable() as function if hasattr(function, "__qualname__"):
            return f"{function.__module__}.{function.__qualname__}"
        case str() | bytes() | int() | float() | None | Path():
            return repr(identity)
    if type(identity).__module__ == "torch":  # an element type
        return repr(identity)
    below = getattr(identity, "identity", None)
    return token_hex() if below is None else inner(below)
