"""The standard streams: kept open, and told one printable line at a time."""

import io
import logging
import os
import sys
from contextlib import suppress

from taskvec.errors import without_credentials
from taskvec.reading import printable, with_places


def open_standard_streams() -> None:
    """Let nothing that is opened take the number of a standard stream that was closed by who called us."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows ASCII alone is written to as well
            stream.reconfigure(errors="backslashreplace")


def say_line(text: str) -> None:
    """One line on standard error, whatever the text holds."""
    with suppress(OSError, ValueError):  # nobody hears it
        sys.stderr.write(printable(without_credentials(" ".join(with_places(text).split()))) + "\n")
        sys.stderr.flush()


class Notes(logging.Handler):
    """What the library notes, a line each on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say it."""
        say_line("note: " + record.getMessage())
