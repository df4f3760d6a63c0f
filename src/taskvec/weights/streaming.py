"""The engine of every edit on disk: workers share out the tensors and write them block by block.

A worker takes the next tensor, or a part of a very large one, and each block goes from reading to its place
in the file before the next one is begun. So nothing waits in a queue, and memory is that of a block for each
worker, whatever the largest tensor is.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate, chain
from math import ceil
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskvec.later import is_loaded, torch
from taskvec.memory import give_back, within
from taskvec.weights import change
from taskvec.weights.blocks import TensorSpec, row_size
from taskvec.weights.change import Change
from taskvec.weights.dtypes import nonfinite_count, raw_bytes, tensor_of
from taskvec.weights.lazy import Weights
from taskvec.weights.plan import Shard, batches
from taskvec.weights.tally import Tally
from taskvec.weights.workers import Locks, in_processes, in_threads
from taskvec.writing import flush, write_at

SPAN = 1 << 24
"""Bytes that a worker writes before it reports them: enough that reporting costs next to nothing."""

_SMALL = 1 << 20
"""Bytes below which tensors are taken several at a time, as a span costs a message and an opened file."""

_PARTS = 4
"""Of the whole for each worker: a larger tensor is shared. A rule that measures a tensor before it makes any
part of it does so in each worker that makes one."""

_SETTLED = 1 << 25
"""Bytes after which what was written is put on the disk and out of memory, while the workers go on.

