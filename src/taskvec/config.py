"""Settings read from files: frozen, and an unknown key is an error that names the nearest one."""

import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from taskvec.errors import InputError, and_more
from taskvec.reading import DEPTH, printable, read_text, shortened
from taskvec.registry import nearest

_YAML_LIMIT = 1 << 20
"""Bytes of a YAML file; it is for people to write, and its reader is slow."""

VALUES = 200_000
"""What a YAML file may hold; a few hundred bytes of aliases can stand for billions."""


_TYPE = re.compile(r"bool|int|float|str|none|(list|dict|tuple|function-\w+)\[.*\]")
"""What pydantic puts into the place of a value of several possible types, as in ``indices.list[int].0``."""


class Config(BaseModel):
    """Base of all settings."""

    # Inputs stay out of pydantic's own messages: one may be a whole network.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @classmethod
    def parse(cls, where: str, values: object) -> Self:
        """Validate ``values``; ``where`` (a file, an option, or nothing) opens the message of what is wrong.

        Raises: InputError, one line, for the first field that does not fit.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            complaint = first_complaint(error, cls)
            raise InputError(f"{where}: {complaint}" if where else complaint) from None

    @classmethod
    def known_keys(cls) -> list[str]:
        """What a file may say."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @classmethod
    def field_called(cls, name: str) -> FieldInfo | None:
        """The field of that name; none if there is no such."""
        return cls.model_fields.get(name)


def first_complaint(error: ValidationError, model: type[BaseModel] = Config) -> str:
    """What is wrong with the values of a model, in one line: ``field: what; hint``."""
    # An unknown key first: what it hides is often the missing one.
    complaints = sorted(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    return printable(" ".join(_describe(complaints[0], model).split())) + and_more(complaints)


def _describe(complaint: ErrorDetails, model: type[BaseModel]) -> str:
    path = [str(part) for part in complaint["loc"] if not _TYPE.fullmatch(str(part))]
    if complaint["type"] == "extra_forbidden":
        owner, name = path[:-1], path[-1]
        fields = _fields(model, owner)
        inside = f" in {'.'.join(owner)!r}" if owner else ""
        return f"unknown key {name!r}{inside}; {nearest(name, fields)}"
    value = complaint.get("input")
    shown = (
        "" if complaint["type"] == "missing" or isinstance(value, dict) else f" (found {reprlib.repr(value)})"
    )
    where = f"{'.'.join(path)}: " if path else ""
    return f"{where}{_FORMS.get(complaint['type']) or _lowered(complaint['msg'])}{shown}"


_FORMS = {
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "expected a mapping"),
    **dict.fromkeys(("list_type", "tuple_type"), "expected a list"),
}
"""What YAML calls the types that pydantic speaks of."""


def _lowered(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    """The field names that are valid at ``path`` inside ``model``, as far as types tell."""
    for part in path:
        field = model.field_called(part) if issubclass(model, Config) else model.model_fields.get(part)
        inner = _models(field.annotation) if field else []
        if not inner:
            # A key of a mapping, an index or a union tag: stay with the model that holds it.
            continue
        model = inner[0]
    if issubclass(model, Config):
        return model.known_keys()
    return [field.alias or name for name, field in model.model_fields.items()]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]


_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"


