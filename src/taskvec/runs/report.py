"""The report of a run: results.json, tables, figures, and the pages that show them."""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from taskvec import reports, studies
from taskvec.reports.drawing import draw_all
from taskvec.reports.page import write_pages
from taskvec.reports.tables import Table
from taskvec.runs.experiment import studies_of
from taskvec.studies.study import Results, Study
from taskvec.writing import replace_text


def facts_of(results: Results) -> dict[str, Any]:
    """All results as plain data."""
    plan = results.plan
    facts: dict[str, Any] = {
        "experiment": plan.experiment.model_dump(mode="json", by_alias=True),
        "tasks": plan.tasks,
        "model": plan.model,
    }
    for of_model, group in groupby(studies_of(plan.experiment), key=lambda study: study.of_model):
        if of_model:
            for study in group:
                facts |= study.model_facts(results)
        else:
            facts["seeds"] = _facts_of_regimes(results, list(group))
    if results.untrained:
        facts["untrained"] = facts_of(results.untrained)
    return facts


def _facts_of_regimes(
    results: Results, group: Sequence[Study[Any]]
) -> dict[str, dict[str, dict[str, object]]]:
    """By seed and regime."""
    return {
        str(seed): {
            regime: {
                key: value for study in group for key, value in study.facts(results, regime, seed).items()
            }
            for regime in results.plan.experiment.regimes
        }
        for seed in results.plan.experiment.seeds
    }


def tables_of(results: Results) -> list[Table]:
    """Every table that the results fill."""
    return [table for study in studies_of(results.plan.experiment) for table in study.tables(results)]


def write_report(results: Results, folder: Path) -> list[Table]:
    """Write everything a reader may want beside the records; return the tables.

    Without matplotlib the figures are left out.
    """
    facts, tables = facts_of(results), tables_of(results)
    replace_text(folder / "results.json", json.dumps(facts, indent=1))
    code = [
        path for package in (reports, studies) for path in Path(str(package.__file__)).parent.glob("*.py")
    ]
    drawings = (
        drawing for study in studies_of(results.plan.experiment) for drawing in study.drawings(results)
    )
    figures = draw_all(drawings, folder / "figures", json.dumps(facts), code)
    settings = facts["experiment"]
    write_pages(
        folder,
        settings["experiment"],
        settings["description"],
        tables,
        figures,
        settings=json.dumps(settings, indent=1),
        model=results.plan.model,
    )
    return tables