A large output would else push the inputs and other programs' files out of memory, and take pages that were
free for long, which are slow to come by in a virtual machine.
"""

_size = attrgetter("size")


class Block(NamedTuple):
    """Rows of a tensor (``None`` for all), the byte of a file at which they begin, and their bytes."""

    name: str
    rows: slice | None
    place: int
    size: int


@dataclass(frozen=True)
class Span:
    """Consecutive blocks of one tensor, or several small tensors, and the file they go to."""

    path: Path
    blocks: Sequence[Block]

    @cached_property
    def size(self) -> int:
        """Bytes."""
        return sum(block.size for block in self.blocks)

    @cached_property
    def names(self) -> Sequence[str]:
        """The tensors that have blocks here."""
        return tuple(dict.fromkeys(block.name for block in self.blocks))


@dataclass
class Outcome:
    """What is known of the output, or of a part of it.

    Attributes:
        tally: digests of what was written.
        bad: tensor -> number of entries that are NaN or infinite.
        changes: tensor -> how far it is from what it was made of, where the weights tell.
    """

    tally: Tally = field(default_factory=Tally)
    bad: Counter[str] = field(default_factory=Counter)
    changes: dict[str, Change] = field(default_factory=dict)

    def merge(self, other: "Outcome") -> None:
        """Take over what is known of another part."""
        self.tally.merge(other.tally)
        self.bad.update(other.bad)
        for name, changed in other.changes.items():
            change.add_to(self.changes, name, changed)

    def digests(self, shard: Shard) -> dict[str, bytes]:
        """The digests of the tensors of a shard that was written whole."""
        return self.tally.digests(shard.places)


def stream(
    weights: Weights,
    shards: Mapping[Path, Shard],
    *,
    memory: float,
    threads: int,
    processes: int,
    allow_nonfinite: bool,
    tensor_done: Callable[[str], None],
    shard_done: Callable[[Path, Outcome], None],
) -> Outcome:
    """Write ``shards``, each under its path.

    Args:
        memory: bytes that all workers may take together; a tensor that needs more runs alone. Where most of
            the data need more than their share, there are fewer workers.
        threads: how many workers there are, if ``processes`` is 1.
        processes: forked processes as workers instead.
        allow_nonfinite: write NaN and infinities; they are counted in any case.
        tensor_done, shard_done: called in the calling thread; a shard is on the disk by then.

    Raises: whatever reading, writing or those functions raise, after all workers have stopped.
    """
    for path, shard in shards.items():
        _begin(path, shard)
    with within(memory / 2):  # the other half is for the blocks that are read meanwhile
        weights.prepare()
    give_back()
    workers = processes if processes > 1 else threads
    largest = sum(shard.data_size for shard in shards.values()) / (_PARTS * workers)
    parts = [part for path, shard in shards.items() for part in _parts(weights, path, shard, largest)]
    spans = [span for part in parts for span in part]
    costs = [max(map(weights.working_bytes, span.names)) for span in spans]
    workers = max(1, min(workers, len(parts), int(memory / _usual_cost(spans, costs))))
    share = memory / workers
    firsts = list(accumulate(map(len, parts), initial=0))

    def work(numbers: Iterator[int], locks: Locks) -> Iterator[tuple[int, Outcome]]:
        with _alone(share):
            for part in numbers:
                for number in range(firsts[part], firsts[part + 1]):
                    shares = min(workers, max(1, ceil(costs[number] / share)))
                    with _holding(shares, locks), within(shares * share - costs[number]):
                        done = _write(weights, spans[number], allow_nonfinite)
                    yield number, done

    run = in_threads
    if spans and (processes > 1 or not is_loaded()):
        _warm_up(weights, spans, forked=processes > 1)
    if processes > 1 and spans:
        run = partial(in_processes, inputs=weights.inputs)
    outcome, unsettled = Outcome(), 0
    left = {path: len(shard.places) for path, shard in shards.items()}
    waiting = Counter(chain.from_iterable(span.names for span in spans))
    with closing(run(work, len(parts), workers)) as results:
        for number, written in results:
            span = spans[number]
            unsettled += span.size
            if unsettled >= _SETTLED:
                _settle(span.path)
                unsettled = 0
            outcome.merge(written)
            for name in span.names:
                waiting[name] -= 1
                if not waiting[name] and (allow_nonfinite or not outcome.bad):
                    tensor_done(name)
                    left[span.path] -= 1
            if not left[span.path]:
                flush(span.path)
                shard_done(span.path, outcome)
    planned = chain.from_iterable(shard.places for shard in shards.values())
    outcome.bad = Counter({name: outcome.bad[name] for name in planned if name in outcome.bad})
    return outcome


def nonfinite_message(where: str, bad: Mapping[str, int], rest: str = "nothing was written") -> str:
    """The line for tensors (name -> count) that hold NaN or infinity."""
    first, count = next(iter(bad.items()))
    others = len(bad) - 1
    more = f" ({sum(bad.values()) - count} more in {others} other tensors)" if others else ""
    return f"{where}: {first!r} holds {count} values that are NaN or infinite{more}; {rest}"


def _begin(path: Path, shard: Shard) -> None:
    """A file with its header, as long as it will be."""
    with path.open("wb") as file:
        file.write(shard.header)
        file.truncate(shard.size)


def _settle(path: Path) -> None:
    """Flush a file and give the memory of it back, which the next pages to be written then have."""
    flush(path)
    handle = os.open(path, os.O_RDONLY)
    with suppress(AttributeError, OSError):  # macOS does not know how; it is advice only
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def _parts(weights: Weights, path: Path, shard: Shard, largest: float) -> list[Sequence[Span]]:
    """What one worker takes at a time: spans of one tensor, of up to ``largest`` bytes; the largest first."""
    parts: list[Sequence[Span]] = []
    few: list[Block] = []
    for name, place in shard.places.items():
        blocks = list(_blocks(weights, name, place))
        if sum(block.size for block in blocks) < _SMALL:
            few += blocks
        else:
            spans = [Span(path, some) for some in batches(blocks, SPAN, _size)]
            parts += batches(spans, largest, _size)
    parts += [[Span(path, some)] for some in batches(few, _SMALL, _size)]
    return sorted(parts, key=lambda part: -sum(span.size for span in part))


def _blocks(weights: Weights, name: str, place: int) -> Iterator[Block]:
    spec = weights.spec(name)
    row = row_size(spec.shape) * spec.itemsize if spec.shape else 0
    for rows in weights.row_blocks(name):
        if rows is None:
            yield Block(name, None, place, spec.nbytes)
        else:
            yield Block(name, rows, place + rows.start * row, (rows.stop - rows.start) * row)


def _warm_up(weights: Weights, spans: Sequence[Span], *, forked: bool) -> None:
    """Load and compile, before there are workers, what is loaded and compiled on first use."""
    firsts: dict[str, Block] = {}
    for span in sorted(spans, key=lambda span: span.size):
        for block in span.blocks:
            firsts.setdefault(weights.spec(block.name).code, block)
    changes = [weights.array_with_change(block.name, block.rows)[1] for block in firsts.values()]
    if forked and any(changes):
        change.warm_up(firsts)


def _write(weights: Weights, span: Span, allow_nonfinite: bool) -> Outcome:
    """Read, compute and write one span."""
    outcome = Outcome()
    with span.path.open("r+b", buffering=0) as file:
        for name, rows, place, _ in span.blocks:
            block, changed = weights.array_with_change(name, rows)
            change.add_to(outcome.changes, name, changed)
            finite = changed is not None and changed.finite
            count = 0 if finite else _count_nonfinite(block, weights.spec(name))
            if count:
                outcome.bad[name] += count
            if allow_nonfinite or not count:
                outcome.tally.add(name, weights.spec(name), rows, block)
                write_at(file.fileno(), raw_bytes(block), place)
    return outcome


def _count_nonfinite(block: NDArray[Any], spec: TensorSpec) -> int:
    return nonfinite_count(tensor_of(block, spec.code)) if spec.floating or spec.code == "C64" else 0


@contextmanager
def _holding(shares: int, locks: Locks) -> Iterator[None]:
    """Let workers share the memory: who needs more than a share waits for as many as it needs."""
    with locks.turn:  # one at a time, so that two do not wait for each other with half of theirs
        for _ in range(shares):
            locks.shares.acquire()
    try:
        yield
    finally:
        if shares > 1:
            give_back()
        for _ in range(shares):
            locks.shares.release()


def _usual_cost(spans: Sequence[Span], costs: Sequence[int]) -> int:
    """The median cost of a span, weighted by size: half of the data can be computed with that."""
    half, done = sum(span.size for span in spans) / 2, 0
    for cost, size in sorted(zip(costs, (span.size for span in spans), strict=True)):
        done += size
        if done >= half:
            return max(1, cost)
    return 1


@contextmanager
def _alone(share: float) -> Iterator[None]:
    """Compute in the calling thread alone, as the workers are the parallelism, and keep freed memory."""
    before = torch.get_num_threads() if is_loaded() else 0
    if before:
        torch.set_num_threads(1)
    # glibc returns large blocks to the kernel as soon as they are freed, and new ones are pages that have to
    # be cleared, unless it has seen larger ones come and go. This is one; what it keeps is up to twice that.
    np.empty(min(24 << 20, int(share / 4)), np.uint8)
    try:
        yield
    finally:
        if before:
            torch.set_num_threads(before)
