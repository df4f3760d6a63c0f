"""The report of a run: report.md and one HTML page."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from taskvec.reports.tables import Table
from taskvec.writing import replace_text


def write_pages(
    folder: Path,
    experiment: Mapping[str, Any],
    model: str,
    tables: Sequence[Table],
    figures: Sequence[tuple[Path, str]],
) -> None:
    """Write ``report.md`` and ``report.html``, which holds its figures.

    Args:
        experiment: its settings as plain data.
        model: fingerprint of the base model.
        figures: files in the folder, and their captions.
    """
    title, description = experiment["experiment"], experiment["description"]
    pictures = [f"![{caption}]({path.relative_to(folder)})\n" for path, caption in figures]
    parts = [f"# {title}\n", f"{description}\n", *(table.markdown() for table in tables), *pictures]
    replace_text(folder / "report.md", "\n".join(parts))
    templates = Environment(loader=PackageLoader("taskvec.reports"), autoescape=select_autoescape())
    page = templates.get_template("report.html").render(
        title=title,
        description=description,
        tables=tables,
        figures=[(base64.b64encode(path.read_bytes()).decode(), caption) for path, caption in figures],
        settings=json.dumps(experiment, indent=1),
        model=model,
    )
    replace_text(folder / "report.html", page)
