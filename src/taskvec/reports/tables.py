"""An experiment's results as tables: the same content for a terminal, Markdown and HTML."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from taskvec.reports.cells import (
    both,
    coefficients,
    percent,
    search_note,
    seeds_by_regime,
    tally_note,
    whole_set,
)

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Cells are text, or numbers that ``str`` shows (see ``numbers.py``); ``note`` says how to read them."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def markdown(self) -> str:
        """A GitHub table with its title and note."""
        head, *body = map(_row, (self.columns, *self.rows))
        rule = "|" + " --- |" + " ---: |" * (len(self.columns) - 1)
        note = [f"\n{self.note}"] if self.note else []
        return "\n".join([f"**{self.title}**\n", head, rule, *body, *note]) + "\n"


def _row(cells: Sequence[object]) -> str:
    """A line of a GitHub table; a regime may be a pattern with alternatives, which would end its cell."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def tables(results: Result) -> list[Table]:
    """Every table that the results fill, in the order a reader would ask for them."""
    by_regime = seeds_by_regime(results)
    return [
        _single(results, by_regime),
        *_addition(results, by_regime),
        *_untrained(results, by_regime),
        *_subsets(by_regime),
        *_atm(by_regime),
        *_negation(results, by_regime),
        *_analogies(by_regime),
        *_cosines(results, by_regime),
    ]


def _single(results: Result, by_regime: Mapping[str, Sequence[Result]]) -> Table:
    tasks: list[str] = results["tasks"]
    zero = results["zero_shot"]
    rows = [
        ("zero-shot", *_values([[zero[t]["test"]["value"] for t in tasks]]), ""),
        ("majority class", *_values([[zero[t]["majority"] for t in tasks]]), ""),
    ]
    for regime, seeds in by_regime.items():
        norms = [seed["norms"][t] for seed in seeds for t in tasks]
        spread = f"{min(norms):.1f}" if round(min(norms), 1) == round(max(norms), 1) else ""
        rows.append(
            (
                regime,
                *_values([[seed["single"]["test"][t] for t in tasks] for seed in seeds]),
                spread or f"{min(norms):.1f}–{max(norms):.1f}",
            )
        )
    metrics = {zero[t]["test"]["metric"] for t in tasks}
    others = "" if metrics == {"accuracy"} else f" Metrics: {_metrics(zero, tasks)}."
    examples = {zero[t]["test"]["examples"] for t in tasks}
    sizes = "–".join(str(size) for size in sorted({min(examples), max(examples)}))
    note = f"Per cent on {sizes} test examples a task{_seeds(by_regime)}.{others}"
    return Table("Single tasks", ("", *tasks, "mean", "‖τ‖"), tuple(rows), note)


def _metrics(zero: Result, tasks: Sequence[str]) -> str:
    return ", ".join(
        f"{t} {zero[t]['test']['metric']}" for t in tasks if zero[t]["test"]["metric"] != "accuracy"
    )


def _addition(results: Result, by_regime: Mapping[str, Sequence[Result]]) -> Iterator[Table]:
    tasks = results["tasks"]
    rows, cells = [], {}
    joint = any("joint" in seeds[0] for seeds in by_regime.values())
    for regime, seeds in by_regime.items():
        wholes = [whole_set(seed, tasks) for seed in seeds]
        if any(whole is None for whole in wholes):
            return
        cells[regime] = known = [whole for whole in wholes if whole is not None]
        rows.append(
            (
                regime,
                coefficients(known),
                both(known),
                both([whole["fixed"]["1"] for whole in known]),
                both([whole["fixed"]["1/T"] for whole in known]),
                _pairs(seeds),
                *([_joint(seeds)] if joint else []),
            )
        )
    columns = ["", "best α", "at best α", "α = 1", "α = 1/T", "pairs, normalized"]
    if joint:
        columns.append("joint training")
    note = (
        "Absolute / normalized, per cent: mean over tasks of the metric / of its ratio to the single-task "
        f"model of the same regime. α is chosen on validation data: {search_note(cells)}."
    )
    yield Table(f"Addition of all {len(tasks)} tasks", tuple(columns), tuple(rows), note)


