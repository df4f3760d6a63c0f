"""Commands in several processes at once, as ``torchrun`` starts them: one of them speaks for all."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from taskvec.errors import InputError
from taskvec.group import Group, joined, launched

SHARED = ("train", "eval", "run", "demo")
"""Commands whose work several processes share."""

_HELP = frozenset({"--help", "-h", "--version"})


@contextmanager
def together(arguments: Sequence[str]) -> Iterator[None]:
    """Run a command as one of the processes that ``torchrun`` started, if it did. All but the first are mute.

    Raises: InputError for a command that is for one process, and for options that differ.
    """
    group = launched()
    command = next(iter(arguments), "--help")
    if group.alone or command.startswith("-") or not _HELP.isdisjoint(arguments):
        with _mute(group):
            yield
        return
    if command not in SHARED:
        raise InputError(
            f"torchrun: {group.size} processes for {command!r}, which is for one; start it without torchrun "
            f"({', '.join(SHARED)} share their work)"
        )
    with joined(group):
        group.same("options", " ".join(arguments))
        with _mute(group):
            yield


@contextmanager
def _mute(group: Group) -> Iterator[None]:
    """Let only the first process of a group print."""
    if group.first:
        yield
        return
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        yield
