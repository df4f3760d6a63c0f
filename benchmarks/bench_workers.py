"""How many results a second do two workers make, against one process on the same cores?

Run as ``python benchmarks/bench_workers.py OUT.json``. The same small experiment on the built-in model, from
an empty folder, in one process and in workers, in turn; the results are compared before anything is written.
Workers are new processes, whose start is in their time.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from measure import write
from taskvec.runs.executors.executor import HERE, Executor
from taskvec.runs.executors.processes import processes
from taskvec.runs.experiment import load_experiment
from taskvec.runs.runner import Runner
from taskvec.studies.store import Store

EXPERIMENT = """
experiment: workers
model: builtin
suite: builtin8
limits: {train: 500, validation: 50, test: 100}
training: {steps: 15, batch_size: 24, validations: 0}
regimes: {full: {lr: 2e-4}, tangent: {lr: 4e-4}}
search: {step: 0.5, coarse: 2, limit: 1.5}
addition: {subsets: whole}
"""
RUNS: dict[str, Executor] = {"one process": HERE, "two workers": processes(2)}


def run(executor: Executor, folder: Path) -> tuple[float, dict[str, object]]:
    """The seconds of an experiment, and its results by key."""
    file = folder / "workers.yaml"
    file.write_text(EXPERIMENT)
    store = Store(folder / "run")
    with store.locked():
        begun = perf_counter()
        Runner(*load_experiment(file), store).run(executor=executor)
        seconds = perf_counter() - begun
    records = map(json.loads, (folder / "run" / "records.jsonl").read_text().splitlines())
    return seconds, {record["key"]: record["result"] for record in records}


def main(out: Path, rounds: int = 2) -> None:
    """Measure, compare and write."""
    seconds: dict[str, list[float]] = {name: [] for name in RUNS}
    results: list[dict[str, object]] = []
    for _ in range(rounds):
        for name, executor in RUNS.items():
            with TemporaryDirectory() as folder:
                took, found = run(executor, Path(folder))
            seconds[name].append(took)
            results.append(found)
    if any(found != results[0] for found in results):
        raise SystemExit("the results differ")
    rates = {name: len(results[0]) / min(of) for name, of in seconds.items()}
    ratio = rates["two workers"] / rates["one process"]
    for name, rate in rates.items():
        print(f"{name}: {rate:.2f} results a second")
    print(f"{ratio:.2f} times as many with two workers")
    write(out, results=len(results[0]), seconds=seconds, results_per_second=rates, ratio=ratio)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
