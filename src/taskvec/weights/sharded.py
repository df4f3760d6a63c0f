"""Several files under an index that says which holds what."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from taskvec.errors import CorruptFile, and_more
from taskvec.reading import inside, read_json, shown
from taskvec.weights.lazy import Weights
from taskvec.weights.stored import file_identity


class ShardedWeights(Weights):
    """The files of one index, opened as one.

    Raises: CorruptFile if a shard is missing, or if index and shards disagree.
    """

    def __init__(self, index: Path, open_shard: Callable[[Path], Weights], *, ref: str | None = None) -> None:
        weight_map = _read_index(index)
        shards = {name: open_shard(path) for name, path in _present(index, weight_map).items()}
        self._shards = tuple(shards.values())
        self._owners = {name: shards[file] for name, file in _check_listed(index, weight_map, shards).items()}
        super().__init__(
            ref or str(index),
            {name: shard.spec(name) for name, shard in self._owners.items()},
            (file_identity(index), *(shard.identity for shard in self._shards)),
            tied={alias: kept for shard in self._shards for alias, kept in shard.tied.items()},
            folder=index.parent,
            metadata={key: text for shard in self._shards for key, text in shard.metadata.items()},
            files=(index.resolve(), *(file for shard in self._shards for file in shard.files)),
        )

    def _read(self, name: str, rows: slice | None) -> Tensor:
        return self._owners[name].read(name, rows)

    def close(self) -> None:
        """Close every shard."""
        for shard in self._shards:
            shard.close()


def _read_index(index: Path) -> dict[str, str]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFile(f"{index}: 'weight_map' is missing or empty, expected names and their shards")
    for name, shard in weight_map.items():
        # A shard elsewhere on the disk is nothing an honest index asks for.
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CorruptFile(f"{index}: {name!r} lies in {shown(shard)}, expected a file beside the index")
    return weight_map


def _present(index: Path, weight_map: Mapping[str, str]) -> dict[str, Path]:
    """The shards by name, in the order in which the index names them."""
    paths = {name: inside(index.parent, name, index) for name in dict.fromkeys(weight_map.values())}
    if missing := [name for name, path in paths.items() if not path.exists()]:
        raise CorruptFile(f"{index}: shard {missing[0]!r} is missing{and_more(missing)}; download it again")
    return paths


def _check_listed(
    index: Path, weight_map: Mapping[str, str], shards: Mapping[str, Weights]
) -> dict[str, str]:
    """The shard of every tensor, which index and shards must agree on."""
    owner: dict[str, str] = {}
    for file, shard in shards.items():
        for name in shard:
            if name in owner:
                raise CorruptFile(
                    f"{index}: {name!r} lies in both {owner[name]!r} and {file!r}, expected one"
                )
            owner[name] = file
    for name, file in weight_map.items():
        if name not in shards[file]:
            place = f"it lies in {owner[name]!r}" if name in owner else "no shard holds it"
            raise CorruptFile(
                f"{index}: {name!r} is not in {file!r} as listed, {place}; write the index again"
            )
    if unlisted := [name for name in owner if name not in weight_map]:
        raise CorruptFile(
            f"{index}: {unlisted[0]!r} in {owner[unlisted[0]]!r} is not listed"
            f"{and_more(unlisted)}; write the index again"
        )
    return owner
