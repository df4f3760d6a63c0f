"""The table of ``make architectures``, from its records: ``python -m architectures.page RECORDS PAGE``."""

import json
import sys
from collections import Counter
from dataclasses import asdict, fields
from pathlib import Path

import transformers
from peft import __version__ as peft_version

from architectures.checks import Record

CHECKS = {
    "edit": "`diff`, `apply`",
    "adapter_out": "`diff --rank`",
    "adapter_in": "PEFT adapter",
    "slices": "slices",
}
"""What a column of the table is called."""

HEAD = """# Architectures

What taskvec makes of the families of models that transformers {transformers} builds from a tiny configuration
(at most two million parameters, weights drawn at random), by what transformers and PEFT {peft} load. Made by
`make architectures`, {count} families; the tests look at a sample each time.

- **`diff`, `apply`**: the base plus a task vector, written and loaded, is to the bit what adding the
  difference to the loaded weights gives, and loads without a missing, mismatched or surplus tensor.
- **`diff --rank`**: PEFT loads the adapter and reaches every matrix in it, each of which becomes that of the
  fine-tuned model; what is left out (embeddings, routers, convolutions…) is counted.
- **PEFT adapter**: an adapter that PEFT made for `all-linear` is applied as `merge_and_unload` does (1e-5).
- **slices**: a model with all layers but the last twice (mergekit's `passthrough`) loads without a missing,
  mismatched or surplus tensor, or is refused in a sentence.

A dash: there is no occasion (PEFT cannot adapt the model, or it has no numbered layers).

{summary}

| family | class | kind | {columns} |
|---|---|---|{lines}|
"""


def keep(record: Record, folder: Path) -> None:
    """Write the record of a family among those of others."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{record.family}.json").write_text(json.dumps(asdict(record), indent=2) + "\n")


def read(folder: Path) -> list[Record]:
    """All records, by family."""
    known = {field.name for field in fields(Record)}
    held = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    return [Record(**{name: value for name, value in one.items() if name in known}) for one in held]


def render(records: list[Record]) -> str:
    """The page."""
    head = HEAD.format(
        transformers=transformers.__version__,
        peft=peft_version,
        count=len(records),
        summary="\n".join(f"- {name}: {tally(records, field)}" for field, name in CHECKS.items()),
        columns=" | ".join(CHECKS.values()),
        lines="|".join("---" for _ in CHECKS),
    )
    rows = [
        f"| {one.family} | {one.architecture} | {one.kind} | "
        + " | ".join(cell(getattr(one, field)) for field in CHECKS)
        + " |"
        for one in records
    ]
    return head + "\n".join(rows) + "\n"


def tally(records: list[Record], field: str) -> str:
    """How many of each outcome."""
    counts = Counter(getattr(one, field).split(":")[0].split()[0] for one in records)
    refused = sum(getattr(one, field) == "ok (refused)" for one in records)
    words = [f"{counts['ok']} right" + (f" ({refused} of them refused in a sentence)" if refused else "")]
    words += [f"{counts['failed']} wrong"]
    words += [f"{counts['idle']} without occasion"] if counts["idle"] else []
    return ", ".join(words)


def cell(outcome: str) -> str:
    """An outcome in a few words."""
    if outcome.startswith("idle"):
        return "–"
    if outcome.startswith("failed"):
        return "**" + " ".join(outcome.split())[:80].replace("|", "/") + "**"
    return outcome.removeprefix("ok").strip(" ()") or "ok"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(render(read(Path(sys.argv[1]))))
