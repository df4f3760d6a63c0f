"""The command line: one function a command, imported when it is called; no logic of its own.

Exit codes: 0 done, 1 failed while working, 2 bad input, 130 interrupted.
"""

import atexit
import errno
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Timer, current_thread, main_thread
from types import FrameType
from typing import NoReturn

from cyclopts import App, CycloptsError

from taskvec._version import __version__
from taskvec.cli._standard import Notes, open_standard_streams, say_line
from taskvec.cli._together import together
from taskvec.errors import TaskvecError
from taskvec.group import speaks

COMMANDS = {
    "diff": "Extract a task vector: what fine-tuning changed.",
    "apply": "Write the model that a base and task vectors make.",
    "merge": "Write the model that a recipe describes: rules, filters, gradients over depth; mergekit's too.",
    "search": "Search the numbers of a recipe that score best: on a suite, a command, a function.",
    "compress": "Store a task vector in fewer bytes, and say what is lost.",
    "mask": "Store the vectors of many tasks as one, with a mask for each.",
    "prune-layers": "Keep the fewest layers of a task vector that hold its validation score.",
    "inspect": "Show what checkpoints and task vectors hold.",
    "push": "Upload a task vector or a model to the hub, with its model card.",
    "rules": "List the rules that turn several task vectors into one.",
    "methods": "List the methods that the study `methods` compares: rules, learned coefficients, others.",
    "train": "Fine-tune a model on a task and store the task vector.",
    "learn": "Learn the coefficients of a sum of task vectors by gradient.",
    "adapt": "Serve a new task from a few labelled examples, by the coefficients of a pool of task vectors.",
    "eval": "Measure a model, edited or not, on the tasks of a suite.",
    "run": "Run an experiment file: train, edit, search, evaluate, report.",
    "report": "Make one page of one or several runs, or export their figures: CSV, LaTeX, JSON.",
    "stats": "Measure a model on a task's inputs, for the rules that need it: fisher, regmean.",
    "analyze": "Explain task vectors: disentanglement, linearity, similarity, gradients, kernel.",
    "demo": "Show the whole life of a task vector, offline, on built-in models and data.",
    "tasks": "List the tasks there are, or show one.",
    "suites": "List the suites there are, or show one.",
    "models": "List the models known by name, or show one.",
}


_INTERRUPTED = 130
_BAD_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
"""Errors that say that a path cannot be what it was given for."""


def app_of(command: str | None) -> App:
    """The command line. ``command`` is helped by its docstring, the others by their line in the list."""
    app = App(
        name="taskvec",
        help="Task arithmetic: edit pre-trained models directly in weight space.",
        version=__version__,
        help_format="markdown",
        help_epilogue="`taskvec COMMAND --help` explains a command. Results go to standard output, all else "
        "to standard error.",
        suppress_keyboard_interrupt=False,
    )
    for name, line in COMMANDS.items():
        function = name.replace("-", "_")
        app.command(f"taskvec.cli.{function}:{function}", name=name, help=None if name == command else line)
    app.register_install_completion_command(
        name="install-completion", help="Install completion for your shell."
    )
    return app


def command() -> NoReturn:
    """What the shell runs: ``main``, quick to begin and to end.

    Imports make many objects and no garbage, so it is looked for less often. What a process holds goes with
    it, where Python would take it apart piece by piece.
    """
    gc.set_threshold(20_000)
    try:
        main()
    except SystemExit as leaving:
        if not isinstance(leaving.code, int | None):  # a message, which is Python's to write
            raise
        atexit._run_exitfuncs()
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(leaving.code or 0)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code; an error is one line, never a traceback.

    ``TASKVEC_DEBUG=1`` in the environment lets the traceback through.
    """
    open_standard_streams()
    if not any(isinstance(handler, Notes) for handler in logging.getLogger("taskvec").handlers):
        logging.getLogger("taskvec").addHandler(Notes())
    if os.environ.get("TASKVEC_DEBUG"):
        sys.exit(_run(argv))
    try:
        with _interrupted_once():
            code = _run(argv)
    except TaskvecError as error:
        code = _fail(str(error), error.exit_code)
    except KeyboardInterrupt as error:
        code = _fail(str(error) or "interrupted; nothing half-written was left behind", _INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        bad_path = isinstance(error, _BAD_PATH) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
        code = _fail(_describe(error), 2 if bad_path else 1)
    except MemoryError:
        code = _fail("not enough memory; give less with --memory, or make room", 1)
    except Exception as error:  # a defect of ours: say so in one line, with the way to see more
        code = _fail(f"internal error: {type(error).__name__}: {error} (TASKVEC_DEBUG=1 shows where)", 1)
    sys.exit(code)


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """Let the first Ctrl-C end the work, and no second one disturb what is cleared up and said after it.

    It waits for the end of an import, up to some seconds: one that is cut short may swallow it, or leave half
    a module, with which nothing can be written any more.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or current_thread() is not main_thread():
        yield
        return

    waits = iter(range(60))

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _is_importing(frame) and next(waits, None) is not None:
            Timer(0.05, os.kill, (os.getpid(), number)).start()
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _run(argv: Sequence[str] | None) -> int:
    arguments = with_values(sys.argv[1:] if argv is None else argv)
    app = app_of(arguments[0] if arguments else None)
    try:
        with together(arguments):
            app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
            sys.stdout.flush()  # a full disk or a closed pipe shows here, not after the end
    except CycloptsError as error:
        return _fail(_request_error(error), 2)
    return 0


def with_values(arguments: Sequence[str]) -> list[str]:
    """The arguments, with its default after an option that may stand without a value.

    >>> with_values(["run", "x.yaml", "--ray"]), with_values(["--ray", "10.0.0.5:6379"])
    (['run', 'x.yaml', '--ray', 'auto'], ['--ray', '10.0.0.5:6379'])
    """
    given = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        given.append(word)
        if word == "--ray" and not _is_address(following):
            given.append("auto")
    return given


def _is_address(word: str) -> bool:
    return word in ("auto", "local") or (":" in word and not word.startswith("-"))


def _request_error(error: CycloptsError) -> str:
    """What is wrong with a request; of a settings model in the words that its files get."""
    if "pydantic" in sys.modules:
        from pydantic import ValidationError

        from taskvec.config import first_complaint

        if isinstance(error.__cause__, ValidationError):
            return f"{' '.join(error.command_chain or ())}: {first_complaint(error.__cause__)}"
    return str(error)


def _fail(message: str, code: int) -> int:
    if speaks(wait=code != _INTERRUPTED):
        say_line("taskvec: " + message)
    return code


def _describe(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    remedy = "; free some space and run again" if error.errno == errno.ENOSPC else ""
    return f"{where}{error.strerror or error}{remedy}"