def _joint(seeds: Sequence[Result]) -> str:
    return both([seed["joint"] for seed in seeds]) if "joint" in seeds[0] else ""


def _untrained(results: Result, by_regime: Mapping[str, Sequence[Result]]) -> Iterator[Table]:
    """The counter-example: the same model, tasks and recipe without pre-training."""
    if "untrained" not in results:
        return
    tasks = results["tasks"]
    [(regime, random)] = seeds_by_regime(results["untrained"]).items()
    rows, edits = [], {}
    models = {"pre-trained": (results, by_regime[regime]), "random": (results["untrained"], random)}
    for name, (found, seeds) in models.items():
        zero = fmean(found["zero_shot"][task]["test"]["value"] for task in tasks)
        wholes = [whole for seed in seeds if (whole := whole_set(seed, tasks)) is not None]
        single = [fmean(seed["single"]["test"][task] for task in tasks) for seed in seeds]
        cells = (percent([zero]), percent(single), coefficients(wholes), both(wholes))
        rows.append((f"{name}, {regime}", *cells))
        edits[name] = wholes
    columns = ("", "zero-shot", "single tasks", "α", f"all {len(tasks)} added")
    note = (
        "Means over tasks; added: absolute / normalized, per cent. Without pre-training the normalized "
        f"figure is chance over chance: read the absolute one. {search_note(edits)}."
    )
    yield Table("What pre-training is for", columns, tuple(rows), note)


def _subsets(by_regime: Mapping[str, Sequence[Result]]) -> Iterator[Table]:
    first = next(iter(by_regime.values()))[0]["addition"]
    if not 2 <= len(first) <= 40:  # beyond that the figure says it better
        return
    by_regime = {r: seeds for r, seeds in by_regime.items() if len(seeds[0]["addition"]) == len(first)}
    rows, searches = [], list[Result]()
    for place, edit in enumerate(first):
        cells = []
        for seeds in by_regime.values():
            edits = [seed["addition"][place] for seed in seeds]
            cells += [coefficients(edits), both(edits)]
            searches += edits
        rows.append((" + ".join(edit["tasks"]), *cells))
    columns = ["tasks added"]
    for regime in by_regime:
        columns += [f"{regime}: α", f"{regime}: absolute / normalized"]
    note = f"Measured on the added tasks. {tally_note(searches)}."
    yield Table("Addition, every subset", tuple(columns), tuple(rows), note)


def _atm(by_regime: Mapping[str, Sequence[Result]]) -> Iterator[Table]:
    rows, cells = [], {}
    for regime, seeds in by_regime.items():
        for place, first in enumerate(seeds[0].get("atm", [])):
            runs = [seed["atm"][place] for seed in seeds]
            name = f"{regime}, {first['rounds']} round{'s' if first['rounds'] > 1 else ''}"
            cells[name] = tuned = [run["tuned"] for run in runs]
            rows.append((name, both([run["plain"] for run in runs]), coefficients(tuned), both(tuned)))
    if rows:
        note = (
            "Absolute / normalized, per cent. All rows spend the same training steps; the last columns scale "
            f"the whole displacement by a factor chosen on validation data: {search_note(cells)}."
        )
        yield Table("ATM", ("", "as it is", "best factor", "at best factor"), tuple(rows), note)


def _negation(results: Result, by_regime: Mapping[str, Sequence[Result]]) -> Iterator[Table]:
    blocks = (seeds[0]["negation"] for seeds in by_regime.values() if "negation" in seeds[0])
    first: Sequence[Result] = next(blocks, [])
    for place, block in enumerate(first):
        rows: list[tuple[str, ...]] = []
        found: dict[str, list[Result]] = {}
        spaces = set[str]()
        for regime, seeds in by_regime.items():
            if "negation" not in seeds[0]:
                continue
            runs = [seed["negation"][place]["rows"] for seed in seeds]
            for label in runs[0]:
                cells = [run[label] for run in runs]
                name = f"{regime}: {label}"
                if label == "pretrained":  # a row a space: in bf16 it is not the same model in both
                    space = seeds[0]["space"]
                    if space in spaces:
                        continue
                    spaces.add(space)
                    name = "pre-trained" if space == "ordinary" else f"pre-trained, {space} space"
                if "coefficient" in cells[0]:
                    found[name] = cells
                rows.append((name, *_forgotten(cells)))
        note = (
            f"Per cent, test. Control: mean of {', '.join(block['controls'])}. α is the one of lowest target "
            f"value on validation data that keeps {100 * block['keep']:.0f} % of the control: "
            f"{search_note(found)}."
        )
        columns = ("", "α", f"{block['target']} ↓", "control", "recall by class")
        yield Table(f"Negation of {block['target']}", columns, tuple(rows), note)


