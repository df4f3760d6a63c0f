"""What sources claim, with our measurement beside each claim: ``docs/claims.json`` and ``docs/claims.md``.

    python scripts/claims.py RUN … [ANALYSIS …]

The claims are in the folder ``claims``, a file a source; a new one is an entry there. Figures are measured by
the records of the folders given, which bear the names of their experiments; those whose folders are not given
stay as they are. The page is made of both alone, and verdicts of the figures alone.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from claim_figures import Expect, Figure, Quantity, Verdict, measure
from claim_records import Runs
from taskvec.config import Config, read_yaml
from taskvec.errors import TaskvecError, and_more
from taskvec.writing import replace_text

HERE = Path(__file__).parent
CLAIMS = HERE / "claims"
MEASURED = HERE.parent / "docs" / "claims.json"
PAGE = HERE.parent / "docs" / "claims.md"
C = TypeVar("C", bound=Config)


class Bench(Config):
    """What a run or an analysis was made with."""

    model: str
    tasks: str
    command: str


class Claim(Config):
    """A claim in our words, and the figures that decide it."""

    title: str
    says: str
    published: str = ""
    """The source's figures, and on what."""
    tag: Literal["", "R", "R2", "C", "D"] = ""
    """Where they were read; ``TAGS`` says it in words."""
    figures: tuple[Quantity, ...] = ()
    note: str = ""
    untestable: str = ""
    """Why nothing here can show it."""

    def verdict(self, figures: Mapping[str, Figure]) -> Verdict:
        """From the intervals of its figures: it holds if all lie where they should."""
        if self.untestable:
            return "not testable here"
        decisive = [quantity for quantity in self.figures if quantity.expect]
        if not decisive or any(quantity.what not in figures for quantity in decisive):
            return "not measured"
        found = {judge(quantity, figures[quantity.what]) for quantity in decisive}
        order: tuple[Verdict, ...] = ("does not hold here", "not resolved here", "holds")
        return next(verdict for verdict in order if verdict in found)


class Source(Config):
    """A paper, and what it claims."""

    name: str
    title: str
    arxiv: str
    claims: dict[str, Claim]


class Index(Config):
    """Which files of claims there are, in order, and the runs and analyses that they read."""

    sources: tuple[str, ...]
    benches: dict[str, Bench]


@dataclass(frozen=True)
class Claims:
    """All of them."""

    sources: Sequence[Source]
    benches: Mapping[str, Bench]

    @cached_property
    def claims(self) -> dict[str, Claim]:
        """By name."""
        return {name: claim for source in self.sources for name, claim in source.claims.items()}


class Answer(Config):
    """A claim's figures, by what they are, and what follows."""

    verdict: Verdict
    figures: dict[str, Figure]


class Answers(Config):
    """What ``claims.json`` holds."""

    records: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """By key."""
    claims: dict[str, Answer] = Field(default_factory=dict)


def load_claims() -> Claims:
    """The claims. Raises: InputError."""
    index = _parsed(Index, CLAIMS / "index.yaml")
    return Claims([_parsed(Source, CLAIMS / f"{name}.yaml") for name in index.sources], index.benches)


def _parsed(kind: type[C], path: Path) -> C:
    return kind.parse(str(path), read_yaml(path))


def load_answers() -> Answers:
    """The measurements that are there."""
    return (
        Answers.parse(str(MEASURED), json.loads(MEASURED.read_text("utf-8")))
        if MEASURED.exists()
        else Answers()
    )


def judge(quantity: Quantity, figure: Figure) -> Verdict:
    """A single figure's verdict."""
    factor = scale(quantity)
    low, high = (None if end is None else factor * end for end in (figure.low, figure.high))
    return (quantity.expect or Expect()).judge(low, high)


def scale(quantity: Quantity) -> float:
    """From a figure to what is shown."""
    return 100.0 if quantity.unit in ("%", "points") else 1.0


