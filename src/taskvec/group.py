"""A group of processes that share one work, as ``torchrun`` starts them, and what they tell each other.

Reading this file imports nothing heavy. Who does not join is a group of one, for which nothing below does
anything.
"""

import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from time import sleep
from typing import TYPE_CHECKING, Any, TypeVar

from taskvec.errors import InputError, TaskvecError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

_BEGIN = timedelta(minutes=10)
"""How long to wait for all processes to begin."""

_LAST = 10.0
"""Seconds that a process waits for another to say what is wrong."""

_WORK = timedelta(days=2)
"""How long for one that works alone; it is torchrun that notices when one dies."""


class Gone(TaskvecError):
    """Another process of the group has ended."""


@dataclass(frozen=True)
class Group:
    """What one process knows of its group; without arguments, a group of one.

    What all of them call, they call in the same order.

    Args:
        rank: of this process, from 0.
        place: of this process among those of its machine.
    """

    rank: int = 0
    size: int = 1
    place: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes and prints, which one does for all."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def sum_(self, flat: "Tensor") -> None:
        """Replace a tensor, of the same shape in all processes, by the sum of all; the same bits in all."""
        if self.alone:
            return
        import torch.distributed as dist

        there = flat if flat.device.type in ("cpu", "cuda") else flat.cpu()
        with _heard(self):
            dist.all_reduce(there)
        if there is not flat:
            flat.copy_(there)

    def gather(self, mine: T) -> list[T]:
        """What each process has, by rank, in all of them; anything that can be pickled."""
        if self.alone:
            return [mine]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with _heard(self):
            dist.all_gather_object(found, mine)
        return found

    def broadcast(self, given: T) -> T:
        """What the first process has, in all of them; anything that can be pickled."""
        if self.alone:
            return given
        import torch.distributed as dist

        held: list[Any] = [given if self.first else None]
        with _heard(self):
            dist.broadcast_object_list(held)
        return given if self.first else held[0]

    def of_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, or the error that it raises, in all of them."""
        if self.alone:
            return make()
        made: Any = None
        failed: Exception | None = None
        try:
            made = make() if self.first else None
        except Exception as error:  # is raised in all
            failed = error
        made, failed = self.broadcast((made, failed))
        if failed is not None:
            raise failed
        return made  # type: ignore[no-any-return]

    def barrier(self) -> None:
        """Wait until all have come here."""
        self.gather(None)

    def same(self, what: str, digest: object) -> None:
        """Refuse to begin where ``what`` is not the same in all processes. Raises: InputError, in all."""
        found = self.gather(digest)
        other = next((rank for rank, held in enumerate(found) if held != found[0]), None)
        if other is not None:
            raise InputError(
                f"{what}: process {other} of {self.size} has {_short(found[other])}, expected "
                f"{_short(found[0])} as process 0 has; give all processes the same"
            )

    def deal(self, items: Sequence[T]) -> Sequence[T]:
        """This process's share of some items: every ``size``-th."""
        return items if self.alone else items[self.rank :: self.size]

    def collect(self, mine: Sequence[T]) -> list[T]:
        """What the processes made of the items that they were dealt, in the order of the items."""
        if self.alone:
            return list(mine)
        found = self.gather(list(mine))
        return [found[place % self.size][place // self.size] for place in range(sum(map(len, found)))]


ALONE = Group()

_CURRENT: ContextVar[Group] = ContextVar("group", default=ALONE)
_TOLD: list[Any] = []
"""Where the processes of a group that was joined note that one has failed."""


def current() -> Group:
    """The group that trainings and measurements are shared by, of one process unless ``joined``.

    Threads do not inherit it.
    """
    return _CURRENT.get()


@contextmanager
def apart() -> Iterator[None]:
    """Inside, this process works for itself, as a group of one."""
    token = _CURRENT.set(ALONE)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def launched(environment: Mapping[str, str] = os.environ) -> Group:
    """What ``torchrun`` says of this process in its environment. Raises: InputError."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(environment.get(name) for name in names):
        return ALONE
    numbers = {name: environment.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    for name, text in numbers.items():
        if not (text.isascii() and text.isdecimal()):
            raise InputError(f"{name}: {text!r} in the environment, expected a whole number as torchrun sets")
    rank, size, place = map(int, numbers.values())
    if rank >= size:
        raise InputError(f"RANK: {rank} in the environment, expected less than WORLD_SIZE, which is {size}")
    return Group(rank, size, place)


@contextmanager
def joined(group: Group | None = None) -> Iterator[Group]:
    """Share the work inside with the other processes of a group, by default the one that torchrun started.

    On CUDA devices they talk by NCCL, elsewhere by gloo.

    Raises: TaskvecError where the others do not come; InputError where their taskvec or torch is another.
    """
    group = launched() if group is None else group
    if group.alone:
        yield group
        return
    begun = _begin(group)
    token = _CURRENT.set(group)
    try:
        _check_versions(group)
        yield group
        group.barrier()  # nobody leaves while others may need it
        if begun:
            _end()
    finally:  # where one has failed, the others may hang: nothing is closed
        _CURRENT.reset(token)


def speaks(wait: bool = True) -> bool:
    """Whether this process is to say why all of them end: the first that fails.

    Args:
        wait: for the end, where another one speaks: it comes with that one's, who may not have spoken yet.
    """
    with suppress(Exception):  # whoever keeps the notes may be gone
        if int(_TOLD[-1].add("taskvec/failed", 1)) == 1 if _TOLD else launched().first:
            return True
        sleep(_LAST if wait else 0)
        return wait and not _TOLD
    return True


def _begin(group: Group) -> bool:
    """Open the connections, unless the program did already; whether it did not."""
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if dist.is_initialized():
        return False
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    if cuda and group.place < torch.cuda.device_count():
        torch.cuda.set_device(group.place)
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=_BEGIN)))
        _TOLD.append(store)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=group.rank, world_size=group.size, timeout=_WORK)
    except (RuntimeError, ValueError) as error:
        raise TaskvecError(
            f"process {group.rank} of {group.size}: cannot reach the others ({_line(error)}); look at "
            "MASTER_ADDR, MASTER_PORT and the network, and start all with torchrun"
        ) from None
    return True


def _end() -> None:
    import torch.distributed as dist

    _TOLD.clear()
    gc.collect()  # leaves less to the end of the interpreter, which was seen to abort
    dist.destroy_process_group()


def _check_versions(group: Group) -> None:
    import torch

    from taskvec._version import __version__

    group.same("taskvec", f"version {__version__}")
    group.same("torch", f"version {torch.__version__}")
    group.same("python", "version {}.{}".format(*sys.version_info))


@contextmanager
def _heard(group: Group) -> Iterator[None]:
    """Say in one line that others are gone, which the backends say in many."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise Gone(
            f"process {group.rank} of {group.size}: another process is gone ({_line(error)}); start all again"
        ) from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _short(held: object) -> str:
    text = str(held)
    return text if len(text) <= 60 else f"{text[:57]}..."
