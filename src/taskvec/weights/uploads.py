"""Outputs that go elsewhere, such as to a bucket: made on this machine, a shard at a time.

There nothing can be renamed, so what makes a model is written last: of several shards the index, else the
shards themselves; and then the manifest. Until then a journal among the files says what is finished.
"""

import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from taskvec.errors import DiskFull, InputError, NonFinite, OutputExists, TaskvecError, and_more
from taskvec.reading import parse_json, printable, shown
from taskvec.urls import check_takes_files, open_filesystem, said
from taskvec.weights.journal import Finished, Journal, key_of
from taskvec.weights.output import Output, indexes_of
from taskvec.weights.plan import Shard
from taskvec.weights.remote.store import reason_of
from taskvec.weights.staging import MANIFEST, check_suffix
from taskvec.weights.streaming import Outcome, nonfinite_message

T = TypeVar("T")

JOURNAL = "taskvec-journal.json"
"""What is finished of an output, among its files until all are there."""

_PAUSES = (0.5, 2.0, 8.0)
"""Seconds between tries."""

_TELLING = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "crc32c",
    "generation",
    "mtime",
    "created",
    "LastModified",
)
"""What stores say of a file that is another one once it was written to."""

_LARGEST = 1 << 28
"""Bytes of a manifest, or a journal, that is read."""

Write = Callable[
    [Mapping[str, Path], Sequence[Shard], Collection[str], Callable[[Shard, Outcome], None]], Outcome
]
"""Makes shards but those that are finished, one after the other, each at its place on this machine."""


class Store:
    """A folder, or a file, elsewhere."""

    def __init__(self, url: str) -> None:
        self.said = said(url).rstrip("/")
        self._fs, place = open_filesystem(url)
        self._place = place.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._place}/{name}" if name else self._place

    def _tried(self, what: str, do: Callable[[], T]) -> T:
        """What some request gives, tried again if it fails.

        Raises: TaskvecError.
        """
        for pause in (*_PAUSES, None):
            try:
                return do()
            except TaskvecError:
                raise
            except (FileNotFoundError, PermissionError) as error:
                raise TaskvecError(f"{self.said}: could not be {what} ({_why(error)})") from None
            except Exception as error:  # of any of many packages
                if pause is None or "Credential" in type(error).__name__:
                    tries = "" if pause is not None else f", {len(_PAUSES) + 1} times"
                    raise TaskvecError(f"{self.said}: could not be {what} ({_why(error)}{tries})") from None
                time.sleep(pause)
        raise AssertionError

    def names(self) -> list[str]:
        """What lies in the folder, sorted; nothing if there is none."""

        def ask() -> list[str]:
            self._fs.invalidate_cache()
            try:
                entries = {
                    str(entry["name"]): entry["type"] for entry in self._fs.ls(self._place, detail=True)
                }
            except FileNotFoundError:
                return []
            if entries.get(self._place) == "file":
                raise OutputExists(f"{self.said}: is a file; choose another output, or remove it yourself")
            return sorted({name.rstrip("/") for name in entries} - {self._place})

        return [PurePosixPath(entry).name for entry in self._tried("listed", ask)]

    def exists(self) -> bool:
        """Whether there is a file, or a folder."""

        def ask() -> bool:
            self._fs.invalidate_cache()
            return bool(self._fs.exists(self._place))

        return self._tried("looked at", ask)

    def put(self, file: Path, name: str) -> None:
        """Write a file of this machine there."""
        self._tried("written", lambda: self._fs.put_file(str(file), self._path(name)))

    def read(self, name: str) -> bytes:
        """The beginning of a file."""
        return bytes(self._tried("read", lambda: self._fs.cat_file(self._path(name), start=0, end=_LARGEST)))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

        def ask() -> None:
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name))

        self._tried("replaced", ask)

    def state(self, name: str) -> str:
        """What tells one state of a file from another; empty if it is not there."""

        def ask() -> str:
            self._fs.invalidate_cache()
            with suppress(FileNotFoundError):
                info = self._fs.info(self._path(name))
                return " ".join(str(info[key]) for key in ("size", *_TELLING) if info.get(key) is not None)
            return ""

        return self._tried("looked at", ask)


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such place"
    return printable(reason_of(error))


class _RemoteJournal(Journal):
    """A journal that lies with the shards."""

    def __init__(self, store: Store, path: Path, places: Mapping[str, Path], key: str) -> None:
        super().__init__(path, places, key)
        self._store = store

    def _state(self, shard: str) -> str:
        return self._store.state(shard)

    def _is_whole(self, shard: str, before: Finished) -> bool:
        state = before.states.get(shard)
        return bool(state) and self._store.state(shard) == state

    def _keep(self, **more: object) -> None:
        super()._keep(**more)
        self._store.put(self._path, JOURNAL)


