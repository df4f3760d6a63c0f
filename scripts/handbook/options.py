"""The options of a method: name, default, what is allowed, what it means."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

Property = Mapping[str, Any]


class Option(NamedTuple):
    """A row of a table of options."""

    name: str
    default: str
    allowed: str
    meaning: str


def options_of(
    schema: type[BaseModel], defaults: Mapping[str, object], said: Mapping[str, str]
) -> list[Option]:
    """The fields of a settings model or of the parameters of a function.

    Args:
        defaults: those that are not the model's.
        said: name -> what the field means, where the model does not say it.
    """
    found = schema.model_json_schema()
    shapes: Mapping[str, Property] = found.get("properties", {})
    return [
        Option(
            f"`{name}`",
            _default(defaults.get(name, shape.get("default"))),
            allowed(shape, found.get("$defs", {})),
            said.get(name) or _line(shape.get("description", "")),
        )
        for name, shape in shapes.items()
        if "const" not in shape
    ]


def bullets(lines: str) -> dict[str, str]:
    """Name -> what a list such as ``- `keep`: …`` says of it."""
    items = re.findall(r"^- ((?:`\w+`,? ?)+[^:]*): (.*?)(?=^- |\Z)", lines, re.MULTILINE | re.DOTALL)
    return {
        name: re.sub(r"\s*Default: [^ ]*\.$|\s*Default [^ ]*\.$", "", _line(text))
        for names, text in items
        for name in re.findall(r"`(\w+)`", names)
    }


def table(options: Sequence[Option]) -> str:
    """As Markdown."""
    lines = ["| option | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join(
        [
            *lines,
            *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in option)} |" for option in options),
        ]
    )


def allowed(shape: Property, others: Mapping[str, Property]) -> str:
    """What values a JSON schema admits, in words."""
    if "$ref" in shape:
        return allowed(others[shape["$ref"].rpartition("/")[2]], others)
    if "anyOf" in shape:
        found = list(dict.fromkeys(allowed(each, others) for each in shape["anyOf"]))
        return " or ".join("a list of such" if each == f"a list: {found[0]}" else each for each in found)
    if "enum" in shape or "const" in shape:
        return ", ".join(f"`{value}`" for value in shape.get("enum", [shape.get("const")]))
    if shape.get("type") == "array":
        return _list(shape, others)
    return _number(shape) or {
        "string": "text",
        "null": "`null`",
        "boolean": "`true`, `false`",
        "object": "a mapping",
    }.get(shape.get("type", ""), "any")


def _list(shape: Property, others: Mapping[str, Property]) -> str:
    if "prefixItems" in shape:
        return ", ".join(allowed(each, others) for each in shape["prefixItems"])
    return f"a list: {allowed(shape.get('items', {}), others)}"


def _number(shape: Property) -> str:
    if shape.get("type") not in ("number", "integer"):
        return ""
    noun = "an integer" if shape["type"] == "integer" else "a number"
    words = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "up to"}
    bounds = [f"{word} {shape[key]:g}" for key, word in words.items() if key in shape]
    return ", ".join([noun, *bounds])


def _default(value: object) -> str:
    return f"`{json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value}`"


def _line(text: str) -> str:
    return " ".join(text.split())
