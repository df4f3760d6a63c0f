"""Chat templates: the text that ``chat_template`` stands for."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from taskvec.edits.configs import read_if_there
from taskvec.reading import read_text

FILE = "chat_template.jinja"
"""Where a template lies, and wins over one in the tokenizer's config."""


def is_text(value: str) -> bool:
    """Whether a value is a template itself and not the name of one."""
    return "{" in value


def choose_template(value: str, like: Path | None, folders: Iterable[Path | None]) -> str | None:
    """The template to be written, ``None`` where that of the copied tokenizer files will do.

    Args:
        value: a template, or ``auto`` for the one that most models have, of as many the first.
        like: whose tokenizer files are copied.
        folders: of all models.

    Raises: CorruptFile for a tokenizer config that is not JSON.
    """
    if is_text(value):
        return value
    templates = [template for folder in folders if (template := _template_of(folder)) is not None]
    if not templates:
        return None
    [(most, _)] = Counter(templates).most_common(1)
    return None if most == _template_of(like) else most


def _template_of(folder: Path | None) -> str | None:
    """The template of a model, the default one of several."""
    if folder is None:
        return None
    if (folder / FILE).is_file():
        return read_text(folder / FILE).strip()
    held = read_if_there(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(held, list):
        default = [entry for entry in held if isinstance(entry, dict) and entry.get("name") == "default"]
        held = default[-1].get("template") if default else None
    return held.strip() if isinstance(held, str) else None
