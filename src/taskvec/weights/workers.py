"""Numbered work shared out among threads, or among forked processes."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from threading import Lock, Semaphore
from typing import Any, TypeVar, cast

from taskvec.errors import TaskvecError
from taskvec.weights.lazy import Weights

T = TypeVar("T")


@dataclass(frozen=True)
class Locks:
    """What workers share: a mutex, and as many shares of something as there are workers."""

    turn: Any
    shares: Any


Work = Callable[[Iterator[int], Locks], Iterator[T]]
"""Takes numbers as long as there are any, and gives a result for each."""


def in_threads(work: Work[T], count: int, workers: int) -> Generator[T, None, None]:
    """The results of ``work`` on the numbers below ``count``, as they come.

    Closing the iterator lets the workers finish what they are at, and waits for them.

    Raises: what work raises.
    """
    results: SimpleQueue[T | Future[None]] = SimpleQueue()
    locks, left, stopped = Locks(Lock(), Semaphore(workers)), iter(range(count)), False

    def numbers() -> Iterator[int]:
        # Threads may share a range, as its next number is taken in one step of the interpreter.
        while not stopped and (number := next(left, None)) is not None:
            yield number

    def run() -> None:
        for result in work(numbers(), locks):
            results.put(result)

    with ThreadPoolExecutor(workers, "taskvec") as pool:
        try:
            for _ in range(workers):
                pool.submit(run).add_done_callback(results.put)
            while workers:
                result = results.get()
                if isinstance(result, Future):
                    result.result()
                    workers -= 1
                else:
                    yield result
        finally:
            stopped = True


def in_processes(
    work: Work[T], count: int, workers: int, inputs: Sequence[Weights] = ()
) -> Generator[T, None, None]:
    """As ``in_threads``, with forked processes: Python's lock does not hold them up.

    Forked, not spawned, as they then have what is opened, prepared and compiled, and need not import torch.
    For programs without other threads, as the command line is: a fork copies no threads. Closing the
    iterator ends the workers at once; they end too when this process is killed.

    Args:
        inputs: weights whose digests (``fingerprint_while_reading``) are brought back from the workers.

    Raises: what work raises; TaskvecError if a worker is killed.
    """
    context = multiprocessing.get_context("fork")
    locks, taken = Locks(context.Lock(), context.Semaphore(workers)), context.Value("q", 0)
    parent = os.getpid()

    def numbers() -> Iterator[int]:
        while os.getppid() == parent:
            with taken.get_lock():
                number = taken.value
                taken.value += 1
            if number >= count:
                return
            yield number

    def run(results: Connection) -> None:
        _die_with_the_parent()
        try:
            for result in work(numbers(), locks):
                results.send(result)
            results.send([weights.tally for weights in inputs])
        except BaseException as error:
            results.send(error if isinstance(error, TaskvecError | OSError) else RuntimeError(repr(error)))
        os._exit(0)  # what the parent has open and buffered is not this process's to close and flush

    # A pipe for each: a worker that is killed half way through a message spoils its own alone.
    pipes, processes = {}, []
    try:
        for _ in range(workers):
            receiving, sending = context.Pipe(duplex=False)
            process = context.Process(target=run, args=(sending,), daemon=True)
            process.start()
            processes.append(process)
            sending.close()
            pipes[receiving] = process
        while pipes:
            for pipe in cast("list[Connection]", wait(list(pipes))):
                result = _receive(pipe, pipes[pipe])
                if isinstance(result, BaseException):
                    raise result
                if isinstance(result, list):
                    for weights, tally in zip(inputs, result, strict=True):
                        if weights.tally is not None and tally is not None:
                            weights.tally.merge(tally)
                    del pipes[pipe]
                else:
                    yield result
    finally:
        for process in processes:
            process.kill()
            process.join()


def _receive(pipe: Connection, process: Any) -> Any:
    try:
        return pipe.recv()
    except (EOFError, OSError):  # nothing, or the half of something
        process.join()
        return TaskvecError(
            f"a worker ended with code {process.exitcode} in the middle of its work; "
            "if the system ran out of memory, give less with --memory"
        )


def _die_with_the_parent() -> None:
    """Get killed when the parent dies, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(AttributeError, OSError):  # only Linux has it; ``numbers`` looks at the parent too
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
