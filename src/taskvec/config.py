"""Settings read from files: frozen, and an unknown key is an error that names the nearest one."""

import re
import reprlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from taskvec.errors import InputError
from taskvec.registry import nearest


class Config(BaseModel):
    """Base of all settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, where: str, values: object) -> Self:
        """Validate ``values``; ``where`` (a file, an option) opens the message of what is wrong.

        Raises: InputError, one line, for the first field that does not fit.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{where}: {_first(error, cls)}") from None


def _first(error: ValidationError, model: type[BaseModel]) -> str:
    """The first complaint, as ``field: what; hint``."""
    # An unknown key first: what it hides is often the missing one.
    found = sorted(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    complaint = found[0]
    path = [str(part) for part in complaint["loc"]]
    more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
    if complaint["type"] == "extra_forbidden":
        owner, name = path[:-1], path[-1]
        fields = _fields(model, owner)
        inside = f" in {'.'.join(owner)!r}" if owner else ""
        return f"unknown key {name!r}{inside}; {nearest(name, fields)}{more}"
    value = complaint.get("input")
    shown = (
        "" if complaint["type"] == "missing" or isinstance(value, dict) else f" (found {reprlib.repr(value)})"
    )
    where = f"{'.'.join(path)}: " if path else ""
    return f"{where}{_lowered(complaint['msg'])}{shown}{more}"


def _lowered(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    """The field names that are valid at ``path`` inside ``model``, as far as types tell."""
    for part in path:
        field = model.model_fields.get(part)
        inner = _models(field.annotation) if field else []
        if not inner:
            # A key of a mapping, an index or a union tag: stay with the model that holds it.
            continue
        model = inner[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]


class _UniqueKeys(yaml.SafeLoader):
    """Plain YAML data, no tags that build objects; a key given twice is an error, not a lottery."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Bring in the mappings that ``<<`` names; what the mapping itself says wins over them."""
        own = [pair for pair in node.value if pair[0].tag != "tag:yaml.org,2002:merge"]
        seen: set[object] = set()
        for key_node, _ in own:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise yaml.MarkedYAMLError(problem=f"a {type(key).__name__} as a key, line {line}")
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is given twice, line {line}")
            seen.add(key)
        super().flatten_mapping(node)
        brought = {self.construct_object(key, deep=True): (key, value) for key, value in node.value}
        node.value = list(brought.values())


# YAML 1.1, which PyYAML reads, takes 1e-4 for text, as it has no dot.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """The plain data in a text.

    Raises: yaml.YAMLError, ValueError.
    """
    return yaml.load(text, Loader=_UniqueKeys)


def read_yaml(path: Path) -> object:
    """The plain data in a YAML file.

    Raises: InputError for a file that is missing, no YAML, has a key twice, or has tags.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None
    except (ValueError, RecursionError) as error:  # a number of 5000 digits, a list nested as deep
        raise InputError(f"{path}: not valid YAML: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}: not valid YAML: {error.problem}{line}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
