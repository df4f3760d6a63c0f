"""The report of a run: results.json, tables, figures, and the pages that show them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from taskvec import reports, studies
from taskvec.reports.block import Block, Figure
from taskvec.reports.drawing import draw_all
from taskvec.reports.page import Page, Section, markdown_of, render_page
from taskvec.reports.tables import Table
from taskvec.runs.costs import cost_blocks
from taskvec.runs.examples import example_blocks
from taskvec.runs.manifest import name_of, write_manifest
from taskvec.runs.provenance import table_of_records
from taskvec.runs.training import training_charts
from taskvec.studies import STUDIES
from taskvec.studies.comparing import entries_of
from taskvec.studies.overview import Overview
from taskvec.studies.record import plain
from taskvec.studies.store import read_records
from taskvec.studies.study import Results, Study
from taskvec.writing import replace_text


def facts_of(results: Results) -> dict[str, Any]:
    """All results as JSON has them, None where a number is none or has no bound."""
    plan, experiment, shown = results.plan, results.plan.experiment, _studies_of(results)
    of_trials = [study for study in shown if not study.of_model]
    facts: dict[str, Any] = plain(
        {
            "experiment": experiment.model_dump(mode="json", by_alias=True),
            "tasks": plan.tasks,
            "model": plan.model,
            "entries": [entry.told() for entry in entries_of(results)],
            **_facts((study for study in shown if study.of_model), results),
            "seeds": {
                str(seed): {regime: _facts(of_trials, results, regime, seed) for regime in experiment.regimes}
                for seed in experiment.seeds
            },
        }
    )
    return {**facts, "untrained": facts_of(results.untrained)} if results.untrained else facts


def _studies_of(results: Results) -> list[Study[Any]]:
    """In the registry's order."""
    order = list(STUDIES.values())
    return sorted(results.studies, key=lambda study: order.index(type(study)))


def _facts(of: Iterable[Study[Any]], results: Results, regime: str = "", seed: int = 0) -> dict[str, object]:
    return {key: fact for study in of for key, fact in study.facts(results, regime, seed).items()}


def tables_of(results: Results) -> list[Table]:
    """Every table that the results fill."""
    main = Overview(results).table()
    first = [main.narrow()] if main else []
    return [*first, *(table for study in _studies_of(results) for table in study.tables(results))]


def page_of(results: Results, figures: Mapping[str, Sequence[Block]], more: Sequence[Section] = ()) -> Page:
    """The page of a run.

    Args:
        figures: what files of the run folder show, such as drawings, by the study's name in the registry.
        more: sections that follow those of the studies.
    """
    experiment, overview = results.plan.experiment, Overview(results)
    main = overview.table()
    sections = []
    for study in _studies_of(results):
        name = name_of(study)
        charts = list(study.charts(results)) or figures.get(name, ())
        tables = list(study.tables(results))
        opened = [table for table in tables if not table.closed]
        if blocks := [*opened, *charts, *(table for table in tables if table.closed)]:
            sections.append(Section(name.replace("_", "-"), title_of(name), blocks))
    return Page(
        title=experiment.name,
        description=experiment.description,
        lead=overview.sentence(),
        overview=[block for block in (overview.chart(), main) if block],
        sections=[*sections, *more],
        settings=experiment.model_dump(mode="json", by_alias=True),
        records=[table_of_records(results)],
        footer=f"Base model fingerprint {results.plan.model}. Every number comes from records.jsonl in the "
        "run folder.",
    )


def write_report(results: Results, folder: Path) -> list[Table]:
    """Write everything a reader may want beside the records; return the tables.

    Without matplotlib the figures are left out.
    """
    facts = facts_of(results)
    write_manifest(results, folder)
    replace_text(folder / "results.json", json.dumps(facts, indent=1))
    figures = _draw(results, folder, json.dumps(facts))
    page = page_of(
        results, {**figures, "inspect": example_blocks(results, folder)}, sections_of(results, folder)
    )
    replace_text(folder / "report.md", markdown_of(page, [*chain(*figures.values())], folder))
    replace_text(folder / "report.html", render_page(page))
    return tables_of(results)


def sections_of(results: Results, folder: Path) -> list[Section]:
    """What the folder tells of the work itself: how trainings went, and what all of it cost."""
    records = list(read_records(folder).values()) if (folder / "records.jsonl").is_file() else []
    blocks: dict[str, Sequence[Block]] = {
        "Training": training_charts(results.plan, records, folder),
        "Cost": cost_blocks(records),
    }
    return [Section(title.lower(), title, of) for title, of in blocks.items() if of]


def _draw(results: Results, folder: Path, facts: str) -> dict[str, list[Figure]]:
    """Every drawing as a file; by study."""
    code = [path for package in (reports, studies) for path in Path(package.__path__[0]).rglob("*.py")]
    drawings = {"overview": list(Overview(results).drawings())}
    drawings |= {name_of(study): list(study.drawings(results)) for study in _studies_of(results)}
    drawn = iter(draw_all(chain(*drawings.values()), folder / "figures", facts, code))
    return {name: [Figure(*drawing) for drawing in islice(drawn, len(of))] for name, of in drawings.items()}


def title_of(name: str) -> str:
    """What heads a study's part of a page, by its name in the registry."""
    title = STUDIES[name].title if name in STUDIES else ""
    return title or name.replace("_", " ").capitalize()
