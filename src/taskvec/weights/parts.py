"""One output written by several processes, on one machine or on several that share a disk.

Each writes a part: a share of the shards. Whoever comes last completes the output. All work in its hidden
folder::

    parts.json          what is being written, in how many parts
    parts.lock          held by whoever looks at all of it: where a part begins, and where it ends
    part-3.lock         held by the process that writes part 3
    part-3.json         the journal of its finished shards
    part-3-1a2b3c4d/    the shards that it is at
    NAME/               the finished shards of all parts

A shard is made in a folder of its process and moved when it is whole, so that what lies among the finished
ones is whole even where locks do not reach other machines. Two that write the same shard write the same
bytes.
"""

import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, NamedTuple, Self

import xxhash

from taskvec.errors import InputError, OutputExists
from taskvec.reading import read_mapping, reason, shown
from taskvec.weights.journal import Finished, Journal, digests_of, state_of
from taskvec.weights.plan import Shard, shards_of
from taskvec.weights.staging import JOURNAL, PLAN, WAITS, Place, check_target, warn_of_foreign
from taskvec.writing import flush, is_at, lock, open_own, open_own_folder, remove, replace_text, unlock

_MOST = 1000
"""Parts of an output."""


class Part(NamedTuple):
    """One of several parts: ``number``, from 1 on, of ``of``."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str, where: str = "--part") -> Self:
        """The part that is written ``3/8``.

        Raises: InputError.
        """
        match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
        part = cls(int(match[1]), int(match[2])) if match else None
        if part is None or not 1 <= part.number <= part.of <= _MOST:
            raise InputError(
                f"{where}: {shown(text)}, expected NUMBER/PARTS such as 3/8, the number from 1 to PARTS and "
                f"at most {_MOST} parts"
            )
        return part


class Progress(NamedTuple):
    """What there is of an output that is written in parts.

    Attributes:
        part: the one that was written.
        shards: how many files it has.
        bytes: of these.
        done: the parts that are finished, those without shards among them.
        waiting: the others.
        complete: whether the output is there.
    """

    part: Part
    shards: int
    bytes: int
    done: Sequence[int]
    waiting: Sequence[int]
    complete: bool

    def __str__(self) -> str:
        done = f"{len(self.done)} of {self.part.of} parts are done"
        if self.complete:
            return f"all {self.part.of} parts are done, and the output is complete"
        if self.waiting:
            return f"{done}; waiting for {listed(self.waiting)}"
        return f"{done}; another process, which is at one of them again, completes the output"


def all_done(part: Part, shards: Sequence[Shard]) -> Progress:
    """The progress of a part of a complete output."""
    mine = shards_of(shards, part.of)[part.number - 1]
    return Progress(part, len(mine), sum(shard.size for shard in mine), range(1, part.of + 1), (), True)


def listed(numbers: Sequence[int]) -> str:
    """``2, 6 and 7``."""
    words = [str(number) for number in numbers[:20]]
    if len(numbers) > 20:
        words.append(f"{len(numbers) - 20} more")
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


class parted:  # like ``staged``: with parted(...) as share
    """The hidden folder of an output, for the process that writes one part.

    Args:
        target: the final path.
        part: which part.
        shards: all that will be.
        facts: what decides the output, by what it is called; the same for all parts, in JSON.
        force: replace a target that exists, if it was written here.
        inputs: paths being read, which the target must not be or hold.

    Attributes:
        partial: the hidden folder.
        work: the finished shards of all parts.
        own: where the shards of this part are made.
        mine: the shards of this part.
        journal: of this part.
        keep: whether something finished stays behind.

    Raises: OutputExists if the target exists, or the part is being written by another process, or the whole
        is; InputError if the others write something else, or the hidden folder is not one of ours.
    """

    def __init__(
        self,
        target: Path,
        part: Part,
        shards: Sequence[Shard],
        facts: Mapping[str, Any],
        *,
        force: bool,
        inputs: Collection[Path] = (),
    ) -> None:
        self.target, self.part, self._place = target, part, Place.of(target)
        self.partial, self.work, _ = self._place
        self.own = self.partial / f"part-{part.number}-{token_hex(4)}"
        self._facts = json.loads(json.dumps({"parts": part.of, **facts}, default=str))
        self._shares = shards_of(shards, part.of)
        self.mine = self._shares[part.number - 1]
        self._check = partial(check_target, target, force=force, inputs=inputs)
        key = xxhash.xxh3_128_hexdigest(json.dumps(self._facts, sort_keys=True).encode())
        places = {shard.file: self.work / shard.file for shard in self.mine}
        self.journal = Journal(self._path(f"part-{part.number}.json"), places, key)
        self._handles = ExitStack()
        self._held = -1

    @property
    def keep(self) -> bool:
        """Whether this part has finished shards."""
        return bool(self.journal.finished.shards)

    @property
    def kept(self) -> str:
        """How to go on with what is left behind, in words."""
        return f"finished shards wait in {self.partial.name}, --part {self.part} again goes on with them"

    def __enter__(self) -> Self:
        self._check()
        if not os.path.lexists(self.target):  # whoever makes a folder there meanwhile wants it
            self._check = partial(self._check, empty=False)
        warn_of_foreign(self.target)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(WAITS):
            if self._open():
                try:
                    with self._gate_held() as there:
                        if there:
                            self._begin()
                            return self
                except BaseException as error:
                    self.__exit__(type(error), error, error.__traceback__)
                    raise
                self._handles.close()
            time.sleep(0.02)
        raise OutputExists(f"{self.target}: another process is writing it, and not in parts; wait for it")

    def _open(self) -> bool:
        """Open the hidden folder and its gate; false if a process that writes all of it has it, or whoever
        completes it has just removed it."""
        with ExitStack() as handles, suppress(FileNotFoundError):
            self._folder = open_own_folder(self.partial)
            handles.callback(os.close, self._folder)
            self._place.check_ours()
            if self._lock(self._folder, shared=True):
                self._gate = open_own(self._path("parts.lock"))
                handles.callback(os.close, self._gate)
                self._handles = handles.pop_all()
                return True
        return False

    def _lock(self, handle: int, *, shared: bool = False, wait: bool = False) -> bool:
        try:
            return lock(handle, shared=shared, wait=wait)
        except OSError as error:
            raise InputError(
                f"{self.partial}: cannot be locked ({reason(error)}), which parts need; write without "
                "--part, or to a disk that has locks"
            ) from None

    @contextmanager
    def _gate_held(self) -> Iterator[bool]:
        """Look at all of the folder as the only one; whether it is still there."""
        self._lock(self._gate, wait=True)
        try:
            yield is_at(self._folder, self.partial) and is_at(self._gate, self._path("parts.lock"))
        finally:
            unlock(self._gate)

    def _path(self, name: str) -> Path:
        return self.partial / name

    def _begin(self) -> None:
        """Join the others, or begin if there are none; and take the part."""
        if self.work.is_symlink():  # nothing of ours
            remove(self.work)
        plan = self._path(PLAN)
        known = _read_plan(plan)
        begun = known is not None and self.work.is_dir()
        if begun and known != self._facts:
            if not self._is_idle() or any(finished.shards for finished in self._journals().values()):
                raise InputError(f"{self.partial}: {_difference(known or {}, self._facts)}")
            begun = False
        self._place.undo_swap()
        self._check()  # again, as somebody may have finished just now
        if not begun:
            self._place.clear(self._path("parts.lock"))
            self.work.mkdir()
            replace_text(plan, json.dumps(self._facts))
        self._take()

    def _take(self) -> None:
        """Take the part, or learn that somebody has it."""
        number = self.part.number
        handle = open_own(self._path(f"part-{number}.lock"))
        self._handles.callback(os.close, handle)
        waits = iter(range(WAITS))
        while not self._lock(handle):
            if next(waits, None) is None:
                raise OutputExists(f"{self.target}: another process is writing part {self.part}; wait for it")
            time.sleep(0.02)
        self._held = handle
        for left in self.partial.glob(f"part-{number}-*"):
            remove(left)
        self.own.mkdir()

    def _is_idle(self) -> bool:
        """Whether no part is being written right now."""
        with ExitStack() as handles:
            return self._take_all(handles)

    def _take_all(self, handles: ExitStack) -> bool:
        """Take all parts; whether nobody has one of them."""
        for place in self.partial.glob("part-*.lock"):
            handle = open_own(place)
            handles.callback(os.close, handle)
            if not self._lock(handle):
                return False
        return True

    def _journals(self) -> dict[int, Finished]:
        """What is finished of each part that was begun."""
        numbers = range(1, self.part.of + 1)
        found = {number: Finished.read(self._path(f"part-{number}.json")) for number in numbers}
        return {number: finished for number, finished in found.items() if finished is not None}

    def finish(self, shard: Shard) -> None:
        """Put a shard that is whole and on the disk among the finished ones."""
        place = self.work / shard.file
        place.parent.mkdir(parents=True, exist_ok=True)
        (self.own / shard.file).replace(place)
        flush(place.parent)

    def close(self, complete: Callable[[Sequence[Finished]], None]) -> Progress:
        """End the part; and where all are done, complete the output with what is known of each.

        Raises: what ``complete`` raises.
        """
        with self._gate_held(), ExitStack() as handles:
            remove(self.own)
            self._let_go()  # before another, which waits at the gate, looks for who is left
            key = self.journal.finished.key
            known = {number: each for number, each in self._journals().items() if each.key == key}
            done = [
                number
                for number, share in enumerate(self._shares, 1)
                if not share or (number in known and _has_all(known[number], share))
            ]
            waiting = [number for number in range(1, self.part.of + 1) if number not in done]
            last = not waiting and self._take_all(handles)
            if last and (bad := [number for number in known if not self._is_whole(known[number])]):
                done = [number for number in done if number not in bad]
                waiting, last = bad, False
            if last:
                complete([known[number] for number in sorted(known)])
                self._check()  # again, as work takes long and anything may be there by now
                self._place.swap_in()
                self._place.remove()
        size = sum(shard.size for shard in self.mine)
        return Progress(self.part, len(self.mine), size, done, waiting, last)

    def _is_whole(self, finished: Finished) -> bool:
        """Whether the shards of a journal are as they were: by a look at them, or else by reading them."""
        return all(
            _looks(self.work / name, finished.states.get(name)) or digests_of(self.work / name) == digests
            for name, digests in finished.shards.items()
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                with suppress(OSError):
                    self._leave()
        finally:
            self._handles.close()

    def _let_go(self) -> None:
        if self._held >= 0:
            remove(self.own)
            unlock(self._held)
            self._held = -1

    def _leave(self) -> None:
        """Let go of the part; and of the hidden folder if nobody is at work and nothing is finished."""
        with self._gate_held() as there:
            if not there:
                return
            self._let_go()
            kept = any(known.shards for known in self._journals().values()) or self._path(JOURNAL).exists()
            if not kept and self._is_idle():
                self._place.remove()


def _looks(file: Path, state: str | None) -> bool:
    try:
        return not file.is_symlink() and state_of(file) == state
    except InputError:
        return False


def _has_all(finished: Finished, share: Sequence[Shard]) -> bool:
    return {shard.file for shard in share} <= finished.shards.keys()


def _read_plan(path: Path) -> dict[str, Any] | None:
    """What is being written; none if nobody began, or what is there is damaged."""
    try:
        return read_mapping(path) if path.exists() else None
    except InputError:
        return None


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The first thing in which the parts of an output differ, in words."""
    old, new = dict(_flat(there)), dict(_flat(here))
    name = next(name for name in [*new, *old] if old.get(name) != new.get(name))
    before, now = (shown(side[name]) if name in side else "nothing" for side in (old, new))
    what = f"{name} is {before}, expected {now}"
    if name.startswith("shards."):
        what = "shards are of another size (--max-shard-gb)"
    return (
        f"holds parts of another output, whose {what}; write the rest as it was begun, or remove this folder "
        "to begin anew"
    )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested mappings and lists, each with the way to it."""
    items = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if items is None:
        yield name, value
    else:
        for key, inner in items:
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
