"""The folder of an analysis: record.json, table.md and figures."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.errors import InputError, OutputExists
from taskvec.reports.tables import Table
from taskvec.writing import remove, replace_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[], "Mapping[str, Figure]"]
"""Figures by name; ``figure`` is the main one, others go into the folder ``figures``."""

RECORD = "record.json"


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder that must not be written; cheap, so that it can come before any work.

    Raises: OutputExists if it is there and not to be replaced, or holds no analysis; InputError if nothing
        can be written there.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if place != folder and not place.is_dir():
        raise InputError(f"{folder}: {place} is a file, expected a folder to write into")
    if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{folder}: {place} cannot be written to; choose another folder")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / RECORD).is_file():
        raise OutputExists(f"{folder}: exists and holds no analysis (no {RECORD}); choose another folder")
    if not force:
        raise OutputExists(f"{folder}: holds an analysis already; --force replaces it")


def write_analysis(
    record: Mapping[str, Any], tables: Sequence[Table], draw: Draw, folder: Path, *, force: bool = False
) -> list[Path]:
    """Write an analysis into ``folder``; the files written. Nothing is touched before all is drawn.

    Args:
        record: plain data: everything that decides the result, and the result.
        force: replace an analysis that is there.

    Raises: OutputExists.
    """
    check_folder(folder, force=force)
    figures = _draw_figures(draw)
    texts = {
        RECORD: json.dumps(record, indent=1, allow_nan=False) + "\n",
        "table.md": "\n".join(table.markdown() for table in tables),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("figure.png", "figures"):
        remove(folder / name)
    for name, text in texts.items():
        replace_text(folder / name, text)
    written = [folder / name for name in texts]
    for name, figure in figures.items():
        path = folder / ("figure.png" if name == "figure" else f"figures/{name}.png")
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=150, bbox_inches="tight")
        written.append(path)
    return written


def _draw_figures(draw: Draw) -> "Mapping[str, Figure]":
    """None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return {}
    matplotlib.use("agg")
    return draw()
