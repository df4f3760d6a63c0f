"""Outputs that get their name only when they are complete.

Work goes on in a hidden sibling of the target, ``.NAME.partial``, under a lock. What is complete is
renamed into place; what failed is removed. A run that was interrupted or killed may leave the hidden
folder: the next run to the same target resumes it if asked to, and clears it otherwise. A hidden folder that
is a link, another user's, or holds what no run writes is refused, and nothing in it is touched.
"""

import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from taskvec.errors import DiskFull, InputError, OutputExists, and_more
from taskvec.reading import describe, read_mapping, reason, shown
from taskvec.writing import flush, is_at, lock, open_own_folder, remove

_log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
"""What the name of a file ends in; any other output is a folder."""

FOREIGN = frozenset(
    {SUFFIX, ".sft", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".gguf", ".ggml", ".onnx", ".h5"}
    | {".hdf5", ".keras", ".msgpack", ".npz", ".npy", ".tflite", ".pb", ".mlmodel", ".zip", ".tar", ".gz"}
    | {".tgz", ".7z", ".json"}
)
"""Endings of the names of files; of the first, in capitals."""

MANIFEST = "taskvec.json"

JOURNAL = "journal.json"
"""What is finished of an output, beside it in the hidden folder."""

PLAN = "parts.json"
"""What is being written by several processes, in the hidden folder (``taskvec.weights.parts``)."""

_OF_PARTS = re.compile(r"\.?parts?(-\d+)?(-[0-9a-f]{8}|\.lock|\.json)(\.partial)?")
"""Names of what these have there."""

LONGEST = 255 - len("..partial")
"""Bytes of the longest name of an output."""

WAITS = 50
"""How often a lock is tried, 20 ms apart: the workers of a run that was killed take that long to end."""


