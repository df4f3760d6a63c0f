"""What mergekit reads over without a word: keys that have no meaning where they stand."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from taskvec.config import Config
from taskvec.edits.mergekit.document import Document, Model, Module, Slice, Source
from taskvec.edits.mergekit.known import Ignored, find_misplaced

_INSIDE: Mapping[object, type[Config]] = {
    "modules": Module,
    "models": Model,
    "slices": Slice,
    "sources": Source,
}
"""Key -> what each entry of its list, or its mapping, is."""


def drop_ignored(content: object) -> tuple[object, list[Ignored]]:
    """A file without the keys that mergekit ignores, and what was left out.

    Keys that begin with a dot, ``_`` or ``x-`` hold text for the aliases of YAML. An unknown key at the top
    is left out too, unless it looks misspelt. What is unknown otherwise stays, to be refused with the
    nearest name.
    """
    if not isinstance(content, Mapping):
        return content, []
    content = {key: value for key, value in content.items() if not str(key).startswith((".", "_", "x-"))}
    fields = Document.model_fields.keys()
    idle = {ignored.key for ignored in find_misplaced("", content, fields)}
    strange = [key for key in content if isinstance(key, str) and not (key in idle or _resembles(key))]
    ignored = [Ignored(key, "", "is no key of mergekit and does nothing") for key in strange]
    known = {key: value for key, value in content.items() if key not in strange}
    return _sift("", known, Document, ignored), ignored


def _resembles(key: str) -> bool:
    """Whether a key is one of a file, or one of them misspelt."""
    return bool(get_close_matches(key.lower(), Document.model_fields, n=1, cutoff=0.75))


def _sift(place: str, entry: Any, kind: type[Config], ignored: list[Ignored]) -> Any:
    """A mapping without keys that do nothing, which join ``ignored``; anything else as it is."""
    if not isinstance(entry, Mapping):
        return entry
    misplaced = find_misplaced(place, entry, kind.model_fields.keys())
    ignored += misplaced
    idle, before = {each.key for each in misplaced}, f"{place}." if place else ""
    kept = {key: value for key, value in entry.items() if key not in idle}
    return {key: _sift_value(f"{before}{key}", key, value, ignored) for key, value in kept.items()}


def _sift_value(place: str, key: object, value: Any, ignored: list[Ignored]) -> Any:
    """What is under a key: a model, which may say which architecture it is taken for, or entries."""
    if key in ("model", "base_model") and isinstance(value, Mapping) and "override_architecture" in value:
        if value["override_architecture"] is not None:
            ignored += find_misplaced(place, ["override_architecture"], ())
        return {name: held for name, held in value.items() if name != "override_architecture"}
    kind = _INSIDE.get(key)
    if kind is not None and isinstance(value, list):
        return [_sift(f"{place}[{number}]", each, kind, ignored) for number, each in enumerate(value)]
    if kind is Module and isinstance(value, Mapping):
        return {name: _sift(f"{place}.{name}", each, kind, ignored) for name, each in value.items()}
    return value
