"""Weights written as safetensors: streamed, sharded, and complete before they get their name."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from taskvec._version import __version__
from taskvec.errors import NonFinite, TaskvecError
from taskvec.progress import Watch, unwatched
from taskvec.weights.dtypes import NAMES, nonfinite_count, raw_bytes
from taskvec.weights.opening import PICKLES, WeightsLike, open_weights
from taskvec.weights.source import Weights
from taskvec.weights.staging import MANIFEST, check_space, check_target, staged

_COPIED = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".py")


def save_weights(
    weights: WeightsLike,
    path: str | Path,
    *,
    force: bool = False,
    max_shard_size: float = 5e9,
    like: Weights | None = None,
    metadata: Mapping[str, str] | None = None,
    manifest: Mapping[str, Any] | None = None,
    watch: Watch = unwatched,
    allow_nonfinite: bool = False,
) -> Path:
    """Write ``weights`` as safetensors.

    Args:
        path: a ``.safetensors`` file, or a folder: then with an index if there are several shards, with
            the config and tokenizer files of ``like``, and with a manifest ``taskvec.json``.
        force: replace an output that exists. Old output is intact until the new one is complete.
        max_shard_size: bytes of tensor data in a shard of a folder; a larger tensor gets its own.
        like: whose config and tokenizer files are copied; by default those of ``weights``.
        metadata: more free text for the safetensors headers.
        manifest: JSON stored beside the weights of a folder, with the version that wrote it.
        watch: told of each tensor written.
        allow_nonfinite: write NaN and infinities.

    Returns: the path written.
    Raises: OutputExists; DiskFull before work starts; NonFinite, with the first tensor and the count.
    Cost: one read and one write of everything; memory of a few MiB, or of the largest tensor where
        the weights cannot be had in pieces.
    """
    source = open_weights(weights)
    like = like or source
    target = Path(path).expanduser()
    single = target.suffix == ".safetensors"
    shards = plan_shards(source, None if single else max_shard_size, metadata or {})
    side_files = [] if single else _side_files(like.folder)
    needed = sum(shard.size for shard in shards) + sum(file.stat().st_size for file, _ in side_files)
    inputs = (*source.files, *like.files)
    check_target(target, force=force, inputs=inputs)
    check_space(target, needed)
    with _failing_in_words(target), staged(target, folder=not single, force=force, inputs=inputs) as work:
        places = {work if single else work / shard.file: shard for shard in shards}
        _write_shards(places, source, allow_nonfinite, partial(watch, f"writing {target.name}"))
        if not single:
            for file, place in side_files:
                (work / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, work / place)
            _write_index(work, shards)
            _write_json(work / MANIFEST, {"created_by": f"taskvec {__version__}", **(manifest or {})})
    return target


@dataclass(frozen=True)
class Shard:
    """One file to be: its tensors in order of writing, and its header, final before the first byte."""

    file: str
    names: tuple[str, ...]
    header: bytes
    data_size: int

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + self.data_size


def plan_shards(weights: Weights, max_size: float | None, metadata: Mapping[str, str]) -> list[Shard]:
    """Group tensors, in their order, into files of at most ``max_size`` bytes of data."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name in weights:
        size = weights.spec(name).nbytes
        if max_size is not None and groups[-1] and filled + size > max_size:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return [
        _plan_shard(weights, _shard_name(number, len(groups)), group, metadata)
        for number, group in enumerate(groups, 1)
    ]


def _shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"


def _plan_shard(weights: Weights, file: str, names: Sequence[str], metadata: Mapping[str, str]) -> Shard:
    # Wide elements first, so that every tensor is aligned to its own element size.
    ordered = tuple(sorted(names, key=lambda name: -weights.spec(name).dtype.itemsize))
    aliases = {alias: kept for alias, kept in weights.tied.items() if kept in set(names)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **weights.metadata, **metadata, **aliases}}
    end = 0
    for name in ordered:
        spec = weights.spec(name)
        start, end = end, end + spec.nbytes
        header[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return Shard(file, ordered, struct.pack("<Q", len(text)) + text, end)


def _write_shards(
    places: Mapping[Path, Shard], weights: Weights, allow_nonfinite: bool, watch: Callable[[int, int], None]
) -> None:
    total, done = sum(len(shard.names) for shard in places.values()), 0
    bad: dict[str, int] = {}
    for path, shard in places.items():
        with path.open("wb") as file:
            file.write(shard.header)
            for name in shard.names:
                count = _write_tensor(file, weights, name, skip=bool(bad))
                if count and not allow_nonfinite:
                    bad[name] = count
                done += 1
                if not bad:
                    watch(done, total)
            file.flush()
            os.fsync(file.fileno())
    if bad:
        raise NonFinite(nonfinite_message(weights.ref, bad))


def _write_tensor(file: BinaryIO, weights: Weights, name: str, *, skip: bool) -> int:
    """Write one tensor, or only look at it; the number of entries that are not finite."""
    count = 0
    for rows in weights.row_blocks(name):
        block = weights.read(name, rows)
        count += nonfinite_count(block)
        if not skip:
            file.write(raw_bytes(block))
    return count


def nonfinite_message(where: str, bad: Mapping[str, int]) -> str:
    """The line for tensors (name -> count) that hold NaN or infinity."""
    first, count = next(iter(bad.items()))
    rest = len(bad) - 1
    more = f" ({sum(bad.values()) - count} more in {rest} other tensors)" if rest else ""
    return f"{where}: {first!r} holds {count} values that are NaN or infinite{more}; nothing was written"


def _write_index(folder: Path, shards: Sequence[Shard]) -> None:
    if len(shards) > 1:
        content = {
            "metadata": {"total_size": sum(shard.data_size for shard in shards)},
            "weight_map": {name: shard.file for shard in shards for name in shard.names},
        }
        _write_json(folder / "model.safetensors.index.json", content)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def _side_files(folder: Path | None) -> list[tuple[Path, Path]]:
    """Config and tokenizer files of a model folder, each with its place in the copy.

    The module folders of a sentence-transformers model belong to it whole.
    """
    if folder is None:
        return []
    found = [
        (file, Path(file.name))
        for file in sorted(folder.iterdir())
        if file.is_file() and file.suffix in _COPIED and not _is_ours(file.name)
    ]
    for module in _module_folders(folder / "modules.json"):
        inside = sorted(file for file in (folder / module).rglob("*") if file.is_file())
        found += [(file, file.relative_to(folder)) for file in inside]
    return found


def _is_ours(name: str) -> bool:
    """Whether a file describes weights, and so is written anew rather than copied."""
    return name == MANIFEST or name.endswith((".index.json", *PICKLES))


def _module_folders(modules: Path) -> list[str]:
    if not modules.is_file():
        return []
    try:
        paths = [entry["path"] for entry in json.loads(modules.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, KeyError):
        return []
    return [path for path in paths if path and Path(path).name == path]


@contextmanager
def _failing_in_words(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = error.strerror or str(error)
        raise TaskvecError(
            f"{target}: could not be written ({what.lower()}); nothing was left behind"
        ) from error
