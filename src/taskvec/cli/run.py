"""``taskvec run``."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from taskvec.cli._common import Force, Json, Quiet, print_json, print_table, watching


def run(
    experiment: Path,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    seeds: Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative=())] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run an experiment file: train, edit, search, evaluate, report.

    Finished cells are kept in the run folder and never computed twice: interrupt the run, or change the file,
    and run it again. The folder holds `records.jsonl`, the task vectors, `report.md`, `report.html`, figures.

    Examples: `taskvec run experiments/text4.yaml -o runs/text4` and, with three seeds,
    `taskvec run experiments/text4.yaml -o runs/text4 --seeds 0 1 2`.

    Parameters
    ----------
    experiment
        A YAML file; see the folder `experiments` for examples.
    output
        The run folder. One that holds a run is gone on with.
    seeds
        Seeds in place of those in the file.
    force
        Remove what an earlier run left in the folder and start anew.
    """
    from taskvec.experiments.config import load_experiment
    from taskvec.experiments.runner import Runner
    from taskvec.reports.report import write_report
    from taskvec.reports.store import Store

    changes = {"seeds": seeds} if seeds else {}
    loaded, suite = load_experiment(experiment, changes)
    if force and (output / "records.jsonl").exists():
        shutil.rmtree(output)
    store = Store(output)
    with store.locked(), watching(quiet) as watch:
        results = Runner(loaded, suite, store, watch).run()
        tables = write_report(results, output)
    if json:
        print_json(results)
        return
    for table in tables:
        print_table(table.title, table.columns, table.rows, note=table.note)
    sys.stdout.write(f"Written: {output / 'report.html'}, report.md, results.json, records.jsonl\n")
