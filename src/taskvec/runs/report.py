"""The report of a run: results.json, tables, figures, and the pages that show them."""

import json
import math
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from taskvec import reports, studies
from taskvec.reports.drawing import draw_all
from taskvec.reports.page import write_pages
from taskvec.reports.tables import Table
from taskvec.studies import STUDIES
from taskvec.studies.study import Results, Study
from taskvec.writing import replace_text


def facts_of(results: Results) -> dict[str, Any]:
    """All results as plain data."""
    plan, experiment = results.plan, results.plan.experiment
    facts: dict[str, Any] = {
        "experiment": experiment.model_dump(mode="json", by_alias=True),
        "tasks": plan.tasks,
        "model": plan.model,
    }
    for of_model, group in groupby(_studies_of(results), key=lambda study: study.of_model):
        of = list(group)
        if of_model:
            facts |= _facts(of, results)
        else:
            facts["seeds"] = {
                str(seed): {regime: _facts(of, results, regime, seed) for regime in experiment.regimes}
                for seed in experiment.seeds
            }
    return {**facts, "untrained": facts_of(results.untrained)} if results.untrained else facts


def _studies_of(results: Results) -> list[Study[Any]]:
    """In the registry's order."""
    order = list(STUDIES.values())
    return sorted(results.studies, key=lambda study: order.index(type(study)))


def _facts(of: Iterable[Study[Any]], results: Results, regime: str = "", seed: int = 0) -> dict[str, object]:
    return {key: fact for study in of for key, fact in study.facts(results, regime, seed).items()}


def _said(value: object) -> object:
    """In JSON, which has no word for a number that is none, such as the cosine of a vector without length."""
    if isinstance(value, dict):
        return {key: _said(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [_said(of) for of in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def tables_of(results: Results) -> list[Table]:
    """Every table that the results fill."""
    return [table for study in _studies_of(results) for table in study.tables(results)]


def write_report(results: Results, folder: Path) -> list[Table]:
    """Write everything a reader may want beside the records; return the tables.

    Without matplotlib the figures are left out.
    """
    facts, tables = facts_of(results), tables_of(results)
    replace_text(folder / "results.json", json.dumps(_said(facts), indent=1))
    code = [path for package in (reports, studies) for path in Path(package.__path__[0]).rglob("*.py")]
    drawings = (drawing for study in _studies_of(results) for drawing in study.drawings(results))
    figures = draw_all(drawings, folder / "figures", json.dumps(facts), code)
    write_pages(folder, facts["experiment"], results.plan.model, tables, figures)
    return tables
