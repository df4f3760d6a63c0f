"""What does it cost to edit a checkpoint, whole processes, in units of copying the same bytes?

Run as ``python benchmarks/bench_edit.py OUT.json``; ``--help`` lists what can be left out. Checkpoints are
made, measured and removed one after the other. The same recipe goes to ``taskvec merge`` and to mergekit,
if its program ``mergekit-yaml`` is named by ``--mergekit`` or the variable ``MERGEKIT``. Runs take turns.
"""

import json
import os
import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from mmap import MAP_POPULATE, MAP_SHARED, PROT_READ, mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor

from copying import read
from measure import write
from processes import Cost, middle, run
from synthetic import TUNED, Layout, Models, experts, llama, make, one_large
from taskvec import open_weights

EDITS: dict[str, tuple[str, dict[str, float]]] = {
    # name -> mergekit's name of the method, and what is set for every model
    "linear": ("task_arithmetic", {"weight": 0.3}),
    "ties": ("ties", {"weight": 1.0, "density": 0.2}),
    "dare_ties": ("dare_ties", {"weight": 1.0, "density": 0.5}),
}
LAYOUTS: dict[str, Callable[[], Layout]] = {
    "0.3 GB": partial(llama, "small", layers=8, hidden=1024),
    "1.3 GB": partial(llama, "medium", layers=12, hidden=2048),
    "4 GB": partial(llama, "large", layers=41, hidden=2048),
    "one tensor of 2 GB": partial(one_large, "one", 2e9),
    "9,000 small tensors": partial(experts, "few", 9_000),
    "36,000 small tensors": partial(experts, "many", 36_000),
}
PEER = {"0.3 GB", "1.3 GB"}
"""Checkpoints that mergekit is run on too."""
AGREED = "0.3 GB"
"""Checkpoints on which its results are compared with ours."""
WHOLE = 1 << 22
"""Entries of a tensor up to which all are checked."""

REST = 3
"""Seconds before a run. A virtual machine may give memory back to its host soon after it got free, and is
slow to come by it again: every run, however early it begins to write, finds it in the same state."""

OURS: list[str | Path] = [sys.executable, "-m", "taskvec"]
FASTEST = ["--lazy-unpickle", "--no-write-model-card", "--no-copy-tokenizer", "--quiet"]
FASTEST += ["-j", "2", "--async-write", "--out-shard-size", "500M"]


@dataclass(frozen=True)
class Place:
    """Where models lie, recipes are written and outputs come and go."""

    folder: Path
    models: Models

    @property
    def out(self) -> Path:
        """What is written, and gone when the next run starts."""
        return self.folder / "out"

    @property
    def shards(self) -> int:
        """Files of one model."""
        return len(self.models.files) // (1 + TUNED)

    def recipe(self, edit: str) -> Path:
        """An edit, in the YAML that both programs read."""
        method, parameters = EDITS[edit]
        path = self.folder / f"{edit}.yaml"
        content = {
            "merge_method": method,
            "base_model": str(self.models.base),
            "models": [{"model": str(one), "parameters": parameters} for one in self.models.tuned],
            "dtype": "bfloat16",
        }
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def copied(self, *flags: str) -> Cost:
        """The floor: all inputs read, one written."""
        program = Path(__file__).with_name("copying.py")
        words: list[str | Path] = [f"--outputs={self.shards}", *flags, self.out, *self.models.files]
        cost, said = self._run([sys.executable, program, *words])
        return replace(cost, inner=float(said))

    def ours(self, edit: str) -> Cost:
        """``taskvec merge``, with the seconds of its edit."""
        words = [*OURS, "merge", self.recipe(edit), "-o", self.out, "--max-shard-gb", "0.5"]
        cost, said = self._run([*words, "--json", "--quiet"])
        return replace(cost, inner=json.loads(said)["seconds"])

    def theirs(self, program: Path, edit: str) -> Cost:
        """mergekit, with the options that serve it best."""
        seed = ["--random-seed", "0"] if edit.startswith("dare") else []
        return self._run([program, self.recipe(edit), self.out, *FASTEST, *seed])[0]

    def _run(self, command: list[str | Path]) -> tuple[Cost, str]:
        """One run with the disk at rest, into a folder that is not there."""
        shutil.rmtree(self.out, ignore_errors=True)
        os.sync()
        sleep(REST)
        return run(command)