def answer(claims: Claims, runs: Runs, before: Answers) -> Answers:
    """Measure what the runs tell of; keep the rest if it answers the same question."""
    answers, records = {}, {}
    for name, claim in claims.claims.items():
        known = before.claims[name].figures if name in before.claims else {}
        figures = {}
        for quantity in claim.figures:
            figure = measure(quantity, runs)
            kept = known.get(quantity.what)
            if figure is None and kept and kept.asked == quantity.digest:
                figure = kept
            if figure:
                figures[quantity.what] = figure
        answers[name] = Answer(verdict=claim.verdict(figures), figures=figures)
        used = {key for figure in figures.values() for key in figure.records}
        records.update({key: runs.told.get(key) or before.records[key] for key in sorted(used)})
    return Answers(records=records, claims=answers)


TAGS = {
    "R": "read in the paper itself",
    "R2": "read in a later paper or a public text that quotes or repeats it",
    "C": "read in the authors' code or its logs",
    "D": "derived by us",
}


def page(claims: Claims, answers: Answers) -> str:
    """``claims.md``."""
    return (
        "\n".join([*_opening(claims, answers), *_sections(claims, answers), *_runs(claims, answers)]) + "\n"
    )


def _opening(claims: Claims, answers: Answers) -> Iterator[str]:
    verdicts = Counter(of.verdict for of in answers.claims.values())
    counted = ", ".join(
        f"{verdicts[verdict]} {words}" for verdict, words in _COUNTED.items() if verdicts[verdict]
    )
    yield _OPENING.format(count=len(answers.claims), counted=counted)
    yield _HOW_TO_READ
    for source in claims.sources:
        yield f"| {source.name} | here | verdict |\n| --- | ---: | --- |"
        for name, claim in source.claims.items():
            given = answers.claims[name]
            link = f"[{claim.title}](#{_anchor(claim.title)})"
            yield f"| {link} | {_headline(claim, given)} | {given.verdict} |"
        yield ""


def _headline(claim: Claim, given: Answer) -> str:
    """The figure that decides, the first of them."""
    known = (quantity for quantity in claim.figures if quantity.expect and quantity.what in given.figures)
    return next((_measured(quantity, given.figures[quantity.what]) for quantity in known), "–")


_COUNTED: Mapping[Verdict, str] = {
    "holds": "hold",
    "does not hold here": "do not hold here",
    "not resolved here": "are not resolved here",
    "not testable here": "are not testable here",
    "not measured": "are not measured",
}

_OPENING = """# Claims, measured

What the papers behind this package claim, each claim in our words, with the figure that its authors give, and
what we measured: mostly on the [built-in world](builtin.md), a model of 2.7 million parameters and eight
small image tasks, three seeds.

**{count} claims: {counted}.**

A claim that does not hold here is not refuted: models, tasks and budgets are small. One that holds was not
tuned to hold: settings are those of the experiment files, chosen before.
"""

_TAGGED = ";\n  ".join(f"[{tag}] {words}" for tag, words in TAGS.items())
_HOW_TO_READ = f"""**How to read it.**

- *Published*: the source's figure, and how we know it:
  {_TAGGED}.
  What we only remember is not quoted. Two numbers are absolute / normalized, per cent. "As TAK repeats it":
  in the tables of arXiv:2602.17385, which trains the methods before it anew.
- *Here*: mean over seeds, with its 95 % interval by Student's t: of training again on the same data, not of
  other tasks. Of one seed, the interval of its test examples, as if those of two models were unpaired. An
  exact figure has none.
- *Verdict*: by the interval alone. The claim **holds** if it lies where the claim puts it ("expected above
  0"), **does not hold here** if it lies on the other side, and is **not resolved here** if it holds the
  bound, or if one seed gives no interval. Of several expected figures all have to hold. Intervals are not
  corrected for their number.
- Coefficients are searched on validation data, figures are of test data; see [protocols](protocols.md).
- [`claims.json`](claims.json) holds every figure by seed, with the keys of its records, their run, cell,
  seed, seconds and versions. `python scripts/claims.py runs/claims …` makes both files from run folders; the
  claims are in `scripts/claims`, a file a source.
"""


def _sections(claims: Claims, answers: Answers) -> Iterator[str]:
    for source in claims.sources:
        yield f"## {source.name}\n\n*{source.title}*, arXiv:{source.arxiv}.\n"
        for name, claim in source.claims.items():
            yield from _section(claim, answers.claims[name], claims.benches, answers.records)


