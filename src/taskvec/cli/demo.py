"""``taskvec demo``."""

from functools import partial
from pathlib import Path

from taskvec.cli._common import Json, Quiet
from taskvec.cli._running import Fresh, Output, Place, Seeds, Workers, again, changes, executing, work


def demo(
    *,
    output: Output = Path("taskvec-demo"),
    seeds: Seeds = None,
    device: Place = None,
    workers: Workers = None,
    force: Fresh = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The whole life of a task vector in minutes, on a model and data inside the package.

    Fine-tunes eight small image tasks, adds, negates and merges their vectors, and shows the same model
    without pre-training beside it. Interrupt it and run it again: it goes on where it stopped.

    Args:
        output: The run folder; open `report.html` in it.
        seeds: Seeds to run; one by default.
        force: Remove what an earlier run left in the folder and start anew.
    """
    from taskvec.cli._live import display
    from taskvec.runs.demo import run_demo
    from taskvec.studies.shared import open_store

    given, store = changes(seeds, device), open_store(output)
    command = ["demo", "-o", str(output), *again(seeds, device, workers)]
    at_work = executing(workers, None, output, None, quiet=quiet)
    with at_work as executor, display(quiet=quiet) as shown:
        run = partial(run_demo, store, given, shown.watch, executor=executor)
        work(run, store, shown, command=command, fresh=force, json=json, quiet=quiet)
