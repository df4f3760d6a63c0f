"""One HTML file that needs nothing beside it, and the same tables as Markdown.

A page has a strict content policy: its one style and its one script run by their digests, and nothing is
fetched. So templates hold no ``style`` and no ``on…`` attributes, and all data are text or JSON.

A block of template ``NAME`` brings up to three files, which are found by its name:

- ``templates/blocks/NAME.html`` shows ``block`` without a script. The page puts it into an element whose id
  is ``id``, which opens the ids inside, and whose ``data-block`` is ``NAME``.
- ``scripts/NAME.js`` makes it live: ``blocks("NAME", (root, data) => …)`` is called with each element and
  what ``block.data()`` gave. All scripts become one function, each file a scope of its own in it that sees
  ``base.js``: ``make`` and ``draw`` elements, ``number``, ``rove`` by arrow keys, ``say`` to listeners.
  Whatever has a ``data-tip``, or a ``title`` before scripts run, shows it as a tooltip.
- ``styles/NAME.css``. Colours are the variables of ``styles/base.css``, which know light and dark: ``--ink``,
  ``--faint``, ``--line``, ``--rule``, ``--ground``, ``--box``, ``--accent``, and those of series, ``--c0`` to
  ``--c7``. Controls that do nothing without a script have the class ``tools``.
"""

import json
import math
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from taskvec.reports.block import Block, Figure
from taskvec.reports.tables import Table, literal

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Section:
    """A part of a page; ``name`` is its anchor."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Unfinished:
    """How far a run was when its page was written.

    Args:
        left: what is still to come.
        written: when.
        command: that goes on with the run.
        refresh: seconds after which the page loads itself again; none where nobody writes it.
    """

    done: int
    total: int
    left: Sequence[str]
    written: str
    command: str
    refresh: int | None = None


@dataclass(frozen=True)
class Page:
    """What a page says.

    Args:
        lead: what was run and what came of it, in a sentence.
        overview: what a reader wants first: the main table and its figure.
        settings: plain data, shown folded.
        records: tables that trace figures to records, shown folded.
        footer: where the figures come from.
        unfinished: how far the run is, of one that is at work or was stopped.
    """

    title: str
    description: str
    lead: str
    sections: Sequence[Section]
    overview: Sequence[Block] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Block] = ()
    footer: str = ""
    unfinished: Unfinished | None = None


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
    """Title, description, lead, tables and figures, which lie in ``folder``, as Markdown."""
    blocks = chain(page.overview, *(section.blocks for section in page.sections))
    tables = [block.markdown() for block in blocks if isinstance(block, Table)]
    pictures = [f"![{figure.caption}]({figure.path.relative_to(folder)})\n" for figure in figures]
    lead = [f"{literal(page.lead)}\n"] if page.lead else []
    return "\n".join([f"# {page.title}\n", f"{page.description}\n", *lead, *tables, *pictures])


_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Characters that would be lost, or turn the text around them."""


def _visible(value: object) -> object:
    """What a template shows, with characters that no reader sees as escapes."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), value)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("taskvec.reports"),
        autoescape=select_autoescape(),
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["json_text"] = _json_text
    environment.filters["pretty"] = lambda data: json.dumps(data, indent=1, ensure_ascii=False)
    return environment


def _json_text(data: object) -> Markup:
    """JSON that ends no script element, whatever it holds."""
    text = json.dumps(_plain(data), separators=(",", ":"), allow_nan=False)
    return Markup(re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text))


def _plain(data: object) -> object:
    """Data with no number that JSON lacks, and with text as templates show it."""
    match data:
        case dict():
            return {_visible(key): _plain(value) for key, value in data.items()}
        case list() | tuple():
            return [_plain(value) for value in data]
        case float() if not math.isfinite(data):
            return None
    return _visible(data)


@cache
def _style() -> str:
    return "\n".join(_files("styles", "*.css"))


@cache
def _script() -> str:
    """All scripts as one function: what the first says the others see, and nothing else is shared."""
    base, *others = map(_dense, _files("scripts", "*.js"))
    return "\n".join(['(() => {"use strict";', base, *(f"{{\n{script}}}" for script in others), "})();"])


def _dense(script: str) -> str:
    """A script without its comments and indents, which readers of a page do not need."""
    code = re.sub(r"^ *(//[^\n]*|/\*\*.*?\*/) *$", "", script, flags=re.MULTILINE | re.DOTALL)
    return "\n".join(filter(None, map(str.strip, code.splitlines())))


def _files(folder: str, pattern: str) -> list[str]:
    """The shared file first."""
    paths = sorted((_HERE / folder).glob(pattern), key=lambda path: (path.stem != "base", path.name))
    return [path.read_text("utf-8") for path in paths]


def _digest(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
