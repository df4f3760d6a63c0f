"""The report of a run: results.json, report.md, figures and one HTML page."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from taskvec.errors import MissingExtra
from taskvec.reports.figures import figures
from taskvec.reports.space_tables import space_tables
from taskvec.reports.tables import Table, tables
from taskvec.writing import replace_text


def write_report(results: Mapping[str, Any], folder: Path) -> list[Table]:
    """Write everything a reader may want beside the records; return the tables.

    Without matplotlib the figures are left out.
    """
    found = [*tables(results), *space_tables(results)]
    try:
        drawn = figures(results, folder / "figures")
    except MissingExtra:
        drawn = []
    experiment = results["experiment"]
    title, description = experiment["experiment"], experiment["description"]
    replace_text(folder / "results.json", json.dumps(results, indent=1))
    pictures = [f"![{caption}]({path.relative_to(folder)})\n" for path, caption in drawn]
    parts = [f"# {title}\n", f"{description}\n", *(table.markdown() for table in found), *pictures]
    replace_text(folder / "report.md", "\n".join(parts))
    page = Environment(loader=PackageLoader("taskvec.reports"), autoescape=select_autoescape())
    replace_text(
        folder / "report.html",
        page.get_template("report.html").render(
            title=title,
            description=description,
            tables=found,
            figures=[(base64.b64encode(path.read_bytes()).decode(), caption) for path, caption in drawn],
            settings=json.dumps(experiment, indent=1),
            model=results["model"],
        ),
    )
    return found