def _forgotten(cells: Sequence[Result]) -> tuple[str, str, str, str]:
    """Coefficient, target, control and recall by class of one model, over seeds."""
    recalls = zip(*(cell["target_recall"] for cell in cells), strict=True)
    classes = [_whole_percent(recall) for recall in recalls]
    return (
        coefficients(cells) if "coefficient" in cells[0] else "",
        percent([cell["target"] for cell in cells]),
        percent([cell["control"] for cell in cells]),
        " ".join(classes) if len(classes) <= 6 else "–",
    )


ROLES = ("zero-shot", "c", "b", "c + b", "c + (b − a)", "trained on it")
"""The rows of every analogy record, in order."""


def _analogies(by_regime: Mapping[str, Sequence[Result]]) -> Iterator[Table]:
    for regime, seeds in by_regime.items():
        if "analogies" not in seeds[0]:
            continue
        blocks = list(zip(*(seed["analogies"] for seed in seeds), strict=True))
        values = [[[row["value"] for row in run["rows"].values()] for run in runs] for runs in blocks]
        columns = range(min(len(of_seed) for runs in values for of_seed in runs))
        rows = [
            (
                f"{a} : {b} :: {c} : {target}",
                *(percent([of_seed[place] for of_seed in runs]) for place in columns),
            )
            for runs, (a, b, c, target) in zip(values, map(_terms, blocks), strict=True)
        ]
        if len(rows) > 1:
            means = [
                percent([fmean(runs[seed][place] for runs in values) for seed in range(len(seeds))])
                for place in columns
            ]
            rows.append(("mean", *means))
        rows_of = (row for runs in blocks for run in runs for row in run["rows"].values())
        searches = [found for row in rows_of for found in row.get("searches", [])]
        note = (
            "Per cent on the test split of the fourth task. Every coefficient is chosen on its validation "
            f"rows; only the last column was trained on it. {tally_note(searches)}."
        )
        head = ("a : b :: c : target", *(ROLES[place] for place in columns))
        yield Table(f"Analogies, {regime}", head, tuple(rows), note)


def _terms(runs: Sequence[Result]) -> tuple[str, str, str, str]:
    first = runs[0]
    return first["a"], first["b"], first["c"], first["target"]


def _cosines(results: Result, by_regime: Mapping[str, Sequence[Result]]) -> Iterator[Table]:
    tasks = results["tasks"]
    for regime, seeds in by_regime.items():
        if "cosine" not in seeds[0]:
            continue
        rows = tuple(
            (task, *(f"{fmean(seed['cosine'][i][j] for seed in seeds):.3f}" for j in range(len(tasks))))
            for i, task in enumerate(tasks)
        )
        yield Table(f"Cosine of task vectors, {regime}", ("", *tasks), rows)


def _pairs(seeds: Sequence[Result]) -> str:
    pairs = [[edit for edit in seed["addition"] if len(edit["tasks"]) == 2] for seed in seeds]
    return percent([fmean(edit["normalized"] for edit in edits) for edits in pairs]) if pairs[0] else "–"


def _values(seeds: Sequence[Sequence[float]]) -> list[str]:
    """One cell a task and one for their mean, each over seeds."""
    return [percent(column) for column in zip(*seeds, strict=True)] + [percent([fmean(s) for s in seeds])]


def _whole_percent(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{100 * fmean(known):.0f}" if known else "–"


def _seeds(by_regime: Mapping[str, Sequence[Result]]) -> str:
    count = len(next(iter(by_regime.values())))
    return f"; mean ± standard deviation over {count} seeds" if count > 1 else ""
