"""Weights written as safetensors: streamed, sharded, and complete before they get their name."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from taskvec.arguments import checked
from taskvec.errors import InputError, NonFinite, OutputExists, TaskvecError
from taskvec.later import count_threads
from taskvec.progress import Watch, unwatched
from taskvec.urls import said
from taskvec.weights.journal import Journal, key_of
from taskvec.weights.lazy import Weights
from taskvec.weights.opening import WeightsLike
from taskvec.weights.output import Output, Text, url_of
from taskvec.weights.parts import Part, Progress, all_done, parted
from taskvec.weights.plan import Shard
from taskvec.weights.staging import JOURNAL, check_space, check_target, staged
from taskvec.weights.streaming import Outcome, nonfinite_message, stream
from taskvec.writing import remove, unwritable

_log = logging.getLogger(__name__)


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
            what lies beside the weights of ``like``, and with a manifest ``taskvec.json``. Or the URL of one
            (``s3://bucket/model``), for which shards are made on this machine one at a time.
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

    Returns: the path written; for a URL, a path that is good for its name alone.
    Raises: OutputExists; DiskFull before work starts; NonFinite, with the first tensor and the count.
    Cost: one read and one write of everything; memory of a few MiB a thread, or of the largest tensor
        where the weights cannot be had in pieces.
    """
    output = Output.of(weights, path, like, max_shard_size, metadata or {}, manifest, extra_files or {})
    if (url := url_of(path)) is not None:
        # Forked processes would share sockets.
        how = _Streaming(memory, threads, 1, allow_nonfinite, watch, one_by_one=True)
        _upload(output, url, how, force=force, resume=resume)
        return output.target
    target, single, shards = output.target, output.single, output.shards
    if not resume:
        check_target(target, force=force, inputs=output.inputs)
        check_space(target, output.size)
    staging = staged(target, folder=not single, force=force, inputs=output.inputs, resume=resume)
    with _failing_in_words(target, staging), staging as work:
        places = {shard.file: work if single else work / shard.file for shard in shards}
        journal = Journal(staging.partial / JOURNAL, places, key_of(shards, output.source))
        if not single:
            _keep_finished(journal, work)
        finished = journal.finished.shards
        staging.keep = bool(finished)
        if resume:
            check_space(target, output.size - sum(places[file].stat().st_size for file in finished))

        def shard_done(shard: Shard, outcome: Outcome) -> None:
            journal.add(shard.file, outcome.digests(shard), outcome.changes)
            staging.keep = not single

        for note in () if single else output.beside.notes:
            _log.warning("%s", note)
        how = _Streaming(memory, threads, processes, allow_nonfinite, watch)
        outcome = how.write(output, places, shards, finished, shard_done)
        if outcome.bad and not allow_nonfinite:
            staging.keep = False
            raise NonFinite(nonfinite_message(output.source.ref, outcome.bad))
        output.complete(work, [journal.finished])
    return target


def _upload(output: Output, url: str, how: "_Streaming", *, force: bool, resume: bool) -> None:
    """Write an output to a place elsewhere."""
    from taskvec.weights.uploads import upload

    job = upload(output, url, force=force, resume=resume)
    with _failing_in_words(job.store.said, job):
        for note in () if output.single else output.beside.notes:
            _log.warning("%s", note)
        job.run(lambda *made: how.write(output, *made), allow_nonfinite=how.allow_nonfinite)


