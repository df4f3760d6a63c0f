"""Chat templates: the text that ``chat_template`` stands for."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from taskvec.edits.roles import template_of

_ALPACA = """\
{%- for message in messages %}
{%- set title = {"system": "", "user": "### Instruction:\n", "assistant": "### Response:\n"}[message.role] %}
{{- title ~ message.content | trim ~ "\n\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "### Response:\n" }}
{%- endif %}"""
_CHATML = """\
{%- for message in messages %}
{{- "<|im_start|>" ~ message.role ~ "\n" ~ message.content ~ "<|im_end|>\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|im_start|>assistant\n" }}
{%- endif %}"""
_EXAONE = """\
{%- if messages and messages[0].role != "system" %}
{{- "[|system|][|endofturn|]\n" }}
{%- endif %}
{%- for message in messages %}
{{- "[|" ~ message.role ~ "|]" ~ message.content ~ ("" if message.role == "user" else "[|endofturn|]") }}
{{- "" if loop.last and message.role == "assistant" else "\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "[|assistant|]" }}
{%- endif %}"""
_LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
{{- "<|start_header_id|>" ~ message.role ~ "<|end_header_id|>\n\n" ~ message.content | trim ~ "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}
{%- endif %}"""
_MISTRAL = """\
{{- bos_token }}
{%- set told = namespace(system="") %}
{%- for message in messages %}
{%- if message.role == "system" %}
{%- set told.system = message.content ~ "\n\n" %}
{%- elif message.role == "user" %}
{{- " [INST] " ~ told.system ~ message.content ~ " [/INST]" }}
{%- set told.system = "" %}
{%- else %}
{{- " " ~ message.content | trim ~ eos_token }}
{%- endif %}
{%- endfor %}"""

NAMED = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "exaone": _EXAONE,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
}
"""The templates that mergekit has names for, from the published formats of these models."""


def is_text(value: str) -> bool:
    """Whether a value is a template itself and not the name of one."""
    return "{" in value


def choose_template(value: str, like: Path | None, folders: Iterable[Path | None]) -> str | None:
    """The template to be written, ``None`` where that of the copied tokenizer files will do.

    Args:
        value: a template, the name of one, or ``auto`` for the one that most models have, of as many the
            first.
        like: whose tokenizer files are copied.
        folders: of all models.

    Raises: CorruptFile for a tokenizer config that is not JSON.
    """
    if value in NAMED or is_text(value):
        return NAMED.get(value, value)
    templates = [template for folder in folders if (template := template_of(folder)) is not None]
    if not templates:
        return None
    [(most, _)] = Counter(templates).most_common(1)
    return None if most == template_of(like) else most
