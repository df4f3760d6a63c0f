"""Does a search of four coefficients find what a grid does, with fewer evaluations?

Run as ``TASKVEC_DATA=… python experiments/search_minilm.py RUN``, after ``make minilm``, with cmaes. Four
vectors of MiniLM are trained for 60 steps on tasks of text8 and added. Their coefficients are searched by
CMA-ES and by a grid. One more search is killed, and goes on to the same trace.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TASKS = ("sst2", "trec6", "subj", "ag_news")
POINTS, EVALUATIONS = 3, 60
TRAINING = "--lr 1e-4 --steps 60 --batch-size 32 --quiet"


def taskvec(*words: str, kill_after: int | None = None, trace: Path = Path()) -> None:
    """Run a command; kill it once its trace has so many lines."""
    with subprocess.Popen([sys.executable, "-m", "taskvec", *words]) as process:
        while kill_after is not None and process.poll() is None:
            if trace.exists() and trace.read_text().count("\n") >= kill_after:
                process.kill()
            time.sleep(0.1)
    if process.returncode and kill_after is None:
        raise SystemExit(process.returncode)


def evaluations(run: Path) -> list[dict[str, Any]]:
    """Those that the search saw, without how long they took."""
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    return [{**row, "seconds": 0} for row in rows if row["part"] == "search"]


def search(run: Path, recipe: Path, method: str, kill_after: int | None = None) -> list[dict[str, Any]]:
    """The evaluations of a search of every coefficient."""
    score = ["--vary", "weights.*=0..1.2", "--score", "text8", "--limit", "100", "--task", *TASKS]
    words = ["search", str(recipe), *score, "--quiet", *method.split(), "-o", str(run)]
    taskvec(*words, kill_after=kill_after, trace=run / "evaluations.jsonl")
    return evaluations(run)


def main(run: Path) -> None:
    """Train what is missing, search, print."""
    run.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        if not (run / f"{task}.safetensors").exists():
            where = ["-m", "minilm", "-s", "text8", "-t", task, "-o", str(run / f"{task}.safetensors")]
            taskvec("train", *where, *TRAINING.split())
    recipe = run / "recipe.yaml"
    vectors = ", ".join(f"{task}: {task}.safetensors" for task in TASKS)
    total = " + ".join(f"0.3*{task}" for task in TASKS)
    recipe.write_text(f"base: minilm\nvectors: {{{vectors}}}\nexpression: {total}\n")
    grid = search(run / "grid", recipe, f"--method grid --points {POINTS} --evaluations 1000")
    cmaes = f"--method cmaes --evaluations {EVALUATIONS}"
    found = search(run / "cmaes", recipe, cmaes)
    search(run / "killed", recipe, cmaes, kill_after=EVALUATIONS // 3)
    resumed = search(run / "killed", recipe, cmaes)
    best = max(row["objective"] for row in grid)
    first = next((row["number"] for row in found if row["objective"] >= best), None)
    print(f"grid: {best:.4f} in {len(grid)} evaluations, from {grid[0]['objective']:.4f} at 0.3")
    print(f"cmaes: {max(row['objective'] for row in found):.4f} in {len(found)}; the grid's best at {first}")
    print(f"killed and resumed: {'the same trace' if resumed == found else 'ANOTHER trace'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
