"""What goes with a tokenizer beside its tokens: chat template, special roles, where generation ends."""

from collections.abc import Iterator, Mapping
from filecmp import cmp
from pathlib import Path
from typing import Any

from taskvec.edits.configs import read_if_there
from taskvec.edits.tokens import read_tokens
from taskvec.errors import TaskvecError, and_more
from taskvec.reading import read_text, shown
from taskvec.weights import Weights

FILE = "chat_template.jinja"
"""Where a template lies, and wins over one in the tokenizer's config."""

_ROLES = ("bos_token", "eos_token", "pad_token")


def template_of(folder: Path | None) -> str | None:
    """The chat template of a model, the default one of several.

    Raises: CorruptFile for a tokenizer config that is not JSON.
    """
    if folder is None:
        return None
    if (folder / FILE).is_file():
        return read_text(folder / FILE).strip()
    held = read_if_there(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(held, list):
        default = [entry for entry in held if isinstance(entry, dict) and entry.get("name") == "default"]
        held = default[-1].get("template") if default else None
    return held.strip() if isinstance(held, str) else None


def describe_left(
    folder: Path | None, like: Path | None, *, template: bool = True, tokens: bool = True
) -> str:
    """What a model's tokenizer files say and those of another, which are written, do not; empty for nothing.

    Args:
        folder: of the model.
        like: whose files are written.
        template: whether its chat template counts.
        tokens: whether its tokens count.
    """
    if folder is None or folder == like:
        return ""
    try:
        own = template_of(folder) if template else None
        left = [] if own in (None, template_of(like)) else ["its chat template"]
        roles, written = _special(folder).items(), _special(like)
        left += [f"{role} {shown(value)}" for role, value in roles if value != written.get(role)]
        left += _left_tokens(folder, like) if tokens else ()
    except TaskvecError:  # files that cannot be read are refused where they are needed
        return ""
    return left[0] if len(left) == 1 else " and ".join((", ".join(left[:-1]), left[-1])) if left else ""


def list_left(
    models: Mapping[str, Weights], like: Weights, field: str, *, template: bool = True, tokens: bool = True
) -> Iterator[str]:
    """Notes on what tokenizers of models say, and that of ``like``, which is written, does not.

    Args:
        field: takes the tokenizer of another model.
        template, tokens: as for ``describe_left``.
    """
    for name, model in models.items():
        left = describe_left(model.folder, like.folder, template=template, tokens=tokens)
        way = f"{field}: {name} takes this one" if model.adapter is None else f"copy it from {model.folder}"
        if left:
            yield f"{name}: left behind with its tokenizer: {left}; that of {like.ref} is written, {way}"


def _special(folder: Path | None) -> dict[str, Any]:
    """The tokens of special roles, and the rows that end a text."""
    if folder is None:
        return {}
    held = {
        **read_if_there(folder / "special_tokens_map.json"),
        **read_if_there(folder / "tokenizer_config.json"),
    }
    values = {role: held.get(role) for role in _ROLES}
    contents = {
        role: value.get("content") if isinstance(value, dict) else value for role, value in values.items()
    }
    ends = {"eos_token_id": read_if_there(folder / "generation_config.json").get("eos_token_id")}
    return {role: value for role, value in (contents | ends).items() if value is not None}


def _left_tokens(folder: Path, like: Path | None) -> Iterator[str]:
    first, second = folder / "tokenizer.json", (like or folder) / "tokenizer.json"
    if first.is_file() and second.is_file() and cmp(first, second, shallow=False):
        return
    own, written = read_tokens(folder), read_tokens(like)
    new = [] if own is None or written is None else [token for token in own if token not in written]
    if new:
        yield f"token {new[0]!r}{and_more(new)}"
