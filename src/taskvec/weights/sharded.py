"""Several files under an index that says which holds what."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from taskvec.errors import CorruptFile, InputError, and_more
from taskvec.reading import inside, read_json, shown
from taskvec.weights.lazy import Weights
from taskvec.weights.pickled import PICKLES
from taskvec.weights.stored import file_identity


class ShardedWeights(Weights):
    """The files of one index, opened as one.

    Raises: CorruptFile if a shard is missing, or if index and shards disagree.
    """

    def __init__(self, index: Path, open_shard: Callable[[Path], Weights], *, ref: str | None = None) -> None:
        where = _read_index(index)
        shards = {name: open_shard(path) for name, path in _present(index, where).items()}
        _check_honest(index, where, shards)
        owners = {name: shard for shard in shards.values() for name in shard}
        super().__init__(
            ref or str(index),
            {name: shard.spec(name) for name, shard in owners.items()},
            (file_identity(index), *(shard.identity for shard in shards.values())),
            tied={alias: kept for shard in shards.values() for alias, kept in shard.tied.items()},
            folder=index.parent,
            metadata={key: text for shard in shards.values() for key, text in shard.metadata.items()},
            files=(index.resolve(), *(file for shard in shards.values() for file in shard.files)),
        )
        self._owners = owners
        self._shards = tuple(shards.values())

    def _read(self, name: str, rows: slice | None) -> Tensor:
        return self._owners[name].read(name, rows)

    def close(self) -> None:
        """Close every shard."""
        for shard in self._shards:
            shard.close()


def _read_index(index: Path) -> dict[str, str]:
    content = read_json(index)
    where = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(where, dict) or not where:
        raise CorruptFile(f"{index}: 'weight_map' is missing or empty, expected names and their shards")
    for name, shard in where.items():
        # A shard elsewhere on the disk is nothing an honest index asks for.
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CorruptFile(f"{index}: {name!r} lies in {shown(shard)}, expected a file beside the index")
    return where


def _present(index: Path, where: dict[str, str]) -> dict[str, Path]:
    paths = {name: inside(index.parent, name, index) for name in dict.fromkeys(where.values())}
    missing = [name for name, path in paths.items() if not path.exists()]
    if missing:
        raise CorruptFile(f"{index}: shard {missing[0]!r} is missing{and_more(missing)}; download it again")
    return paths


def _check_honest(index: Path, where: dict[str, str], shards: dict[str, Weights]) -> None:
    owner: dict[str, str] = {}
    for file, shard in shards.items():
        for name in shard:
            if name in owner:
                raise CorruptFile(
                    f"{index}: {name!r} lies in both {owner[name]!r} and {file!r}, expected one"
                )
            owner[name] = file
    for name, file in where.items():
        if name not in shards[file]:
            found = f"it lies in {owner[name]!r}" if name in owner else "no shard holds it"
            raise CorruptFile(
                f"{index}: {name!r} is not in {file!r} as listed, {found}; write the index again"
            )
    unlisted = [name for name in owner if name not in where]
    if unlisted:
        raise CorruptFile(
            f"{index}: {unlisted[0]!r} in {owner[unlisted[0]]!r} is not listed"
            f"{and_more(unlisted)}; write the index again"
        )


def index_kind(index: Path) -> str:
    """``safetensors`` or ``pickle``, from the name of an index file.

    Raises: InputError if the name tells neither.
    """
    stem = index.name.removesuffix(".index.json")
    if stem.endswith(".safetensors"):
        return "safetensors"
    if stem.endswith(PICKLES):
        return "pickle"
    raise InputError(f"{index}: expected a name such as model.safetensors.index.json")
