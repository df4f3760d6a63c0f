"""A run folder of several processes that do the same: the first reads and writes it for all."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from secrets import token_hex
from socket import gethostname
from typing import Any

from taskvec.errors import InputError
from taskvec.group import current
from taskvec.studies.files import LATE, PROBE
from taskvec.studies.store import Store


def open_store(folder: Path, storage: str | None = None) -> Store:
    """The store of a run folder, for this process alone or as one of the current group."""
    return Store(folder, storage) if current().alone else SharedStore(folder)


class SharedStore(Store):
    """The records of a run folder, as the first process has them. All ask for the same, in the same order.

    Raises: as ``Store``.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        current().barrier()  # nobody begins to write before all have looked

    @property
    def begun(self) -> bool:
        """Whether the folder holds records of an earlier run; they are not read."""
        return current().of_first(lambda: super(SharedStore, self).begun)

    @cached_property
    def _records(self) -> dict[str, dict[str, Any]]:
        return current().of_first(lambda: Store(self.folder)._records)

    @contextmanager
    def locked(self, fresh: bool = False) -> Iterator[None]:
        """Make the folder and hold it, see ``Store``.

        Raises: InputError, also where a process does not see what the first one writes there.
        """
        with ExitStack() as held:
            holding = super().locked(fresh)
            current().of_first(lambda: held.enter_context(holding))
            _check_seen(self.folder)
            yield

    def put(self, record: dict[str, Any]) -> None:
        """Put a new result on record."""
        if current().first:
            super().put(record)
        self._records[record["key"]] = record

    def result(
        self,
        cell: str,
        inputs: Mapping[str, object],
        compute: Callable[[], Mapping[str, object]],
        there: Callable[[], bool] = lambda: True,
    ) -> dict[str, Any]:
        """The cell's result, the same in all processes; what it wrote is there for all when this returns."""
        found = super().result(cell, inputs, compute, lambda: current().broadcast(there()))
        current().barrier()
        _wait_for(there)
        return found

    def _new(
        self,
        cell: str,
        key: str,
        inputs: Mapping[str, object],
        compute: Callable[[], Mapping[str, object]],
    ) -> dict[str, Any]:
        return current().broadcast(super()._new(cell, key, inputs, compute))


def _wait_for(there: Callable[[], bool]) -> bool:
    """Whether a file is there, at once or as soon as a shared disk shows it."""
    begun = time.monotonic()
    while not (seen := there()) and time.monotonic() - begun < LATE:
        time.sleep(0.1)
    return seen


def _check_seen(folder: Path) -> None:
    """Refuse a folder that is not the same one for all processes. Raises: InputError, in all."""
    group = current()
    token = folder / f"{PROBE}{group.broadcast(token_hex(8))}"
    group.of_first(token.touch)
    blind = [where for where, seen in group.gather((gethostname(), _wait_for(token.exists))) if not seen]
    group.of_first(lambda: token.unlink(missing_ok=True))
    if blind:
        raise InputError(
            f"{folder}: is not there, or another folder, for a process on {blind[0]}; give a run folder that "
            "all processes share, such as one on NFS"
        )