class _Plain(yaml.SafeLoader):
    """Plain YAML data, no tags that build objects; a key given twice is an error, not a lottery.

    Dates, and the numbers in base 60 that YAML 1.1 has, are text.
    """

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Go down a level; the reader looks at all those above again and again."""
        if self.flow_level >= DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {DEPTH}", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(token)

    _values = 0

    def compose_document(self) -> yaml.Node | None:
        """A document as nodes, not too many of them in a file with aliases written out."""
        node: yaml.Node | None = super().compose_document()
        if node is not None:
            self._values += _measure(node, 0, {})[0]
            if self._values > VALUES:
                raise _at(node, f"more than {VALUES:,} values, with aliases written out")
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """What a node stands for."""
        try:
            value = super().construct_object(node, deep=deep)
            if isinstance(value, str):
                value.encode()
        except UnicodeEncodeError:
            raise _at(node, "half a character (a lone surrogate)") from None
        except (ValueError, LookupError):  # what becomes of !!int '' and !!bool foo
            raise _at(node, f"{reprlib.repr(node.value)} is no {node.tag.removeprefix(_TAG)}") from None
        if isinstance(value, int) and value.bit_length() > 64:
            raise _at(node, f"{reprlib.repr(node.value)} is a number of more than 64 bits")
        if isinstance(value, str) and "\0" in value:
            raise _at(node, "a zero byte in a text")
        return value

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Bring in the mappings that ``<<`` names: what the mapping says wins, then the earlier one."""
        direct: dict[object, Any] = {}
        brought: dict[object, Any] = {}
        given: set[object] = set()
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key in given:
                raise _at(key_node, f"key {reprlib.repr(key)} is given twice")
            given.add(key)
            if key_node.tag != _MERGE:
                direct[key] = key_node, value_node
                continue
            for part in _mappings(value_node):
                self.flatten_mapping(part)
                for pair in part.value:
                    brought.setdefault(self._key(pair[0]), pair)
        node.value = list({**brought, **direct}.values())

    def _key(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise _at(node, f"a {'dict' if isinstance(node, yaml.MappingNode) else 'list'} as a key")
        return self.construct_object(node)


_Plain.yaml_constructors = {
    **{
        f"{_TAG}{kind}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{kind}"]
        for kind in ("null", "bool", "int", "float", "str", "seq", "map")
    },
    _MERGE: yaml.SafeLoader.construct_scalar,
    None: yaml.SafeLoader.construct_undefined,
}
_Plain.yaml_implicit_resolvers = {
    letter: [look for look in looks if look[0] in (f"{_TAG}null", f"{_TAG}bool", _MERGE)]
    for letter, looks in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Plain.add_implicit_resolver(
    f"{_TAG}int",
    re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)\Z"),
    list("-+0123456789"),
)
# YAML 1.1 takes 1e-4 for text, as it has no dot.
_Plain.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"([-+]?([0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(inf|Inf|INF))|\.(nan|NaN|NAN))\Z"
    ),
    list("-+.0123456789"),
)


def _at(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _mappings(node: yaml.Node) -> list[Any]:
    """What ``<<`` stands before."""
    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    for part in parts:
        if not isinstance(part, yaml.MappingNode):
            raise _at(part, "<< takes a mapping, or a list of mappings")
    return parts


def _measure(node: yaml.Node, above: int, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many nodes there are from ``node`` on, and in how many levels, with aliases written out."""
    if id(node) not in known and above <= DEPTH:
        if isinstance(node, yaml.ScalarNode):
            known[id(node)] = 1, 0
        else:
            pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value]
            sizes = [_measure(part, above + 1, known) for pair in pairs for part in pair]
            count = 1 + sum(nodes for nodes, _ in sizes)
            known[id(node)] = count, 1 + max((levels for _, levels in sizes), default=0)
    nodes, levels = known.get(id(node), (1, 1))
    if above + levels > DEPTH:
        raise _at(node, f"nested deeper than {DEPTH}, or in itself")
    return nodes, levels


def parse_yaml(text: str, where: str = "YAML") -> Any:
    """The plain data in a text; ``where`` opens messages.

    Raises: InputError, as ``read_yaml``.
    """
    with _one_line(where):
        return yaml.load(text, Loader=_Plain)


@contextmanager
def _one_line(where: str) -> Iterator[None]:
    """What is wrong with YAML as an InputError of one line."""
    try:
        yield
        return
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        parts = [error.context, error.problem, f"line {mark.line + 1}" if mark else None]
        reason = ", ".join(filter(None, parts))
    except RecursionError:
        reason = f"nested deeper than {DEPTH}"
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # no character, "\UFFFFFFFF" among them
        reason = " ".join(str(error).split())
    raise InputError(f"{where}: not valid YAML: {printable(shortened(reason))}")


def read_yaml(path: Path) -> Any:
    """The plain data in a YAML file.

    Raises: InputError for a file that is missing, no YAML, too large, nested deeper than ``DEPTH``, has a key
        twice, or has tags that stand for more than numbers and text.
    """
    return parse_yaml(read_text(path, _YAML_LIMIT), str(path))


def read_documents(path: Path) -> list[Any]:
    """The plain data of each document in a YAML file, without empty ones; at least one.

    Raises: InputError, as ``read_yaml``.
    """
    text = read_text(path, _YAML_LIMIT)
    with _one_line(str(path)):
        held = list(yaml.load_all(text, Loader=_Plain))
    return [content for content in held if content is not None] or [None]
