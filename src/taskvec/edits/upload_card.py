"""The model card of what goes to the hub without one: what it is, what it was made of, how to use it."""

from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from taskvec._version import __version__
from taskvec.edits.card import on_hub, read_licence, table_cell, without_folders
from taskvec.errors import InputError
from taskvec.vectors import TaskVector
from taskvec.vectors.info import VectorInfo, read_info
from taskvec.weights import Weights, hub
from taskvec.weights.dtypes import short

_TEMPLATE = """\
---
{{ front }}---
# {{ title }}

{% if kind == "task vector" -%}
A task vector: what fine-tuning changed in the weights of a model. Added to the base, scaled, it moves the
base towards the task; subtracted, away from it; vectors of one base can be summed.
{% elif kind == "adapter" -%}
An adapter: low-rank changes of the weights of a model, which is also a task vector.
{% else -%}
The weights of a model, uploaded with taskvec {{ version }}.
{% endif %}
| | |
|---|---|
{% for name, value in facts -%}
| {{ name }} | {{ value }} |
{% endfor %}
{%- if kind != "model" %}
## Use

```sh
taskvec apply {{ base }} -v v={{ title }} -e "0.4*v" -o edited
```

```python
import taskvec as tv

edited = tv.apply("{{ base }}", tv.TaskVector.load("{{ title }}"), scale=0.4)
tv.save_weights(edited, "edited")
```
{% if tangent %}
It was trained in the tangent space of the model: it belongs to the model linearized at the base.
{% endif %}
{%- endif %}
{%- if training %}
## Training

```yaml
{{ training }}```
{% endif %}"""


def render_upload_card(weights: Weights, kind: str, name: str) -> str:
    """The text of a README.md.

    Args:
        kind: ``task vector``, ``adapter`` or ``model``.
        name: of the repository.
    """
    info = _info_of(weights, kind)
    template = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)
    training = without_folders(info.training) if kind == "task vector" else None
    return template.from_string(_TEMPLATE).render(
        front=yaml.safe_dump(_front(weights, kind, info), sort_keys=False, allow_unicode=True),
        title=name,
        kind=kind,
        version=__version__,
        facts=[(key, table_cell(str(value))) for key, value in _facts(weights, info).items() if value],
        base=_base_of(info) or "BASE",
        tangent=info.space == "tangent",
        training=yaml.safe_dump(training, sort_keys=False, allow_unicode=True) if training else "",
    )


def _info_of(weights: Weights, kind: str) -> VectorInfo:
    """What a file says of itself; of what it does not say, nothing."""
    if kind == "task vector":
        return read_info(weights)
    try:
        return TaskVector.opened(weights).info if kind == "adapter" else VectorInfo()
    except InputError:  # an adapter that is known with its base alone
        return VectorInfo()


def _front(weights: Weights, kind: str, info: VectorInfo) -> dict[str, object]:
    """What the hub reads of a card."""
    tags = ["task-arithmetic", "taskvec"]
    base = _base_of(info)
    return {
        "tags": ["task-vector", *tags] if kind == "task vector" else tags,
        **({"base_model": base.partition("@")[0]} if base else {}),
        **({} if kind == "model" else read_licence(weights.folder)),
    }


def _base_of(info: VectorInfo) -> str | None:
    """The base, if others can have it."""
    ref = info.base.ref
    named = hub.id_in(ref or "")
    return named if on_hub(named) else None


def _facts(weights: Weights, info: VectorInfo) -> dict[str, Any]:
    specs = [weights.spec(name) for name in weights]
    return {
        "base": info.base.ref and str(without_folders(info.base.ref)),
        "fingerprint of the base": info.base.fingerprint,
        "task": info.task,
        "regime": info.regime,
        "rule": info.rule and info.rule.get("name"),
        "tensors": f"{len(specs):,}",
        "elements": f"{sum(spec.numel for spec in specs):,}",
        "element types": ", ".join(sorted({short(spec.dtype) for spec in specs})),
        **{name: f"{value:.4g}" for name, value in (info.metrics or {}).items() if isinstance(value, float)},
    }
