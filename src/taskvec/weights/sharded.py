"""Several files under an index that says which holds what."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

from taskvec.errors import CorruptFile, InputError, and_more
from taskvec.reading import exists, inside, read_json, shown
from taskvec.weights.lazy import Weights
from taskvec.weights.remote.mirror import mirror_of
from taskvec.weights.stored import identity_of

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)

_AT_A_TIME = 8

OpenShard = Callable[[Path], Weights]


class ShardedWeights(Weights):
    """Several files, opened as one: those of an index, or those whose numbers say that they are all."""

    def __init__(
        self, ref: str, folder: Path, shards: Mapping[str, Weights], owners: Mapping[str, str], *files: Path
    ) -> None:
        self._shards = tuple(shards.values())
        self._owners = {name: shards[file] for name, file in owners.items()}
        super().__init__(
            ref,
            {name: shard.spec(name) for name, shard in self._owners.items()},
            (*map(identity_of, files), *(shard.identity for shard in self._shards)),
            tied={alias: kept for shard in self._shards for alias, kept in shard.tied.items()},
            folder=folder,
            metadata={key: text for shard in self._shards for key, text in shard.metadata.items()},
            files=(
                *(file.resolve() for file in files),
                *(file for shard in self._shards for file in shard.files),
            ),
        )

    @classmethod
    def of_index(cls, index: Path, open_shard: OpenShard, *, ref: str | None = None) -> Self:
        """The files of an index.

        Raises: CorruptFile if a shard is missing, or if index and shards disagree.
        """
        weight_map = _read_index(index)
        shards = _opened(_present(index, weight_map), open_shard)
        owners = _owners(index, shards)
        _check_listed(index, weight_map, shards, owners)
        return cls(ref or str(index), index.parent, shards, owners, index)

    @classmethod
    def of_files(cls, files: Sequence[Path], open_shard: OpenShard, *, ref: str | None = None) -> Self:
        """Files of one folder without an index.

        Raises: CorruptFile if two hold a tensor of one name.
        """
        folder = files[0].parent
        _log.warning("%s: no index, so its %d shards are read as one model", folder, len(files))
        shards = {file.name: open_shard(_shard(folder, file.name, folder)) for file in files}
        return cls(ref or str(folder), folder, shards, _owners(folder, shards))

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        return self._owners[name].read(name, rows)

    def _read_array(self, name: str, rows: slice | None) -> NDArray[Any]:
        return self._owners[name].read_array(name, rows)

    def close(self) -> None:
        """Close every shard."""
        for shard in self._shards:
            shard.close()


def _opened(paths: Mapping[str, Path], open_shard: OpenShard) -> dict[str, Weights]:
    """The shards; of those elsewhere several headers at a time, as each takes a while to come."""
    if all(mirror_of(path) is None for path in paths.values()):
        return {name: open_shard(path) for name, path in paths.items()}
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        return dict(zip(paths, pool.map(open_shard, paths.values()), strict=True))


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
    paths = {name: _shard(index.parent, name, index) for name in dict.fromkeys(weight_map.values())}
    if missing := [name for name, path in paths.items() if not path.exists()]:
        raise CorruptFile(f"{index}: shard {missing[0]!r} is missing{and_more(missing)}; download it again")
    return paths


def _shard(folder: Path, name: str, where: Path) -> Path:
    """The path of a shard, which may be a link to the same shard elsewhere: of that name, or to a blob."""
    try:
        return inside(folder, name, where)
    except InputError:
        if not _same_shard(folder, name):
            raise
    return folder / name


def _same_shard(folder: Path, name: str) -> bool:
    """Whether a name is that of a link to a shard of this name elsewhere, or to a blob of a hub cache."""
    if Path(name).name != name or "\0" in name:
        return False
    target = Path(os.path.realpath(folder / name))
    blob = target.parent.name == "blobs" and (target.parent.parent / "snapshots").is_dir()
    return exists(target) and (target.name == name or blob)


def _owners(where: Path, shards: Mapping[str, Weights]) -> dict[str, str]:
    """The shard of every tensor."""
    owner: dict[str, str] = {}
    for file, shard in shards.items():
        for name in shard:
            if name in owner:
                raise CorruptFile(
                    f"{where}: {name!r} lies in both {owner[name]!r} and {file!r}, expected one"
                )
            owner[name] = file
    return owner


def _check_listed(
    index: Path, weight_map: Mapping[str, str], shards: Mapping[str, Weights], owner: Mapping[str, str]
) -> None:
    """Refuse an index that does not agree with its shards."""
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
