"""References to models in mergekit's YAML: text, or the mapping that mergekit itself writes."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from taskvec.edits.inputs import check_sound
from taskvec.errors import InputError
from taskvec.reading import exists
from taskvec.registry import nearest
from taskvec.vectors import TaskVector, apply
from taskvec.weights import Weights, open_weights

_KEYS = ("model", "lora", "override_architecture")
_PATH_KEYS = ("path", "revision")


def parse_reference(value: object) -> str:
    """A reference as text, ``MODEL[@REVISION][+ADAPTER[@REVISION]]``.

    Raises: ValueError.
    """
    if isinstance(value, Mapping):
        value = _of_mapping(value)
    if not isinstance(value, str):
        raise ValueError("expected a folder or a hub id (org/name@revision), with + an adapter")
    model, adapter = split_reference(value)
    if adapter is not None and "+" in adapter and not exists(adapter):
        raise ValueError("more than one +, expected a model and one adapter")
    return _tidy(model) if adapter is None else f"{_tidy(model)}+{_tidy(adapter)}"


def _tidy(ref: str) -> str:
    """A path that exists in one spelling, as models are told apart by their references."""
    return str(Path(ref)) if exists(ref) else ref


def split_reference(ref: str) -> tuple[str, str | None]:
    """The model and the adapter of a reference; a + in the name of a model that exists is no sign."""
    pluses = [place for place, letter in enumerate(ref) if letter == "+"]
    ends = [place for place in (len(ref), *reversed(pluses)) if exists(ref[:place])]
    end = ends[0] if ends else pluses[0] if pluses else len(ref)
    return ref[:end], ref[end + 1 :] or None


def open_reference(ref: str, made: Weights | None = None) -> Weights:
    """A model with its adapter, if it has one, applied.

    Args:
        made: the model, if it is not on the disk.

    Raises: InputError.
    """
    model, adapter = split_reference(ref)
    weights = check_sound(open_weights(_local(model))) if made is None else made
    if adapter is None:
        return weights
    vector = TaskVector.load(_local(adapter))
    if vector.room(weights) is not weights:
        raise InputError(
            f"{ref}: the adapter adds rows to the vocabulary of {model}, expected one of the same "
            f"tokens; write that model first: taskvec apply {model} -v a={adapter} -o OUT, and name OUT here"
        )
    return apply(weights, vector.with_base(weights))


def _local(ref: str) -> str:
    """A folder without the revision that may be written after it, as it has none."""
    path, at, _ = ref.rpartition("@")
    return path if at and not exists(ref) and exists(path) else ref


def _of_mapping(value: Mapping[str, object]) -> str:
    if "path" in value:
        return _path(value)
    _check_keys(value, _KEYS)
    lora = value.get("lora")
    return _path(value.get("model")) + ("" if lora is None else f"+{_path(lora)}")


def _path(value: object) -> str:
    """The text of a path, which may be a mapping with its revision."""
    if isinstance(value, Mapping):
        _check_keys(value, _PATH_KEYS)
        revision = value.get("revision")
        return _path(value.get("path")) + ("" if revision is None else f"@{revision}")
    if not isinstance(value, str):
        raise ValueError("a mapping without the path of a model, expected {model: {path: …}} or a name")
    return value


def _check_keys(value: Mapping[str, object], known: tuple[str, ...]) -> None:
    unknown = next((key for key in value if key not in known), None)
    if unknown is not None:
        raise ValueError(f"unknown key {cast('object', unknown)!r}; {nearest(str(unknown), known)}")
