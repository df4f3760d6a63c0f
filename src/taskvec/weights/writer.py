"""Weights written as safetensors: streamed, sharded, and complete before they get their name."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch

from taskvec._version import __version__
from taskvec.arguments import checked
from taskvec.errors import CorruptFile, InputError, NonFinite, TaskvecError
from taskvec.progress import Watch, unwatched
from taskvec.reading import copy_regular, local_path
from taskvec.weights import change
from taskvec.weights.beside import Beside, files_beside
from taskvec.weights.change import Change
from taskvec.weights.filenames import homes_of
from taskvec.weights.journal import Journal
from taskvec.weights.lazy import Weights
from taskvec.weights.opening import WeightsLike, open_weights
from taskvec.weights.plan import Shard, plan_shards
from taskvec.weights.staging import MANIFEST, check_space, check_target, files_in, staged
from taskvec.weights.stored import StoredWeights, file_identity
from taskvec.weights.streaming import Outcome, stream
from taskvec.weights.tally import folded
from taskvec.writing import flush, unwritable, write_json

_log = logging.getLogger(__name__)

Text = str | Callable[[], str]


@checked
def save_weights(
    weights: WeightsLike,
    path: str | Path,
    *,
    force: bool = False,
    max_shard_size: float = 5e9,
    like: Weights | None = None,
    metadata: Mapping[str, str] | None = None,
    manifest: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    extra_files: Mapping[str, Text] | None = None,
    watch: Watch = unwatched,
    allow_nonfinite: bool = False,
    memory: float = 512e6,
    threads: int | None = None,
    processes: int = 1,
    resume: bool = False,
) -> Path:
    """Write ``weights`` as safetensors.

    Args:
        path: a ``.safetensors`` file, or a folder: then with an index if there are several shards, with
            what lies beside the weights of ``like``, and with a manifest ``taskvec.json``.
        force: replace an output that exists. Old output is intact until the new one is complete.
        max_shard_size: bytes of tensor data in a shard of a folder; a larger tensor gets its own.
        like: whose side files are copied, and whose names its files get; by default ``weights``.
        metadata: more free text for the safetensors headers.
        manifest: JSON stored beside the weights of a folder, with the version that wrote it and the
            fingerprint of what was written; or a function that gives it once all has been read.
        extra_files: name -> text of more files for a folder, or a function that gives it once all has been
            read; they win over copied ones, which an empty text leaves out.
        watch: told of each tensor written.
        allow_nonfinite: write NaN and infinities.
        memory: bytes that blocks being read and computed may take. A tensor that can only be had whole
            and needs more is computed alone.
        threads: that read, compute and write; as many as torch computes with, but at least two.
        processes: forked processes instead of threads, which is faster; for programs that have no other
            threads and no CUDA context.
        resume: keep the finished shards of a run that was interrupted, if it was writing the same.

    Returns: the path written.
    Raises: OutputExists; DiskFull before work starts; NonFinite, with the first tensor and the count.
    Cost: one read and one write of everything; memory of a few MiB a thread, or of the largest tensor
        where the weights cannot be had in pieces.
    """
    source = open_weights(weights)
    like = like or source
    target = local_path(path)
    single = target.suffix == ".safetensors"
    shards = plan_files(source, like, None if single else max_shard_size, metadata or {})
    texts: dict[str, Text] = {} if single else {**like.makes, **like.texts, **(extra_files or {})}
    beside = _beside(None if single else like.folder, texts, shards)
    needed = sum(shard.size for shard in shards) + beside.size
    inputs = (*source.files, *like.files)
    if not resume:
        check_target(target, force=force, inputs=inputs)
        check_space(target, needed)
    staging = staged(target, folder=not single, force=force, inputs=inputs, resume=resume)
    with _failing_in_words(target, staging), staging as work:
        journal = Journal(staging.partial, work, shards, source)
        places = {work if single else work / shard.file: shard for shard in shards}
        finished = set() if single else journal.keep_finished()
        staging.keep = bool(finished)
        left = {place: shard for place, shard in places.items() if shard.file not in finished}
        kept = [place for place in places if place not in left]
        if resume:
            check_space(target, needed - sum(place.stat().st_size for place in kept))
        total, done = sum(len(shard.places) for shard in shards), count(1)

        def tensor_done(_: str) -> None:
            watch(f"writing {target.name}", next(done), total)

        def shard_done(place: Path, outcome: Outcome) -> None:
            journal.add(places[place].file, {name: outcome.digest(name) for name in places[place].places})
            staging.keep = not single

        if not single:
            for note in beside.notes:
                _log.warning("%s", note)
            for place in left:
                place.parent.mkdir(exist_ok=True, parents=True)
        for place in kept:
            for name in places[place].places:
                tensor_done(name)
        states = {file: file_identity(file) for file in inputs}
        outcome = stream(
            source,
            left,
            memory=memory,
            threads=threads or max(2, torch.get_num_threads()),
            processes=processes,
            allow_nonfinite=allow_nonfinite,
            tensor_done=tensor_done,
            shard_done=shard_done,
        )
        for file, state in states.items():
            if file_identity(file) != state:
                raise CorruptFile(f"{file}: was written to while it was read; run again")
        if outcome.bad and not allow_nonfinite:
            staging.keep = False
            raise NonFinite(nonfinite_message(source.ref, outcome.bad))
        for place in kept:
            outcome.changes |= _changes(source, place)
        source.keep_outcome(journal.digests(), outcome.changes)
        if not single:
            _write_beside(work, beside, texts)
            _write_indexes(work, shards)
            facts = {
                "created_by": f"taskvec {__version__}",
                "fingerprint": folded(journal.digests()),
                "files": files_in(work),
            }
            more = manifest() if callable(manifest) else manifest or {}
            _write(work / MANIFEST, {**facts, **more})
    return target


def plan_files(
    source: Weights, like: Weights, max_size: float | None, metadata: Mapping[str, str]
) -> list[Shard]:
    """The files of weights written like others: in one file if there is no ``max_size``, else in a folder."""
    if max_size is None:
        return plan_shards(source, None, metadata)
    return plan_shards(source, max_size, metadata, homes_of(like))


def _changes(weights: Weights, shard: Path) -> dict[str, Change]:
    """How far the tensors of a finished shard are from what they were made of."""
    changes: dict[str, Change] = {}
    with StoredWeights(shard) as made:
        for name in made:
            for rows in weights.row_blocks(name):
                change.add_to(changes, name, weights.change_to(name, rows, made.read(name, rows)))
    return changes


def _beside(folder: Path | None, texts: Mapping[str, Text], shards: Sequence[Shard]) -> Beside:
    """What lies beside the weights and is copied; texts win over files of their names.

    Raises: InputError for a file that would lie where something is written.
    """
    # On some disks names that differ by case are one.
    given = {name.casefold() for name in texts}
    found = files_beside(folder, folders_of(shards))
    copied = [(file, place) for file, place in found.copied if str(place).casefold() not in given]
    written = {MANIFEST, *(shard.index for shard in shards), *(shard.file for shard in shards)}
    ours = given | {name.casefold() for name in written}
    for file, place in copied:
        for part in (place, *place.parents):
            if str(part).casefold() in ours:
                raise InputError(f"{file}: would lie where {part} is written; rename it")
    return found._replace(copied=copied)


def _write_beside(work: Path, beside: Beside, texts: Mapping[str, Text]) -> None:
    """Put files and texts into a folder."""
    for file, place in beside.copied:
        (work / place).parent.mkdir(parents=True, exist_ok=True)
        copy_regular(file, work / place)
        flush(work / place)
    for name, text in texts.items():
        if (content := text() if callable(text) else text) != "":
            _write(work / name, content)


def folders_of(shards: Sequence[Shard]) -> set[str]:
    """The folders, inside that of the model, that files of weights are written into."""
    return {str(Path(shard.file).parent) for shard in shards}


def nonfinite_message(where: str, bad: Mapping[str, int]) -> str:
    """The line for tensors (name -> count) that hold NaN or infinity."""
    first, count = next(iter(bad.items()))
    rest = len(bad) - 1
    more = f" ({sum(bad.values()) - count} more in {rest} other tensors)" if rest else ""
    return f"{where}: {first!r} holds {count} values that are NaN or infinite{more}; nothing was written"


def _write_indexes(folder: Path, shards: Sequence[Shard]) -> None:
    """The index of each folder that holds several shards."""
    listed: dict[str, list[Shard]] = {}
    for shard in shards:
        listed.setdefault(shard.index, []).append(shard)
    for index, group in listed.items():
        if len(group) > 1:
            content = {
                "metadata": {"total_size": sum(shard.data_size for shard in group)},
                "weight_map": {
                    name.removeprefix(shard.prefix): Path(shard.file).name
                    for shard in group
                    for name in shard.places
                },
            }
            _write(folder / index, content)


def _write(path: Path, content: str | Mapping[str, Any]) -> None:
    """A text, or a JSON document, that is on the disk."""
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        write_json(path, content)
    flush(path)


@contextmanager
def _failing_in_words(target: Path, staging: staged) -> Iterator[None]:
    kept = f"finished shards wait in {staging.partial.name}, --resume (resume=True) goes on with them"
    try:
        yield
    except (KeyboardInterrupt, TaskvecError) as error:
        if not staging.keep:
            raise
        raise type(error)(f"{str(error) or 'interrupted'}; {kept}") from None
    except OSError as error:
        raise unwritable(target, error, kept if staging.keep else "nothing was left behind") from error
