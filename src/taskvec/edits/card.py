"""The model card of an edited model: a short README.md that says what it is made of."""

import re
from collections.abc import Mapping
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined

from taskvec._version import __version__
from taskvec.edits.merge import Merge
from taskvec.reading import exists
from taskvec.weights import Weights, hub

_TEMPLATE = """\
---
tags:
- merge
- task-arithmetic
- taskvec
{%- if hub %}
base_model:
{%- for ref in hub %}
- {{ ref }}
{%- endfor %}
{%- endif %}
---
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

Note: {{ note }}.
{%- endfor %}
"""


def render_card(merge: Merge, title: str) -> str:
    """The text of the README.md that goes with a merge.

    Args:
        title: the name of the model.

    Cost: a fingerprint of every input, which is free once all has been read.
    """
    recipe = yaml.safe_dump(_without_folders(merge.record.get("recipe")), sort_keys=False, allow_unicode=True)
    # Markdown, not HTML: names are shown as they are, only what would end a table cell is taken out.
    template = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    return template.from_string(_TEMPLATE).render(
        title=_cell(title),
        version=__version__,
        hub=[weights.ref for weights in merge.inputs.values() if _on_hub(weights)],
        inputs=[
            (_cell(name), _cell(_shown_ref(weights)), weights.fingerprint())
            for name, weights in merge.inputs.items()
        ],
        recipe=recipe,
        fence="`" * max(3, 1 + max(map(len, re.findall("`+", recipe)), default=0)),
        notes=[_cell(note) for note in merge.notes],
    )


def _without_folders(value: object) -> object:
    """A recipe with the last part of every absolute path: the rest is private."""
    if isinstance(value, Mapping):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _on_hub(weights: Weights) -> bool:
    return hub.is_reference(weights.ref) and not exists(weights.ref)


def _shown_ref(weights: Weights) -> str:
    """A hub reference, or the last part of a path: the rest is private."""
    return weights.ref if _on_hub(weights) else Path(weights.ref).name


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
