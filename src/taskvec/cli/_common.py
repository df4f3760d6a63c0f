"""What commands share: options, output as tables or JSON, progress, ``name=value`` arguments."""

import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from taskvec.cli._standard import say_line
from taskvec.cli._tables import Cells, make_tables
from taskvec.errors import InputError
from taskvec.progress import Watch, is_detail, unwatched
from taskvec.reading import printable

_WIDE = 140
"""Columns of a table that goes into a file or a pipe, where nothing needs to be folded."""

Count = Annotated[int, Parameter(validator=Number(gte=1))]
Model = Annotated[
    str,
    Parameter(
        name=["--model", "-m"],
        help="A known name (`taskvec models`), a folder, a hub id, or `file.py:function`, which gives a "
        "model of your own.",
    ),
]
Tasks = Annotated[tuple[str, ...], Parameter(name=["--task", "-t"], consume_multiple=True, negative=())]
Suite = Annotated[
    str | None,
    Parameter(
        name=["--suite", "-s"],
        help="A shipped suite (`taskvec suites`) or a suite file. Default: the shipped suite that has "
        "the task.",
    ),
]
Device = Annotated[
    str,
    Parameter(
        name="--device",
        help="Where the model computes: `cpu`, `cuda`, `cuda:N`, `mps`, or `auto`: a CUDA device if there is "
        "one, else the CPU.",
    ),
]
Force = Annotated[bool, Parameter(name="--force", negative=(), help="Replace an output that exists.")]
AllowCode = Annotated[
    bool,
    Parameter(
        name="--allow-code",
        negative=(),
        help="Run the code that a suite or experiment file names, as `module:function`. Read it first.",
    ),
]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print results as JSON.")]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative=(), help="Show no progress.")]


def flattened(*without: str) -> Parameter:
    """The fields of a settings model, or of a dataclass, as options: names, defaults, bounds and help.

    Args:
        without: fields that are no options, and keep their defaults.
    """
    return Parameter(name="*", parse=re.compile(rf"\A(?!({'|'.join(without)})\Z)"))


def say(notes: Iterable[str]) -> None:
    """Notes on standard error, a line each: what is lost, assumed or odd. They are no progress: ``--quiet``
    leaves them."""
    for note in notes:
        say_line(f"note: {note}")


def print_json(payload: object) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(payload, indent=2, default=str) + "\n")


def print_table(
    title: str | None,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    note: str = "",
    heads: Mapping[int, str] | None = None,
) -> None:
    """A table on standard output; every column but the first is aligned right if it holds numbers.

    Args:
        heads: of groups of rows, by the place of a group's first row.
    """
    cells = Cells(
        [printable(column) for column in columns],
        [[printable(str(cell)) for cell in row] for row in rows],
        {place: printable(head) for place, head in (heads or {}).items()},
        [place > 0 and all(_numeric(row[place]) for row in rows) for place in range(len(columns))],
    )
    console = Console(width=None if sys.stdout.isatty() else _WIDE, markup=False, emoji=False)
    for place, table in enumerate(make_tables(cells, console.width)):
        table.title, table.title_justify = (title and not place and printable(title)) or None, "left"
        console.print(table)
    if note:
        console.print(printable(note), highlight=False, style="dim")
    if title:
        console.print()


def print_facts(
    title: str,
    facts: Mapping[str, object],
    *,
    json: bool,
    words: Mapping[str, object] | None = None,
    details: Mapping[str, object] | None = None,
    note: str = "",
) -> None:
    """A table of what was written at ``facts["path"]``, with ``words`` for some values; or all as JSON, and
    the ``details`` too."""
    if json:
        print_json({key.replace(" ", "_"): value for key, value in {**facts, **(details or {})}.items()})
        return
    shown = {**facts, **(words or {})}
    print_table(None, [title, str(shown.pop("path"))], list(shown.items()), note)


def _numeric(cell: object) -> bool:
    text = str(cell).replace("−", "-")
    try:
        [float(part) for part in text.rstrip("%").replace(",", "").split("/") if text]
    except ValueError:
        return False
    return True


def assignments(pairs: Sequence[str], option: str) -> dict[str, str]:
    """``["a=x", "b=y"]`` as a dictionary.

    Raises: InputError for a pair without ``=``, an empty name, or a name given twice.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise InputError(f"{option}: {pair!r} is not of the form name=value")
        if name in values:
            raise InputError(f"{option}: the name {name!r} is given twice")
        values[name] = value
    return values


@contextmanager
def watching(quiet: bool) -> Iterator[Watch]:
    """Progress on standard error: bars on a terminal, a plain line every ten seconds elsewhere."""
    if quiet:
        yield unwatched
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            yield _Bars(bars)
    else:
        yield _Lines()


class _Bars:
    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._known: dict[str, TaskID] = {}

    def __call__(self, label: str, done: int, total: int, **facts: float) -> None:
        label = printable(label)
        if label not in self._known:
            self._known[label] = self._bars.add_task(label, total=total, facts="")
        self._bars.update(self._known[label], completed=done, total=total, facts=_format(facts))
        if done >= total:
            self._bars.remove_task(self._known.pop(label))
            self._bars.console.print(
                f"{label}: done {_format(facts)}".rstrip(), markup=False, highlight=False
            )


class _Lines:
    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, label: str, done: int, total: int, **facts: float) -> None:
        now = time.monotonic()
        if done >= total or now - self._last >= 10:
            self._last = now
            say_line(f"{label}: {done}/{total} {_format(facts)}")


def _format(facts: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in facts.items() if not is_detail(name))
