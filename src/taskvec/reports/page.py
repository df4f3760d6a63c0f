"""One HTML file that needs nothing beside it, and the same tables as Markdown.

A page has a strict content policy: its one style and its one script run by their digests, and nothing is
fetched. So templates hold no ``style`` attributes and no handlers, and all data are text or JSON.
"""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from taskvec.reports.block import Block, Figure
from taskvec.reports.tables import Table

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """A part of a page; ``name`` is its anchor."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """What a page says.

    Args:
        lead: what was run and what came of it, in a sentence.
        settings: plain data, shown folded.
        footer: where the figures come from.
        refresh: seconds after which an unfinished page loads itself again.
    """

    title: str
    description: str
    lead: str
    sections: Sequence[Section]
    settings: Mapping[str, Any] = field(default_factory=dict)
    footer: str = ""
    refresh: int | None = None


def render_page(page: Page) -> str:
    """The page as HTML."""
    style, script = _style(), _script()
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    template = _templates().get_template("report.html")
    return template.render(page=page, style=Markup(style), script=Markup(script), policy=policy)


def markdown_of(page: Page, figures: Sequence[Figure], folder: Path) -> str:
    """Title, description, tables and figures, which lie in ``folder``, as Markdown."""
    tables = [block.markdown() for of in page.sections for block in of.blocks if isinstance(block, Table)]
    pictures = [f"![{figure.caption}]({figure.path.relative_to(folder)})\n" for figure in figures]
    return "\n".join([f"# {page.title}\n", f"{page.description}\n", *tables, *pictures])


@cache
def _templates() -> Environment:
    environment = Environment(loader=PackageLoader("taskvec.reports"), autoescape=select_autoescape())
    environment.filters["json_text"] = _json_text
    environment.filters["pretty"] = lambda data: json.dumps(data, indent=1)
    return environment


def _json_text(data: object) -> Markup:
    """JSON that ends no script element, whatever it holds."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@cache
def _style() -> str:
    return (_HERE / "templates" / "report.css").read_text("utf-8")


@cache
def _script() -> str:
    """All scripts, the shared one first."""
    folder = _HERE / "scripts"
    files = sorted(folder.glob("*.js"), key=lambda path: (path.stem != "base", path.name))
    return "\n".join(path.read_text("utf-8") for path in files)


def _digest(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