class staged:  # in lower case, as it is used like a function: with staged(...) as path
    """Gives a path to write to, a file or an empty folder, that becomes ``target`` if all goes well.

    Args:
        target: the final path; its parents are created.
        folder: whether a folder is wanted or a file.
        force: replace a target that exists. A folder is replaced only if it was written here.
        inputs: paths being read, which the target must not be or hold.
        resume: leave what an interrupted run left behind in the folder.

    Attributes:
        partial: the hidden folder that work goes on in.
        keep: whether to leave it behind when work is interrupted, or the disk fails.

    Raises: OutputExists if the target exists, unless as an empty folder, is an input, or is being written by
        another process; InputError if the hidden folder is not one of ours.
    """

    def __init__(
        self,
        target: Path,
        *,
        folder: bool,
        force: bool,
        inputs: Iterable[Path] = (),
        resume: bool = False,
    ) -> None:
        self.target, self._place = target, Place.of(target)
        self.partial, self._work, self._aside = self._place
        self.keep, self._touched = False, True
        self._folder, self._resume = folder, resume
        self._check = partial(check_target, target, force=force, inputs=tuple(inputs))

    @property
    def kept(self) -> str:
        """How to go on with what is left behind, in words."""
        return f"finished shards wait in {self.partial.name}, --resume (resume=True) goes on with them"

    def __enter__(self) -> Path:
        self._check()
        if not os.path.lexists(self.target):  # whoever makes a folder there meanwhile wants it
            self._check = partial(self._check, empty=False)
        warn_of_foreign(self.target)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._handle = _lock(self.partial, self.target)
        try:
            self._clear()
        except BaseException:
            self.keep = self._touched and self._resume and any(self.partial.iterdir())
            self._leave()
            raise
        return self._work

    def _clear(self) -> None:
        self._touched = False
        self._place.check_ours()
        if (self.partial / PLAN).exists() and self._work.exists():
            raise OutputExists(
                f"{self.target}: is being written in parts, and some may be done; write the others with "
                f"--part, or remove {self.partial} to begin anew"
            )
        self._touched = True
        self._place.undo_swap()
        self._check()  # again, as whoever held the lock may have finished just now
        for leftover in self.partial.iterdir():
            kept = self._resume and self._folder and leftover != self._aside
            # A link is never ours, and what it leads to would be taken for what an earlier run left.
            if not kept or leftover.is_symlink():
                remove(leftover)
        if self._folder:
            self._work.mkdir(exist_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._check()  # again, as work takes long and anything may be there by now
                self.keep = False
                self._place.swap_in()
            elif isinstance(error, InputError):  # would come again
                self.keep = False
        finally:
            self._leave()

    def _leave(self) -> None:
        with suppress(OSError):
            if self._touched and not self.keep and is_at(self._handle, self.partial):
                self._place.remove()
        os.close(self._handle)


class Place(NamedTuple):
    """Where an output is made.

    Attributes:
        partial: the hidden folder that work goes on in.
        work: what becomes the output.
        aside: what is there before, while one takes the place of the other.
    """

    partial: Path
    work: Path
    aside: Path

    @classmethod
    def of(cls, target: Path) -> "Place":
        """The place of the output at ``target``."""
        partial = target.parent / f".{target.name}.partial"
        aside = "old" if target.name == "replaced" else "replaced"
        return cls(partial, partial / target.name, partial / aside)

    def check_ours(self) -> None:
        """Refuse a hidden folder that holds what no run writes.

        Raises: InputError.
        """
        if foreign := sorted(path.name for path in self.partial.iterdir() if not self._is_ours(path)):
            raise InputError(
                f"{self.partial}: holds {foreign[0]!r}, which taskvec did not write, and taskvec works under "
                "that name; move it away, or choose another output"
            )

    def _is_ours(self, path: Path) -> bool:
        known = (self.work, self.aside, self.partial / JOURNAL, self.partial / f".{JOURNAL}.partial")
        return path in known or _OF_PARTS.fullmatch(path.name) is not None

    def undo_swap(self) -> None:
        """Put back what had stepped aside for an output, if the process was killed right then."""
        target = self.partial.with_name(self.work.name)
        if os.path.lexists(self.aside) and not os.path.lexists(target):
            self.aside.rename(target)

    def swap_in(self) -> None:
        """Give the output its name."""
        target = self.partial.with_name(self.work.name)
        flush(self.work)
        _swap_in(self.work, target, self.aside)
        flush(target.parent)

    def clear(self, *kept: Path) -> None:
        """Remove all of ours in the hidden folder but some."""
        for path in self.partial.iterdir():
            if path not in kept and self._is_ours(path):
                remove(path)

    def remove(self) -> None:
        """Remove the hidden folder, if nothing but ours is in it."""
        self.clear()
        self.partial.rmdir()


def warn_of_foreign(target: Path) -> None:
    """Say what goes with a folder of ours that is replaced, though it was not written here."""
    if foreign := _foreign(target):
        _log.warning(
            "%s: %r goes with what is replaced, though taskvec did not write it%s",
            *(target, foreign[0], and_more(foreign)),
        )


def check_target(target: Path, *, force: bool, inputs: Iterable[Path] = (), empty: bool = True) -> None:
    """Refuse a target that must not be written; cheap, so that it can come before any work.

    Args:
        force: take what exists, if it was written here.
        inputs: paths being read, which the target must not be or hold.
        empty: take an empty folder that exists.

    Raises: OutputExists; InputError for a name that no disk takes, that leaves no room for a hidden one, or
        that promises another format.
    """
    check_suffix(target)
    if re.fullmatch(r"[A-Za-z][\w+.-]+:", top := next(iter(target.parts), "")) and not (os.path.lexists(top)):
        raise InputError(f"{top}//…: a URL, expected a path of this machine, as nothing else is written here")
    if len(os.fsencode(target.name)) > LONGEST:
        raise InputError(f"{target}: the name is longer than {LONGEST} bytes; choose a shorter one")
    resolved = target.resolve()
    for path in inputs:
        if resolved == path or resolved in path.parents:
            raise OutputExists(f"{target}: is an input of this very edit ({path}); choose another output")
    if not os.path.lexists(target):
        return
    there = target.lstat()
    if not (target.is_symlink() or stat.S_ISREG(there.st_mode) or stat.S_ISDIR(there.st_mode)):
        raise OutputExists(f"{target}: is {describe(there)}, which is never replaced; choose another output")
    held = _names_in(target)
    if held and MANIFEST not in held:
        raise OutputExists(_describe_foreign(target, held, force=force))
    if held is not None and (force or not held) and _stays(target):
        raise OutputExists(f"{target}: no folder can take its place; name one inside it")
    may_be_taken = empty and held == [] and not target.is_symlink() and target.suffix != SUFFIX
    if not (force or may_be_taken):
        raise OutputExists(f"{target}: exists already; --force (force=True) replaces it")


def _describe_foreign(target: Path, held: Sequence[str], *, force: bool) -> str:
    """Words for a folder that holds what taskvec did not write."""
    what = f"{shown(held[0])}{and_more(held)}"
    if force:
        return (
            f"{target}: a folder without {MANIFEST}, so not written by taskvec; remove it yourself "
            f"(it holds {what})"
        )
    return (
        f"{target}: exists already and holds {what}, but no {MANIFEST}, so was not written by taskvec; "
        "choose another output, or remove it yourself"
    )


def check_suffix(target: Path, where: object = None) -> None:
    """Refuse the name of a file in a format that is not written.

    Raises: InputError.
    """
    suffix = target.suffix
    if suffix.casefold() in FOREIGN and suffix != SUFFIX:
        raise InputError(
            f"{where or target}: a name that ends in {suffix}, expected a folder or a name that ends in "
            f"{SUFFIX}; nothing else is written"
        )


def _names_in(target: Path) -> list[str] | None:
    """What a folder holds, sorted; ``None`` for anything else."""
    if not target.is_dir():
        return None
    try:
        return sorted(path.name for path in target.iterdir())
    except OSError as error:
        raise OutputExists(f"{target}: {reason(error)}; choose another output") from None


def _stays(folder: Path) -> bool:
    """Whether a folder cannot be renamed, or somebody is in it: a disk's own, or the working directory."""
    return not folder.is_symlink() and (os.path.ismount(folder) or folder.samefile(Path.cwd()))


def files_in(folder: Path) -> list[str]:
    """All that a manifest says was written into a folder, the manifest included."""
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    return sorted(files | {MANIFEST})


def _foreign(target: Path) -> list[str]:
    """Files in a folder of ours that its manifest does not list; none known if it has no list."""
    if target.is_symlink() or not target.is_dir() or not (target / MANIFEST).is_file():
        return []
    try:
        listed = read_mapping(target / MANIFEST).get("files")
    except InputError:
        return []
    return sorted({*files_in(target)} - set(map(str, listed))) if isinstance(listed, list) else []


def check_space(target: Path, needed: int) -> None:
    """Refuse work whose result of ``needed`` bytes would not fit.

    Raises: DiskFull.
    """
    place = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise DiskFull(f"{target}: needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free; make room")


def _lock(folder: Path, target: Path) -> int:
    """An open handle of the hidden folder, locked.

    Raises: OutputExists if another process holds it.
    """
    for _ in range(WAITS):
        with suppress(FileNotFoundError):  # whoever held it has just finished and removed it
            handle = open_own_folder(folder)
            locked = lock(handle)
            if locked and is_at(handle, folder):
                return handle
            os.close(handle)
            if not locked:
                time.sleep(0.02)
    in_parts = " in parts; wait for it, or choose another output" if (folder / PLAN).exists() else ""
    raise OutputExists(f"{target}: another process is writing it{in_parts}")


def _swap_in(work: Path, target: Path, aside: Path) -> None:
    """Rename into place. No rename puts a folder over anything, or a file over a folder: that steps aside."""
    folders = work.is_dir() or (target.is_dir() and not target.is_symlink())
    if not folders or not os.path.lexists(target):
        work.replace(target)
        return
    target.rename(aside)
    try:
        work.rename(target)
    except BaseException:
        aside.rename(target)
        raise
