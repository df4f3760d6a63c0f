"""What ``run``, ``demo`` and ``analyze`` share: options, and how results are shown."""

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from taskvec.cli._common import print_json, print_table
from taskvec.cli._standard import say_line
from taskvec.errors import InputError, TaskvecError, and_more
from taskvec.group import current

if TYPE_CHECKING:
    from taskvec.cli._live import Display
    from taskvec.reports.tables import Table
    from taskvec.runs.events import Event, Told
    from taskvec.runs.executors.executor import Executor
    from taskvec.studies.store import Store
    from taskvec.studies.study import Results, Study

Fresh = Annotated[bool, Parameter(name="--force", negative=())]
Output = Annotated[Path, Parameter(name=["--output", "-o"])]
Seeds = Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative=())]

Place = Annotated[
    str | None,
    Parameter(
        name="--device",
        help="Where the model computes, in place of what the file says: `cpu`, `cuda`, `cuda:N`, `mps`, or "
        "`auto`: a CUDA device if there is one, else the CPU.",
    ),
]

Workers = Annotated[
    int | None,
    Parameter(
        validator=Number(gte=1),
        help="Processes that make results at the same time, to the bit those of one process. Each holds the "
        "model, and what a training needs beside it, in memory of its own. Default: 1; with `--ray`, as many "
        "as the cluster has cores, or GPUs where `--device` is `cuda`.",
    ),
]

OnRay = Annotated[
    str | None,
    Parameter(
        name="--ray",
        help="Make results on a Ray cluster: at `HOST:PORT`; without a value the one of `RAY_ADDRESS`, else "
        "one that runs on this machine, else a new one with its cores.",
    ),
]

Storage = Annotated[
    str | None,
    Parameter(
        help="Where vectors and other files of the run lie, if not in its folder: a URL, such as "
        "`s3://bucket/run`, or the path of a shared disk. Every worker must see it. Records stay in the "
        "folder.",
    ),
]


@contextmanager
def executing(
    workers: int | None,
    ray: str | None,
    output: Path,
    storage: str | None,
    *,
    device: str = "cpu",
    quiet: bool,
) -> "Iterator[Executor]":
    """Where results are made; what they need is looked at before anything begins.

    Args:
        ray: the address of a cluster, or ``auto``; none for this machine.
        output: the run folder.
    """
    from taskvec.runs.executors.executor import HERE
    from taskvec.runs.executors.processes import processes
    from taskvec.studies.storage import check_storage

    _check_alone(workers, ray, storage)
    if ray is None:
        if storage is not None:
            check_storage(storage)
        yield processes(workers) if workers and workers > 1 else HERE
        return
    from taskvec.runs.executors.actors import on_ray

    with on_ray(ray, workers, output, storage, device=device) as executor:
        if not quiet:
            say_line(executor.told())
        yield executor


def _check_alone(workers: int | None, ray: str | None, storage: str | None) -> None:
    """Refuse to share results among processes that share every training. Raises: InputError."""
    given = {"--workers": workers and workers > 1, "--ray": ray, "--storage": storage}
    if (option := next((name for name, value in given.items() if value), None)) and not current().alone:
        raise InputError(
            f"{option}: is for results that are made one by one, and the processes of torchrun share each; "
            "take one of them"
        )


def changes(seeds: tuple[int, ...] | None, device: str | None) -> dict[str, object]:
    """What the command line says in place of the experiment file.

    Raises: InputError for a device that is not there.
    """
    from taskvec.place import find_device

    if device is not None:
        find_device(device)
    given = {"seeds": seeds or None, "device": device}
    return {key: value for key, value in given.items() if value is not None}


def again(
    seeds: tuple[int, ...] | None,
    device: str | None,
    workers: int | None = None,
    ray: str | None = None,
    storage: str | None = None,
) -> list[str]:
    """The same options, as they are typed."""
    from taskvec.urls import said

    one = {"--device": device, "--workers": workers, "--ray": ray, "--storage": storage and said(storage)}
    named = {"--seeds": seeds or (), **{name: (value,) for name, value in one.items() if value}}
    return [word for name, values in named.items() if values for word in (name, *map(str, values))]


def work(
    run: "Callable[[Told], Results]",
    store: "Store",
    shown: "Display",
    *,
    command: Sequence[str],
    fresh: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Run in a run folder, write its report, and print its tables, or all results for ``json``.

    A terminal gets every table as soon as its study is done.

    Args:
        run: is given whom to tell.
        command: what goes on with the run.

    Raises: TaskvecError at the end, for cells that failed.
    """
    from taskvec.runs.events import untold
    from taskvec.runs.report import write_report
    from taskvec.runs.unfinished import LivePage

    tables = _Tables(shown, early=sys.stdout.isatty() and not json and not quiet)
    with store.locked(fresh=fresh):
        if not current().first:
            run(untold)
            return
        with LivePage(store.folder, shlex.join(["taskvec", *command])) as page:

            def tell(event: "Event") -> None:
                for each in (shown, tables, page):
                    each(event)

            results = run(tell)
        every = write_report(results, store.folder)
        shown.close()
        _show(results, every, store.folder, tables, json=json)


class _Tables:
    """Prints every table once: when its study is done with all that it shows, or at the end."""

    def __init__(self, shown: "Display", *, early: bool) -> None:
        self._shown, self._early = shown, early
        self._results: Results | None = None
        self._due: list[Study[Any]] = []
        self._done, self._printed = set[str](), set[str]()

    def __call__(self, event: "Event") -> None:
        """Print what is ready."""
        from taskvec.runs.events import Finished
        from taskvec.runs.manifest import name_of

        if not (self._early and isinstance(event, Finished)):
            return
        if self._results is None:
            self._results, self._due = event.results, list(event.results.studies)
        if event.results is not self._results or not event.last:
            return
        self._done.add(event.part.study)
        on = {name_of(study) for study in event.results.studies}
        for study in list(self._due):
            if {name_of(study), *on.intersection(study.shows)} <= self._done:
                self._due.remove(study)
                self._print_aside(list(study.tables(event.results)))

    def _print_aside(self, tables: "Sequence[Table]") -> None:
        if tables:
            with self._shown.aside():
                self.print(tables)

    def print(self, tables: "Iterable[Table]") -> None:
        """Those that were not printed as they are."""
        for table in tables:
            if (text := table.markdown()) not in self._printed:
                self._printed.add(text)
                print_table(table.title, table.columns, table.rows, note=table.note, heads=table.heads)


def _show(results: "Results", every: "Iterable[Table]", folder: Path, tables: _Tables, *, json: bool) -> None:
    from taskvec.runs.report import facts_of

    if json:
        print_json(facts_of(results))
    else:
        tables.print(every)
        sys.stdout.write(f"Written: {folder / 'report.html'}, report.md, results.json, records.jsonl\n")
        sys.stdout.write(f"Open {folder / 'report.html'} in a browser.\n")
    if failed := results.failed:
        raise TaskvecError(
            f"{failed[0]}{and_more(failed)}; the rest is done: run it again to try what failed"
        )


def print_tables(tables: "Iterable[Table]", written: str) -> None:
    """The tables of results, and which files hold them."""
    for table in tables:
        print_table(table.title, table.columns, table.rows, note=table.note, heads=table.heads)
    sys.stdout.write(f"Written: {written}\n")
