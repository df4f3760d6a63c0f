"""A candidate's worth by a command of the user's, which reads the edited model from a folder."""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from taskvec.edits.merge import Merge
from taskvec.edits.opening import save_merge
from taskvec.errors import InputError, TaskvecError
from taskvec.processes import ending_too
from taskvec.reading import printable, shortened
from taskvec.searching.figures import less_is_better, printed_figures
from taskvec.searching.objective import Figures, Portion
from taskvec.writing import remove

_TAIL = 1 << 20
"""Bytes of a command's output that are looked at, its last."""

_PATIENCE = 5.0
"""Seconds that a command has to end by itself once it is told to."""


class CommandScore:
    """What a command prints last of the folder of an edited model.

    Args:
        command: run by ``sh``, in the working directory. ``{model}`` stands for the folder, quoted, and
            ``{part}``, if there, for ``search`` or ``holdout``, the data to measure on.
        timeout: seconds that it may take; none for no bound.
        minimise: less of the number that it prints is better.

    Raises: InputError for a command without ``{model}``.
    """

    label = "command"
    headline = "score"

    def __init__(self, command: str, *, timeout: float | None = None, minimise: bool = False) -> None:
        if "{model}" not in command:
            raise InputError(
                f"--score-command: {command!r} has no {{model}}, expected it in the place of the folder of "
                "the edited model"
            )
        self._command, self._timeout, self._minimise = command, timeout, minimise

    @property
    def parts(self) -> bool:
        """Whether it is told which part of the data to measure on."""
        return "{part}" in self._command

    @property
    def key(self) -> Mapping[str, object]:
        """The command as it was given."""
        return {"command": self._command, **({"minimise": True} if self._minimise else {})}

    def lower_is_better(self, figure: str) -> bool:
        """Whether less of a figure is better: of a number as was said, of others by their names."""
        return self._minimise if figure == "score" else less_is_better(figure)

    def evaluate(self, merge: Merge, part: Portion, scratch: Path) -> Figures:
        """The figures that the command prints.

        Raises: TaskvecError, with its last line on standard error, if it fails, takes too long or prints no
            number; DiskFull; NonFinite.
        """
        model = save_merge(merge, scratch / "model")
        try:
            figures = printed_figures(self._run(self._filled(model, part), scratch), "--score-command")
        finally:
            remove(model)
        if self._minimise and "score" not in figures:
            raise InputError(
                f"--minimise: for a command that prints a number, and it prints {', '.join(figures)}; leave "
                "it out, and weigh what is to be less: --weigh NAME=-1"
            )
        return figures

    def _filled(self, model: Path, part: Portion) -> str:
        return filled(self._command, {"model": str(model.absolute()), "part": part})

    def _run(self, command: str, scratch: Path) -> str:
        """The end of what a command prints."""
        printed, said = scratch / "stdout", scratch / "stderr"
        with printed.open("wb") as out, said.open("wb") as err, _started(command, out, err) as process:
            try:
                status = process.wait(self._timeout)
            except subprocess.TimeoutExpired:
                raise TaskvecError(
                    f"--score-command: took longer than {self._timeout:g} seconds{_last_line(said)}; raise "
                    "--score-timeout, or measure on less"
                ) from None
        if status:
            ended = f"exit status {status}" if status > 0 else signal.Signals(-status).name
            raise TaskvecError(f"--score-command: failed with {ended}{_last_line(said)}")
        return _tail(printed)


def filled(command: str, values: Mapping[str, str]) -> str:
    """A command with words in the place of ``{model}`` and ``{part}``, fit for the quotes around them.

    >>> print(filled("./a {model} '{model}/x'", {"model": "b c"}))
    ./a 'b c' 'b c/x'
    """
    quote, text = "", ""
    for token in _TOKEN.findall(command):
        protected = len(token) == 2 and quote != "'"
        if len(token) > 2:
            token = _QUOTED[quote](values[token[1:-1]])
        elif not protected and token[-1] == quote:
            quote = ""
        elif not protected and not quote and token[-1] in "'\"":
            quote = token[-1]
        text += token
    return text


_TOKEN = re.compile(r"\{(?:model|part)\}|\\[^{]|.", re.DOTALL)
"""What is read at once of a command: a place, what a backslash protects, one character."""

_QUOTED: Mapping[str, Callable[[str], str]] = {
    "": shlex.quote,
    "'": lambda value: value.replace("'", "'\\''"),
    '"': lambda value: re.sub(r'([\\"$`])', r"\\\1", value),
}
"""How a word is written outside of quotes, and in either kind."""


@contextmanager
def _started(command: str, out: BinaryIO, err: BinaryIO) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a group of processes of its own, all of which end with an interruption."""
    process = subprocess.Popen(  # the user's own command, as typed on the command line
        command, shell=True, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
    )
    try:
        with ending_too(lambda: _end(process)):
            yield process
    except BaseException:
        _end(process)
        raise


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask a command and what it started to end, and end them if they do not."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return file.read().decode(errors="replace")


def _last_line(path: Path) -> str:
    """What was said last on standard error, to end a message with."""
    lines = [line.strip() for line in _tail(path).splitlines() if line.strip()]
    return f": {printable(shortened(lines[-1], 200))}" if lines else ""