def check(place: Place, edit: str) -> None:
    """Refuse to time a wrong result: an edit against float64, to the rounding of bfloat16."""
    place.ours(edit)
    edited, base = open_weights(place.out), open_weights(place.models.base)
    tuned = [open_weights(folder) for folder in place.models.tuned]
    names, sizes = list(base), {name: base.spec(name).numel for name in base}
    whole = {name for name in names if sizes[name] <= WHOLE}
    for name in {names[0], max(whole, key=sizes.__getitem__), names[-1]}:
        if edit == "ties" and name not in whole:
            continue
        rows = None if name in whole else next(base.row_blocks(name))
        start, made = base.read(name, rows).double(), edited.read(name, rows).double()
        options = possible(edit, torch.stack([one.read(name, rows).double() - start for one in tuned]))
        nearest = torch.stack([(made - start - option).abs() for option in options]).amin(0)
        expected = torch.stack(options).mean(0)
        share = float(((made - start) * expected).sum() / expected.square().sum())
        if bool((nearest > 2**-8 * made.abs() + 1e-9).any()) or abs(share - 1) > 5 / made.numel() ** 0.5:
            sys.exit(f"{edit}: {name} is not what float64 gives, nothing is timed")


def possible(edit: str, deltas: Tensor) -> list[Tensor]:
    """What an edit may add to an entry, all with equal probability; deltas are (task, *shape), float64."""
    parameters = EDITS[edit][1]
    if edit == "linear":
        return [parameters["weight"] * deltas.sum(0)]
    if edit == "ties":
        flat = deltas.flatten(1)
        order = flat.abs().argsort(dim=1, descending=True, stable=True)
        kept = order[:, : round(parameters["density"] * flat.shape[1])]
        agreed = elected(torch.zeros_like(flat).scatter(1, kept, flat.gather(1, kept)).view_as(deltas))
        return [agreed.sum(0) / (agreed != 0).sum(0).clamp(min=1)]
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * len(deltas))  # the density is 1/2
    dropped = (torch.einsum("t,t...->t...", mask, deltas) / parameters["density"] for mask in masks)
    return [elected(one).sum(0) for one in dropped]


def elected(deltas: Tensor) -> Tensor:
    """The deltas that have the sign of their sum; zero elects plus."""
    sign = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    return deltas * (deltas * sign > 0)


def agreement(place: Place, program: Path, edit: str) -> float:
    """The share of elements that both programs write within two roundings of bfloat16 of each other."""
    place.ours(edit)
    ours = place.folder / "ours"
    shutil.rmtree(ours, ignore_errors=True)  # of a run that failed
    place.out.rename(ours)
    place.theirs(program, edit)
    one, other = open_weights(ours), open_weights(place.out)
    same = total = 0
    for name in one:
        for rows in one.row_blocks(name):
            mine, theirs = one.read(name, rows).float(), other.read(name, rows).float()
            same += int(torch.isclose(mine, theirs, rtol=2**-7, atol=1e-5).sum())
            total += mine.numel()
    shutil.rmtree(ours)
    return same / total


@contextmanager
def in_memory(files: Iterable[Path]) -> Iterator[None]:
    """Read files, and keep them in the system's cache: what is mapped is not dropped for lack of use."""
    with ExitStack() as held:
        for path in files:
            with path.open("rb") as file:
                held.enter_context(mmap(file.fileno(), 0, MAP_SHARED | MAP_POPULATE, PROT_READ))
            read(path)
        yield