class upload:  # like ``staged``: with upload(...) as job
    """Writes an output to a URL.

    Args:
        output: what is written.
        url: where.
        force: replace what is there, if it was written by taskvec. It is removed once the first shard of the
            new one is made.
        resume: keep the finished shards of a run that was interrupted, if it was writing the same.

    Attributes:
        keep: whether finished shards stay if work is interrupted.

    Raises: OutputExists; DiskFull; TaskvecError for a place that cannot be reached.
    """

    def __init__(self, output: Output, url: str, *, force: bool, resume: bool) -> None:
        check_takes_files(url)
        self.output, self._force, self._resume = output, force, resume
        self.store = Store(url)
        self.keep, self._old = False, list[str]()

    @property
    def kept(self) -> str:
        """How to go on with what is left there, in words."""
        return "finished shards are there, --resume (resume=True) goes on with them"

    def check(self) -> bool:
        """Refuse a place that must not be written to; whether an interrupted run was at it."""
        where = self.store.said
        check_suffix(self.output.target, where)
        if self.output.single:
            if self.store.exists() and not self._force:
                raise OutputExists(f"{where}: exists already; --force (force=True) replaces it")
            return False
        names = self.store.names()
        if MANIFEST in names:
            if not self._force:
                raise OutputExists(f"{where}: exists already; --force (force=True) replaces it")
            self._old = self._listed()
            return False
        if names and JOURNAL not in names:
            raise OutputExists(
                f"{where}: holds {shown(names[0])}{and_more(names)}, but no {MANIFEST}, so was not written "
                "by taskvec; choose another output, or remove it yourself"
            )
        return bool(names)

    def _listed(self) -> list[str]:
        """The files of what is there, as its manifest says; the manifest first."""
        with suppress(InputError):
            listed = parse_json(self.store.read(MANIFEST), self.store.said).get("files")
            names = list(filter(_is_inside, listed if isinstance(listed, list) else []))
            return [MANIFEST, *sorted(names, key=lambda name: not name.endswith(".index.json"))]
        return [MANIFEST]

    def run(self, write: Write, *, allow_nonfinite: bool) -> None:
        """Write everything.

        Raises: what ``write`` raises.
        """
        begun = self.check()
        with TemporaryDirectory(prefix="taskvec-", ignore_cleanup_errors=True) as folder:
            scratch = Path(folder)
            (scratch / "made").mkdir()
            self._write(write, scratch, begun=begun, allow_nonfinite=allow_nonfinite)

    def _write(self, write: Write, scratch: Path, *, begun: bool, allow_nonfinite: bool) -> None:
        output, store = self.output, self.store
        last = _last(output.shards)
        needed = [shard.size for shard in output.shards if shard not in last]
        _check_room(scratch, max(needed, default=0) + sum(shard.size for shard in last) + output.beside.size)
        made = scratch / "made"
        places = {shard.file: made / shard.file for shard in output.shards}
        path = scratch / "journal.json"
        journal = _RemoteJournal(store, path, places, key_of(output.shards, output.source))
        if begun:
            self._go_on(journal, path)
        self.keep, replaced = bool(journal.finished.shards), False
        if not output.single:  # early, as it shows whether anything can be written there
            names = [*self._old, *output.names, MANIFEST]
            journal.begin(list(dict.fromkeys(names)))

        def shard_done(shard: Shard, outcome: Outcome) -> None:
            nonlocal replaced
            if not replaced:
                self._remove_old(journal)
                replaced = True
            if shard in last:
                journal.know(shard.file, outcome.digests(shard), outcome.changes)
                return
            store.put(places[shard.file], shard.file)
            places[shard.file].unlink()
            journal.add(shard.file, outcome.digests(shard), outcome.changes)
            self.keep = True

        try:
            outcome = write(places, output.shards, frozenset(journal.finished.shards), shard_done)
            if outcome.bad and not allow_nonfinite:
                raise NonFinite(nonfinite_message(output.source.ref, outcome.bad))
            output.complete(made, [journal.finished])
            self._put_rest(made, last)
        except BaseException as error:
            self.keep = self.keep and not isinstance(error, InputError | NonFinite)  # which would come again
            if not (self.keep or output.single):
                with suppress(TaskvecError):
                    for name in [*(journal.finished.others if replaced or begun else ()), JOURNAL]:
                        store.remove(name)
            raise

    def _go_on(self, journal: Journal, path: Path) -> None:
        """Take over what is finished, if that is wanted; the rest of it will be removed."""
        path.write_bytes(self.store.read(JOURNAL))
        before = Finished.read(path)
        if self._resume:
            journal.keep_finished()
        self._old = [name for name in (before.others if before else ()) if _is_inside(name)]

    def _remove_old(self, journal: Journal) -> None:
        """Remove what was there, so that none of it is taken for what is new."""
        for name in self._old:
            if name not in journal.finished.shards:
                self.store.remove(name)

    def _put_rest(self, made: Path, last: Sequence[Shard]) -> None:
        """Write what completes the output: what makes a model of it comes last."""
        if self.output.single:
            self.store.put(made / last[0].file, "")
            return
        closing = [*(shard.file for shard in last), *indexes_of(self.output.shards), MANIFEST]
        files = sorted(str(file.relative_to(made)) for file in made.rglob("*") if file.is_file())
        for name in [*(name for name in files if name not in closing), *closing]:
            self.store.put(made / name, name)
        self.store.remove(JOURNAL)


def _last(shards: Sequence[Shard]) -> list[Shard]:
    """The shards that no index leads to: they make a model by themselves."""
    listed = indexes_of(shards)
    return [shard for shard in shards if shard.index not in listed]


def _is_inside(name: Any) -> bool:
    """Whether a name in a file of theirs leads to nowhere else."""
    return isinstance(name, str) and name != "" and not {"", ".", ".."} & set(name.split("/"))


def _check_room(scratch: Path, needed: int) -> None:
    free = shutil.disk_usage(scratch).free
    if needed > free:
        raise DiskFull(
            f"{scratch.parent}: shards are made there and sent, which needs {needed / 1e6:,.1f} MB, "
            f"{free / 1e6:,.1f} MB are free; make room, set TMPDIR, or write smaller shards"
        )
