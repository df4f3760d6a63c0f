"""The model card of an edited model: a short README.md that says what it is made of."""

import re
from collections.abc import Mapping
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined

from taskvec._version import __version__
from taskvec.config import parse_yaml
from taskvec.edits.merge import Merge
from taskvec.errors import InputError
from taskvec.reading import check_inside, exists, read_text
from taskvec.urls import is_url, without_secrets
from taskvec.weights import hub

_FRONT = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?\n)---[ \t]*(\r?\n|$)", re.DOTALL)

_LICENCE = ("license", "license_name", "license_link")

_LONGEST = 1 << 20
"""Bytes of a README.md that is read."""

_TEMPLATE = """\
---
{{ front }}---
# {{ title }}

Made by editing weights with taskvec {{ version }}; nothing was trained.

| input | weights | fingerprint |
|---|---|---|
{% for name, ref, fingerprint in inputs -%}
| {{ name }} | {{ ref }} | `{{ fingerprint }}` |
{% endfor %}
## Recipe

{{ fence }}yaml
{{ recipe }}{{ fence }}
{%- for note in notes %}

Note: {{ note }}
{%- endfor %}
"""


def render_card(merge: Merge, title: str) -> str:
    """The text of the README.md that goes with a merge.

    Args:
        title: the name of the model.

    Cost: a fingerprint of every input, which is free once all has been read.
    """
    recipe = yaml.safe_dump(without_folders(merge.record.get("recipe")), sort_keys=False, allow_unicode=True)
    # Markdown, not HTML: names are shown as they are, only what would end a table cell is taken out.
    template = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    return template.from_string(_TEMPLATE).render(
        title=table_cell(title),
        version=__version__,
        front=yaml.safe_dump(_front(merge), sort_keys=False, allow_unicode=True),
        inputs=[
            (
                table_cell(str(without_folders(name))),
                table_cell(_shown_ref(weights.ref)),
                weights.fingerprint(),
            )
            for name, weights in merge.inputs.items()
        ],
        recipe=recipe,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", recipe)), default=0)),
        notes=[table_cell(_public_note(note, merge)) for note in merge.notes],
    )


def _front(merge: Merge) -> dict[str, object]:
    """What the hub reads of a card."""
    refs = [hub.id_in(weights.ref) for weights in merge.inputs.values()]
    bases = [ref.partition("@")[0] for ref in refs if on_hub(ref)]
    return {
        "tags": ["merge", "task-arithmetic", "taskvec"],
        **({"base_model": bases} if bases else {}),
        **read_licence(merge.like.folder),
    }


def read_licence(folder: Path | None) -> dict[str, str]:
    """The licence that the README.md of a model states for the hub; empty if there is none to be read."""
    if folder is None:
        return {}
    try:
        check_inside(folder / "README.md", folder)
        front = _FRONT.match(read_text(folder / "README.md", _LONGEST))
        stated = parse_yaml(front[1]) if front else None
    except InputError:  # a text for people, which an edit need not wait for
        return {}
    stated = stated if isinstance(stated, dict) else {}
    return {key: stated[key].strip() for key in _LICENCE if _is_public(stated.get(key))}


def _is_public(value: object) -> bool:
    """Whether a value is a line of text, and no place on somebody's disk."""
    return (
        isinstance(value, str)
        and 0 < len(value.strip()) <= 200
        and value.strip().isprintable()
        and not value.strip().startswith(("/", "~", "file:"))
    )


def without_folders(value: object) -> object:
    """A recipe with the last part of every absolute path, and of URLs but the hub's: the rest is private."""
    if isinstance(value, Mapping):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inner) for inner in value]
    private = isinstance(value, str) and (
        value.startswith(("/", "~")) or (is_url(value) and not value.startswith("hf://"))
    )
    return Path(str(without_secrets(value))).name if private else value


def on_hub(ref: str) -> bool:
    """Whether a reference leads to the hub, where a path that exists wins."""
    return hub.is_reference(ref) and not exists(ref)


def _shown_ref(ref: str) -> str:
    """A hub reference, or the last part of a path: the rest is private."""
    named = hub.id_in(ref)
    return named if on_hub(named) else Path(ref).name


def _public_note(note: str, merge: Merge) -> str:
    """A note as a sentence, with the inputs as the table of them shows them."""
    for ref in sorted({weights.ref for weights in merge.inputs.values()}, key=len, reverse=True):
        note = note.replace(ref, _shown_ref(ref))
    return note if note.endswith("?") else f"{note}."


def table_cell(text: str) -> str:
    """A text for a cell of a table in Markdown."""
    return " ".join(text.replace("|", "/").split())