def compare(place: Place, options: Namespace, peer: bool) -> dict[str, Cost]:
    """The median cost of every run on one set of models."""
    runs: dict[str, Callable[[], Cost]] = {
        "floor": place.copied,
        "floor, flushed": partial(place.copied, "--fsync"),
    }
    for edit in options.edits:
        runs[f"{edit}: ours"] = partial(place.ours, edit)
        if peer:
            runs[f"{edit}: mergekit"] = partial(place.theirs, options.mergekit, edit)
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    with in_memory(place.models.files):
        for _ in range(options.rounds):
            for name, once in runs.items():
                costs[name].append(once())
    return {name: middle(found) for name, found in costs.items()}


def table_of(name: str, layout: Layout, costs: Mapping[str, Cost]) -> Table:
    """The figures of one set of models, with what the targets speak of."""
    title = f"{name}: {layout.nbytes / 1e9:.2f} GB, {len(layout.shapes):,} tensors, {TUNED} fine-tuned models"
    floor = min(cost.inner or 0 for name, cost in costs.items() if name.startswith("floor"))
    table = Table("run", "s", "CPU s", "MB", "edit s", "x floor", "mergekit / ours", title=title)
    for run_name, cost in costs.items():
        edit, _, who = run_name.partition(": ")
        peer = costs.get(f"{edit}: mergekit") if who == "ours" else None
        inner = cost.inner
        table.add_row(
            run_name,
            f"{cost.seconds:.2f}",
            f"{cost.cpu:.2f}",
            f"{cost.memory / 1e6:.0f}",
            "" if inner is None else f"{inner:.2f}",
            "" if inner is None else f"{inner / floor:.2f}",
            "" if peer is None else f"{peer.seconds / cost.seconds:.1f}",
        )
    return table


@contextmanager
def made(name: str, folder: Path, *, keep: bool) -> Iterator[Place]:
    """The models of one name while they are needed, or for good.

    Raises: SystemExit if they and two outputs would not fit.
    """
    layout = LAYOUTS[name]()
    needed, free = layout.nbytes * (1 + TUNED + 2), shutil.disk_usage(folder).free
    if needed > free:
        sys.exit(f"{folder}: {name} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; use --scratch")
    here = folder / layout.name
    try:
        yield Place(here, make(layout, folder))
    finally:
        shutil.rmtree(here / "out", ignore_errors=True)
        if not keep:
            shutil.rmtree(here)


def main(options: Namespace) -> None:
    """Make, check, measure and remove every set of models asked for."""
    results: dict[str, object] = {}
    console = Console()
    with TemporaryDirectory() as temporary:
        folder = Path(options.scratch or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.models:
            peer = options.mergekit is not None and name in PEER
            with made(name, folder, keep=options.keep) as place:
                for edit in options.edits:
                    check(place, edit)
                compared = ("linear", "ties") if peer and name == AGREED else ()
                same = {edit: agreement(place, options.mergekit, edit) for edit in compared}
                costs = compare(place, options, peer)
            console.print(table_of(name, place.models.layout, costs))
            results[name] = {
                "bytes": place.models.layout.nbytes,
                "tensors": len(place.models.layout.shapes),
                "costs": {run_name: asdict(cost) for run_name, cost in costs.items()},
                "same as mergekit": same,
            }
            write(options.out, rounds=options.rounds, tuned=TUNED, edits=EDITS, models=results)


def arguments() -> Namespace:
    """What was asked for."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, nargs="?", default=Path("bench_edit.json"))
    parser.add_argument("--scratch", type=Path, help="folder for the checkpoints; default: a temporary one")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints in the folder")
    parser.add_argument("--models", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), metavar="NAME")
    parser.add_argument("--edits", nargs="+", choices=EDITS, default=list(EDITS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mergekit", type=Path, default=os.environ.get("MERGEKIT"))
    options = parser.parse_args()
    if options.keep and not options.scratch:
        parser.error("--keep needs --scratch: a temporary folder does not stay")
    return options


if __name__ == "__main__":
    main(arguments())