@checked
def write_part(
    weights: WeightsLike,
    path: str | Path,
    part: Part,
    *,
    about: Mapping[str, Any] | None = None,
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
) -> Progress:
    """Write one of several parts of a folder, while other processes, here or elsewhere, may write others.

    The bytes of the folder are those that ``save_weights`` writes with the same options. A part that was
    interrupted is gone on with by writing it again. The other arguments are those of ``save_weights``.

    Args:
        part: which one.
        about: what the manifest will say of how the weights are made; the same for all parts.

    Returns: how far the output is; it has its name once all parts are done.
    Raises: as ``save_weights``; InputError for parts of something else, or weights that other processes
        cannot have.
    Cost: reading what the shards of the part are made of; passes over the whole model that a rule needs are
        taken by each part.
    """
    output = Output.of(weights, path, like, max_shard_size, metadata or {}, manifest, extra_files or {})
    if (url := url_of(path)) is not None:
        raise InputError(
            f"{said(url)}: elsewhere, where parts cannot know of each other, expected a folder on a disk "
            "that all of them see; or write it without parts"
        )
    about = about or (manifest if isinstance(manifest, Mapping) else {})
    facts = output.facts(about, allow_nonfinite=allow_nonfinite)
    if output.is_written(about):
        return all_done(part, output.shards)
    share = parted(output.target, part, output.shards, facts, force=force, inputs=output.inputs)
    try:
        with _failing_in_words(output.target, share), share:
            share.journal.keep_finished()
            finished = share.journal.finished.shards
            left = sum(shard.size for shard in share.mine if shard.file not in finished)
            check_space(output.target, left + output.beside.size)

            def shard_done(shard: Shard, outcome: Outcome) -> None:
                share.finish(shard)
                share.journal.add(shard.file, outcome.digests(shard), outcome.changes)

            places = {shard.file: share.own / shard.file for shard in share.mine}
            how = _Streaming(memory, threads, processes, allow_nonfinite, watch)
            outcome = how.write(output, places, share.mine, finished, shard_done)
            if outcome.bad and not allow_nonfinite:
                rest = f"part {part} was not written"
                raise NonFinite(nonfinite_message(output.source.ref, outcome.bad, rest))
            share.journal.add_inputs(output.input_digests())
            return share.close(partial(output.complete_parts, share.work))
    except OutputExists:  # completed by another process meanwhile
        if output.is_written(about):
            return all_done(part, output.shards)
        raise


class _Keeping(Protocol):
    """Where an output is made: whether something finished stays there, and how to go on with it."""

    @property
    def keep(self) -> bool: ...
    @property
    def kept(self) -> str: ...


class _Streaming(NamedTuple):
    """How tensors are written: as the arguments of ``save_weights`` say, and perhaps a shard at a time."""

    memory: float
    threads: int | None
    processes: int
    allow_nonfinite: bool
    watch: Watch
    one_by_one: bool = False

    def write(
        self,
        output: Output,
        places: Mapping[str, Path],
        shards: Sequence[Shard],
        finished: Collection[str],
        shard_done: Callable[[Shard, Outcome], None],
    ) -> Outcome:
        """Write those of ``shards`` that are not finished, each at its place.

        Raises: as ``stream``; CorruptFile for inputs that change meanwhile.
        """
        total, done = sum(len(shard.places) for shard in shards), count(1)

        def tensor_done(_: str) -> None:
            self.watch(f"writing {output.target.name}", next(done), total)

        left = {places[shard.file]: shard for shard in shards if shard.file not in finished}
        for place in left:
            place.parent.mkdir(exist_ok=True, parents=True)
        for name in (name for shard in shards if shard.file in finished for name in shard.places):
            tensor_done(name)
        states = output.states()
        outcome = Outcome()
        for some in [{place: shard} for place, shard in left.items()] if self.one_by_one else [left]:
            if not some or (outcome.bad and not self.allow_nonfinite):
                break
            written = stream(
                output.source,
                some,
                memory=self.memory,
                threads=self.threads or max(2, count_threads()),
                processes=self.processes,
                allow_nonfinite=self.allow_nonfinite,
                tensor_done=tensor_done,
                shard_done=lambda place, outcome: shard_done(left[place], outcome),
            )
            outcome.merge(written)
        output.check_unchanged(states)
        return outcome


def _keep_finished(journal: Journal, work: Path) -> None:
    """Keep the finished shards of an interrupted run; everything else is removed."""
    if journal.keep_finished() is False:
        _log.warning(
            "%s: begins afresh, as inputs or settings are not surely those of the interrupted run",
            work.parent,
        )
    # Those of modules are small, and files are copied beside them: they are written again.
    journal.forget(name for name in journal.finished.shards if Path(name).name != name)
    for file in work.iterdir():
        if file.name not in journal.finished.shards:
            remove(file)


@contextmanager
def _failing_in_words(target: Path | str, staging: _Keeping) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, TaskvecError) as error:
        if not staging.keep:
            raise
        raise type(error)(f"{str(error) or 'interrupted'}; {staging.kept}") from None
    except OSError as error:
        raise unwritable(
            target, error, staging.kept if staging.keep else "nothing was left behind"
        ) from error
