"""Examples for the page: of every regime and task some, as many as a page may hold."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from taskvec.reports.block import Block
from taskvec.reports.examples import Example, Examples
from taskvec.reports.numbers import Mean
from taskvec.reports.tables import Table
from taskvec.studies.inspected import Example as Kept
from taskvec.studies.inspected import Inspection, Opinion, read_examples
from taskvec.studies.numerics.choosing import How
from taskvec.studies.study import Results

MOST = 300
BYTES = 200_000
"""Of a page, and what a row takes beside its input."""
_ROW = 420

_WHAT: dict[How, str] = {"lost": "the sum", "gained": "the single model", "both": "both"}


def example_blocks(results: Results, folder: Path) -> list[Block]:
    """Where every regime's sum and the single models differ, and some inputs; none if none were kept.

    Raises: CorruptFile for a file that is not what the run wrote.
    """
    found = _inspections(results)
    if not found:
        return []
    kept = {regime: read_examples(folder, inspection) for regime, inspection in found.items()}
    every = [
        (regime, task, example)
        for regime, tasks in kept.items()
        for task, examples in (tasks or {}).items()
        for example in examples
    ]
    some = _some(every)
    blocks: list[Block] = [*_counted(found)]
    if some:
        rows = [_row(*each) for each in some]
        models = ("the sum says", "the single model says")
        blocks.append(
            Examples("Inputs and mistakes", models, rows, _note(found, kept, len(every), len(some)))
        )
    return blocks


def _inspections(results: Results) -> Mapping[str, Inspection]:
    """By regime, of the first seed."""
    experiment = results.plan.experiment
    of = {regime: results.of(Inspection, regime, experiment.seeds[0]) for regime in experiment.regimes}
    return {regime: inspections[0] for regime, inspections in of.items() if inspections}


def _some(every: Iterable[tuple[str, str, Kept]]) -> list[tuple[str, str, Kept]]:
    """The first of every regime, task and sort before the second of any, up to what a page holds; in order.

    What the sum lost comes thrice as often as the rest.
    """
    ranks: Counter[tuple[str, str, str]] = Counter()
    ranked = []
    for number, (regime, task, example) in enumerate(every):
        rank = ranks[regime, task, example.how]
        ranks[regime, task, example.how] += 1
        turn = rank if example.how == "lost" else 3 * rank + 2
        ranked.append((turn, number, (regime, task, example)))
    chosen, room = [], BYTES
    for _, number, each in sorted(ranked, key=lambda of: of[:2])[:MOST]:
        room -= _ROW + len(each[2].image or "") + len((each[2].text or "").encode())
        if room < 0:
            break
        chosen.append((number, each))
    return [each for _, each in sorted(chosen, key=lambda of: of[0])]


def _row(regime: str, task: str, example: Kept) -> Example:
    merge = example.merge.says if example.how != "gained" else example.single.says
    return Example(
        group=regime,
        task=task,
        what=_WHAT[example.how],
        label=example.label,
        said=(_said(example.merge), _said(example.single)),
        confusion=f"{example.label} → {merge}" if example.merge.share is not None else "",
        text=example.text or "",
        picture=example.image or "",
    )


def _said(opinion: Opinion) -> str:
    return opinion.says if opinion.share is None else f"{opinion.says} ({100 * opinion.share:.0f} %)"


def _counted(found: Mapping[str, Inspection]) -> Iterator[Table]:
    tasks = list(dict.fromkeys(task for of in found.values() for task in of.sorts))
    columns = [
        f"{regime}: {what}"
        for regime in found
        for what in ("the sum alone", "the single model alone", "both")
    ]
    sizes = next(iter(found.values())).examples
    rows = [
        (task, *(_count(of.sorts[task][how]) for of in found.values() for how in _WHAT), _count(sizes[task]))
        for task in tasks
    ]
    if rows:
        note = (
            "Test examples that the sum of all vectors at its chosen coefficient gets wrong, that the task's "
            "own model gets wrong, and that both do; first seed."
        )
        yield Table("Who is wrong", ("", *columns, "of"), rows, note)


def _count(number: int) -> Mean:
    return Mean([number], ".0f")


def _note(found: Mapping[str, Inspection], kept: Mapping[str, object], every: int, some: int) -> str:
    parts = [f"{some} of {every} examples that the run kept" if some < every else f"{some} examples"]
    parts[0] += (
        ", evenly spaced among those of their sort. In brackets: the share that a model gives to what it "
        "says. This page holds these inputs: do not pass it on where the data are private; an experiment "
        "that says inspect: false keeps none."
    )
    gone = [regime for regime, tasks in kept.items() if tasks is None]
    if gone:
        parts.append(f"The inputs of {', '.join(gone)} were removed from the run folder.")
    out = {task: reason for of in found.values() for task, reason in of.left_out.items()}
    parts += [f"None of {task}: {reason}." for task, reason in out.items()]
    return " ".join(parts)
