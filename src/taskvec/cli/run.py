"""``taskvec run``."""

from functools import partial
from pathlib import Path

from taskvec.cli._common import AllowCode, Json, Quiet
from taskvec.cli._running import (
    Fresh,
    OnRay,
    Output,
    Place,
    Seeds,
    Storage,
    Workers,
    again,
    changes,
    executing,
    work,
)
from taskvec.code import allowing_code


def run(
    experiment: Path,
    *,
    output: Output,
    seeds: Seeds = None,
    device: Place = None,
    workers: Workers = None,
    ray: OnRay = None,
    storage: Storage = None,
    force: Fresh = False,
    allow_code: AllowCode = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run an experiment file: train, edit, search, evaluate, report.

    Finished cells are kept in the run folder and never computed twice: interrupt the run, or change the file,
    and run it again. The folder holds `records.jsonl`, the task vectors, `report.md`, `report.html`, figures.

    Examples: `taskvec run experiments/text4.yaml -o runs/text4` and, with three seeds,
    `taskvec run experiments/text4.yaml -o runs/text4 --seeds 0 1 2`.

    Args:
        experiment: A YAML file; see the folder `experiments` for examples.
        output: The run folder. One that holds a run is gone on with.
        seeds: Seeds in place of those in the file.
        force: Remove what an earlier run left in the folder and start anew.
    """
    from taskvec.cli._live import display
    from taskvec.runs.experiment import load_experiment
    from taskvec.runs.runner import Runner
    from taskvec.studies.shared import open_store

    with allowing_code(allow_code):
        loaded, suite = load_experiment(experiment, changes(seeds, device))
    store = open_store(output, storage)
    command = ["run", str(experiment), "-o", str(output), *again(seeds, device, workers, ray, storage)]
    at_work = executing(workers, ray, output, storage, device=loaded.device, quiet=quiet)
    with at_work as executor, display(quiet=quiet) as shown:
        runner = Runner(loaded, suite, store, shown.watch)
        if force:
            runner.load()
        allowed = ["--allow-code"] if allow_code else []
        run = partial(runner.run, executor=executor)
        work(run, store, shown, command=[*command, *allowed], fresh=force, json=json, quiet=quiet)
