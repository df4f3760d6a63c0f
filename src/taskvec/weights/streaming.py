"""The engine of every edit on disk: blocks are read, computed and written by threads that share one list.

Each thread takes the next block, computes it and writes it to its place, so nothing waits in a queue and
memory is that of the blocks in the threads' hands, whatever the largest tensor is.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Condition, Lock

import torch

from taskvec.weights.dtypes import nonfinite_count, raw_bytes
from taskvec.weights.plan import Shard
from taskvec.weights.source import Tally, Weights

Told = Callable[[str], None]
"""Called with the name of each tensor, or the file name of each shard, that is finished."""


@dataclass
class Outcome:
    """What is known after a pass.

    Attributes:
        tally: digests of what was written.
        bad: tensor -> number of entries that are NaN or infinite, in the order of the plan.
    """

    tally: Tally = field(default_factory=Tally)
    bad: dict[str, int] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def count(self, name: str, entries: int) -> None:
        """Note that so many more entries of a tensor are not finite."""
        with self._lock:
            self.bad[name] = self.bad.get(name, 0) + entries

    def digest(self, name: str, weights: Weights) -> bytes:
        """The digest of a tensor that was written whole."""
        found = self.tally.digest(name, weights.spec(name))
        assert found is not None
        return found


def stream(
    weights: Weights,
    shards: Mapping[Path, Shard],
    *,
    memory: float,
    threads: int,
    allow_nonfinite: bool,
    tensor_done: Told,
    shard_done: Callable[[Path, Outcome], None],
) -> Outcome:
    """Write ``shards``, each under its path.

    Args:
        memory: bytes that all blocks at work may take together; a block that needs more runs alone.
        tensor_done, shard_done: told in the calling thread; a shard is on the disk by then.
        allow_nonfinite: else nothing more is written after the first NaN or infinity, only counted.

    Raises: whatever reading, writing or the functions told raise, after all threads have stopped.
    """
    outcome = Outcome()
    queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
    before = torch.get_num_threads()
    _keep_freed_memory()
    with ExitStack() as stack:
        files = [_File(path, shard, stack) for path, shard in shards.items()]
        for file in files:
            if not file.shard.places:
                file.write(memoryview(b""), 0)
        work = _Work(_steps(weights, files), _Gate(memory))

        def finish(file: _File, name: str) -> None:
            queue.put(lambda: tensor_done(name))
            if file.finished(name):
                file.close()
                queue.put(lambda: shard_done(file.path, outcome))

        def run() -> None:
            torch.set_num_threads(1)  # the blocks are the parallelism
            try:
                for step in work:
                    with work.gate.holding(step.cost):
                        done = step.run(weights, outcome, allow_nonfinite)
                    if done:
                        finish(step.file, step.name)
            except BaseException:
                work.stop()
                raise
            finally:
                queue.put(None)

        with ThreadPoolExecutor(threads, thread_name_prefix="taskvec") as pool:
            try:
                running = [pool.submit(run) for _ in range(threads)]
                left = threads
                while left:
                    told = queue.get()
                    left -= told is None
                    if told is not None and not outcome.bad:
                        told()
                for one in running:
                    one.result()
            finally:
                work.stop()
                torch.set_num_threads(before)
    order = [name for shard in shards.values() for name in shard.places]
    outcome.bad = {name: outcome.bad[name] for name in order if name in outcome.bad}
    return outcome


def _keep_freed_memory() -> None:
    """Let blocks be allocated where the last ones were, not in fresh pages that the kernel has to clear.

    glibc returns large blocks to the kernel as soon as they are freed, unless it has seen larger ones come
    and go; this is one.
    """
    torch.empty(24 << 20, dtype=torch.uint8)


class _File:
    """A shard being written."""

    def __init__(self, path: Path, shard: Shard, stack: ExitStack) -> None:
        self.path, self.shard = path, shard
        self._stack = stack
        self._handle: int | None = None
        self._lock = Lock()
        self._left: dict[str, int] = {}
        self._tensors = len(shard.places)

    def expect(self, name: str, blocks: int) -> None:
        self._left[name] = blocks

    def write(self, data: memoryview, place: int) -> None:
        with self._lock:
            if self._handle is None:
                self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
                self._stack.callback(self.close)
                _write_all(self._handle, memoryview(self.shard.header), 0)
        _write_all(self._handle, data, place)

    def block_done(self, name: str) -> bool:
        """Whether this was the last block of the tensor."""
        with self._lock:
            self._left[name] -= 1
            return not self._left[name]

    def finished(self, name: str) -> bool:
        """Whether this was the last tensor of the file; then it is flushed to the disk."""
        with self._lock:
            self._tensors -= 1
            if self._tensors:
                return False
        if self._handle is not None:
            os.fsync(self._handle)
        return True

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def _write_all(handle: int, data: memoryview, place: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done:], place + done)


@dataclass(frozen=True)
class _Step:
    """One block of one tensor, or what has to be known before its first block (``ahead``)."""

    file: _File
    name: str
    rows: slice | None
    place: int
    cost: int
    ahead: bool = False

    def run(self, weights: Weights, outcome: Outcome, allow_nonfinite: bool) -> bool:
        """Whether the tensor is finished."""
        if self.ahead:
            weights.ready(self.name)
            return False
        block = weights.read(self.name, self.rows)
        count = nonfinite_count(block)
        if count and not allow_nonfinite:
            outcome.count(self.name, count)
        elif not outcome.bad:
            outcome.tally.add(self.name, weights.spec(self.name), self.rows, block)
            self.file.write(raw_bytes(block), self.place)
        return self.file.block_done(self.name)


def _steps(weights: Weights, files: Iterable[_File]) -> Iterator[_Step]:
    """All steps in the order of the files; what comes ahead of a tensor precedes the tensor before it."""
    waiting: list[_Step] = []
    for file in files:
        for name, place in file.shard.places.items():
            cost = weights.working_bytes(name)
            yield _Step(file, name, None, 0, cost, ahead=True)
            yield from waiting
            waiting = _blocks(weights, file, name, place, cost)
    yield from waiting


def _blocks(weights: Weights, file: _File, name: str, place: int, cost: int) -> list[_Step]:
    spec = weights.spec(name)
    pieces = list(weights.row_blocks(name))
    file.expect(name, len(pieces))
    row = spec.nbytes // spec.shape[0] if spec.shape and spec.shape[0] else 0
    return [
        _Step(file, name, rows, place + (0 if rows is None else rows.start * row), cost) for rows in pieces
    ]


class _Work:
    """The list of steps that the threads share."""

    def __init__(self, steps: Iterator[_Step], gate: "_Gate") -> None:
        self._steps, self._lock, self._stopped = steps, Lock(), False
        self.gate = gate

    def __iter__(self) -> Iterator[_Step]:
        while True:
            with self._lock:
                step = None if self._stopped else next(self._steps, None)
            if step is None:
                return
            yield step

    def stop(self) -> None:
        self._stopped = True


class _Gate:
    """Admits steps while the bytes they take together stay below a bound; the first one always."""

    def __init__(self, bound: float) -> None:
        self._bound, self._held, self._changed = bound, 0, Condition()

    @contextmanager
    def holding(self, cost: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + cost <= self._bound)
            self._held += cost
        try:
            yield
        finally:
            with self._changed:
                self._held -= cost
                self._changed.notify_all()
