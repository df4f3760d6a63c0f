"""Outputs that get their name only when they are complete.

Work goes on in a hidden sibling of the target, ``.NAME.partial``, under a lock. What is complete is
renamed into place; what failed, or was interrupted, is removed. A run that was killed leaves the hidden
folder, and the next run to the same target clears it.
"""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from taskvec.errors import DiskFull, OutputExists

MANIFEST = "taskvec.json"


@contextmanager
def staged(target: Path, *, folder: bool, force: bool, inputs: Iterable[Path] = ()) -> Iterator[Path]:
    """Give a path to write to, a file or an empty folder, that becomes ``target`` if all goes well.

    Args:
        target: the final path; its parents are created.
        folder: whether a folder is wanted or a file.
        force: replace a target that exists. A folder is replaced only if it was written here.
        inputs: paths being read, which the target must not be or hold.

    Raises: OutputExists if the target exists, is an input, or is being written by another process.
    """
    check_target(target, force=force, inputs=inputs)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.parent / f".{target.name}.partial"
    work, aside = partial / target.name, partial / "replaced"
    with _locked(partial, target):
        try:
            if aside.exists() and not target.exists():  # killed in the middle of a swap
                aside.rename(target)
                check_target(target, force=force, inputs=inputs)
            for leftover in partial.iterdir():
                _remove(leftover)
            if folder:
                work.mkdir()
            yield work
            _swap_in(work, target, aside)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_target(target: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse a target that must not be written; cheap, so that it can come before any work.

    Raises: OutputExists.
    """
    resolved = target.resolve()
    for path in inputs:
        if resolved == path or resolved in path.parents:
            raise OutputExists(f"{target}: is an input of this very edit ({path}); choose another output")
    if not os.path.lexists(target):
        return
    if not force:
        raise OutputExists(f"{target}: exists already; --force (force=True) replaces it")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise OutputExists(
            f"{target}: a folder without {MANIFEST}, so not written by taskvec; remove it yourself"
        )


def check_space(target: Path, needed: int) -> None:
    """Refuse work whose result of ``needed`` bytes would not fit.

    Raises: DiskFull.
    """
    place = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise DiskFull(f"{target}: needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free; make room")


@contextmanager
def _locked(partial: Path, target: Path) -> Iterator[None]:
    """Hold the hidden folder; the lock dies with the process, so a killed run blocks nobody."""
    partial.mkdir(exist_ok=True)
    handle = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise OutputExists(f"{target}: another process is writing it") from None
    try:
        yield
    finally:
        os.close(handle)


def _swap_in(work: Path, target: Path, aside: Path) -> None:
    """Rename into place. A folder that is replaced steps aside first: no rename replaces a full one."""
    if not target.is_dir() or target.is_symlink():
        work.replace(target)
        return
    target.rename(aside)
    try:
        work.rename(target)
    except BaseException:
        aside.rename(target)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
