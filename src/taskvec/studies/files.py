"""Where the files lie that cells make: in the run folder, as far as one process sees it."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from taskvec.errors import InputError
from taskvec.reading import reason
from taskvec.writing import lock, open_own, open_own_folder

PROBE = ".probe-"
"""What the names of files begin with by which processes find out whether they see the same place."""

LATE = 10.0
"""Seconds after which a shared disk shows what another machine wrote."""

_SCRATCH = "taskvec-files-"


class Files(Protocol):
    """The files of a run, as one process sees them."""

    folder: Path
    """Where cells read and write them."""
    storage: str | None = None
    """The URL under which they lie, if not in the folder alone."""

    def fetch(self, path: Path) -> bool:
        """Whether a file of the folder is there; it is brought here first if it lies elsewhere."""

    def bring(self, *names: str) -> None:
        """Bring here what others have made in some folders of the run."""

    def publish(self) -> None:
        """Let others have what was made here since the last time."""

    def probe(self, name: str) -> None:
        """Leave a mark that others see who see the same place."""

    def probes(self) -> set[str]:
        """The names of the marks that are seen from here."""

    def unprobe(self, name: str) -> None:
        """Remove a mark."""

    def waits_for(self, name: str, seconds: float) -> bool:
        """Whether a mark is seen within so many seconds: a shared disk may be late."""
        ends = time.monotonic() + seconds
        while name not in self.probes():
            if time.monotonic() > ends:
                return False
            time.sleep(0.2)
        return True


class Here(Files):
    """Files in the run folder itself, which all processes of the run see."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fetch(self, path: Path) -> bool:
        """Whether it is there."""
        return path.exists()

    def bring(self, *names: str) -> None:
        """They are here."""

    def publish(self) -> None:
        """They are where others see them."""

    def probe(self, name: str) -> None:
        """Leave a mark. Raises: InputError where nothing can be written."""
        try:
            os.close(open_own(self.folder / f"{PROBE}{name}", fresh=True))
        except OSError as error:
            raise InputError(f"{self.folder}: nothing can be written here ({reason(error)})") from None

    def probes(self) -> set[str]:
        """The marks that are seen."""
        return {path.name.removeprefix(PROBE) for path in self.folder.glob(f"{PROBE}*")}

    def unprobe(self, name: str) -> None:
        """Remove a mark."""
        (self.folder / f"{PROBE}{name}").unlink(missing_ok=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder on this machine; those of processes that were killed are removed."""
    home = Path(tempfile.gettempdir())
    for path in home.glob(f"{_SCRATCH}*"):
        with suppress(InputError, OSError):
            handle = open_own_folder(path)
            try:
                if lock(handle):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)
    path = Path(tempfile.mkdtemp(prefix=_SCRATCH))
    handle = open_own_folder(path)
    try:
        lock(handle)
        yield path
    finally:
        os.close(handle)
        shutil.rmtree(path, ignore_errors=True)