def _section(
    claim: Claim, given: Answer, benches: Mapping[str, Bench], records: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    yield f"### {claim.title}\n\n{claim.says.strip()}\n"
    yield f"- Published: {claim.published or 'no figure known to us'}{f' [{claim.tag}]' if claim.tag else ''}"
    known = [quantity for quantity in claim.figures if quantity.what in given.figures]
    if known:
        runs = [benches[pick.run] for quantity in known for pick in quantity.picks]
        yield f"- Here: {'; '.join(dict.fromkeys(f'{run.model} parameters, {run.tasks}' for run in runs))}"
    for quantity in known:
        yield f"    - {shown(quantity, given.figures[quantity.what])}"
    reason = " ".join(text.strip() for text in (claim.untestable, claim.note) if text)
    yield f"- **{given.verdict.capitalize()}.**{' ' if reason else ''}{reason}"
    if traced := _traced(given, records):
        yield f"- Records: {traced}"
    yield ""


def shown(quantity: Quantity, figure: Figure) -> str:
    """A figure in one line."""
    details = [_seeds(quantity, figure)]
    if quantity.expect:
        details.append(f"expected {quantity.expect}: {judge(quantity, figure)}")
    return f"{quantity.what}: {_measured(quantity, figure)} ({'; '.join(details)})"


def _measured(quantity: Quantity, figure: Figure) -> str:
    """A figure with its interval and unit."""
    unit = {"": "", "%": " %", "points": " points"}[quantity.unit]
    text = f"**{_number(quantity, figure.mean)}**{unit}"
    if figure.low is None or figure.high is None or figure.by == "exact":
        return text
    return f"{text} [{_number(quantity, figure.low)}, {_number(quantity, figure.high)}]"


def _number(quantity: Quantity, value: float) -> str:
    sign = "+" if quantity.unit == "points" else ""
    return f"{scale(quantity) * value:{sign}{quantity.form}}".replace("-", "−")


def _seeds(quantity: Quantity, figure: Figure) -> str:
    if figure.by == "exact":
        return "exact"
    if len(figure.values) == 1:
        return "one seed" if "" not in figure.values else "one measurement"
    return f"seeds {', '.join(_number(quantity, value) for value in figure.values.values())}"


def _traced(given: Answer, records: Mapping[str, Mapping[str, Any]]) -> str:
    """The records of a claim, by run and cell, with the first digits of their keys."""
    keys: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for figure in given.figures.values() for key in figure.records):
        keys.setdefault(f"{records[key]['run']}, {records[key]['cell']}", []).append(f"`{key[:8]}`")
    return "; ".join(f"{kind} {' '.join(few[:3])}{and_more(few[2:])}" for kind, few in keys.items())


def _runs(claims: Claims, answers: Answers) -> Iterator[str]:
    yield "## Runs and analyses\n"
    yield "| run | model | tasks | seeds | records read | minutes |\n| --- | --- | --- | --- | ---: | ---: |"
    for name, bench in claims.benches.items():
        used = [record for record in answers.records.values() if record["run"] == name]
        if used:
            seeds = sorted({str(record["seed"]) for record in used if record["seed"] is not None})
            minutes = sum(record["seconds"] or 0 for record in used) / 60
            cells = (name, bench.model, bench.tasks, ", ".join(seeds) or "–", len(used), f"{minutes:.0f}")
            yield f"| {' | '.join(map(str, cells))} |"
    yield "\nMinutes: of the records read here, on one core of a busy machine, without training. Commands:\n"
    yield "```"
    for bench in claims.benches.values():
        yield bench.command.strip()
    yield "```"


def _anchor(heading: str) -> str:
    kept = "".join(sign for sign in heading.lower() if sign.isalnum() or sign in " -_")
    return kept.replace(" ", "-")


def main(folders: Sequence[str]) -> None:
    """Measure, and write both files."""
    claims = load_claims()
    answers = answer(claims, Runs(map(Path, folders)), load_answers())
    replace_text(MEASURED, json.dumps(answers.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")
    replace_text(PAGE, page(claims, answers))
    for name, given in answers.claims.items():
        print(f"{given.verdict:20} {name}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except TaskvecError as error:
        sys.exit(f"claims: {error}")
