"""Places of numbers in the plain data of a recipe: ``weights.math``, ``scale.1``, ``parameters.keep``."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import zeros

from taskvec.edits.variants import is_mergekit
from taskvec.errors import InputError
from taskvec.registry import nearest
from taskvec.rules import RULES, Rule
from taskvec.vectors import TaskVector, parse_expression
from taskvec.vectors.expression import names_in

Plain = Any
"""Numbers, words, lists and mappings, as a YAML file holds them."""
Keys = tuple[str | int, ...]
"""The way to a value in plain data."""

_INSIDE = ("gradient", "filters", "value")
"""Keys that paths leave out: ``scale.1`` is an anchor of a gradient, or the value of a filter."""


def at(content: Plain, keys: Keys) -> Plain:
    """The value at a place."""
    for key in keys:
        content = content[key]
    return content


def put(content: Plain, keys: Keys, value: object) -> None:
    """Set the value at a place."""
    *way, last = keys
    at(content, tuple(way))[last] = value


def label(keys: Keys) -> str:
    """What a place is called: without the keys of forms, and weights without ``parameters``."""
    path = [str(key) for key in keys if key not in _INSIDE]
    if path[:2] == ["parameters", "weights"] and len(path) > 2:
        del path[0]
    return ".".join(["weights" if path[0] == "expression" else path[0], *path[1:]])


class Places:
    """The places of a recipe that may be varied.

    Attributes:
        content: the plain data; what a path asks for is written out in it, such as a default of the rule, or
            one value for each vector in place of one for all.

    Args:
        where: the file of the recipe, for messages.
    """

    def __init__(self, where: str, content: dict[str, Plain]) -> None:
        self.content, self._where = content, where
        self._foreign = is_mergekit(content)
        self._defaults: set[Keys] = set()
        self._vectors = [] if self._foreign else [*_keys(content, "vectors"), *_keys(content, "models")]

    def find(self, path: str) -> list[Keys]:
        """The places that a path stands for; several if it has a ``*``.

        Raises: InputError, with the nearest path, if there is none.
        """
        root, _, rest = path.partition(".")
        if not self._foreign:
            root, rest = self._written_out(path, root, rest)
        found = list(_inside(self.content.get(root), rest, (root,))) if root in self.content else []
        if not found:
            raise InputError(f"--vary {path}: no number of {self._where}; {nearest(path, self.known())}")
        return found

    def is_default(self, keys: Keys) -> bool:
        """Whether a value is not the recipe's own, but the one that it goes without."""
        return any(keys[: len(way)] == way for way in self._defaults)

    def known(self) -> list[str]:
        """The paths of all numbers."""
        found = [label(keys) for keys in _leaves(self.content, ())]
        if self._foreign:
            return found
        weights = [f"weights.{name}" for name in self._vectors] if self._weighed else []
        fields = [f"parameters.{name}" for name in self._numeric()]
        own = [path for path in found if path.partition(".")[0] in ("scale", "parameters", "weights")]
        scale = [] if isinstance(self.content.get("scale"), Mapping) else ["scale"]
        return list(dict.fromkeys([*weights, *own, *fields, *scale]))

    @staticmethod
    def written(content: dict[str, Plain]) -> dict[str, Plain]:
        """Plain data of which every part is what a recipe may hold."""
        factors = content.get("expression")
        if isinstance(factors, Mapping):
            content["expression"] = _join(factors)
        return content

    @property
    def _rule(self) -> Rule | None:
        rule = self.content.get("rule")
        return RULES[rule] if isinstance(rule, str) else None

    @property
    def _weighed(self) -> bool:
        return self._rule is None or "weights" in self._rule.parameters()

    def _numeric(self) -> Iterator[str]:
        """Parameters of the rule that a number may be given for."""
        for name, value in ({} if self._rule is None else self._rule.parameters()).items():
            number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
            if number and name != "weights":
                yield name

    def _written_out(self, path: str, root: str, rest: str) -> tuple[str, str]:
        """The key and the path below it that a path means, once what it asks for is written out."""
        if root == "weights" and rest:
            return self._weights(path, rest)
        if root == "scale" and "scale" not in self.content:
            self._defaults.add(("scale",))
            self.content["scale"] = 1.0
        if root == "parameters" and rest and self._rule is not None:
            self._parameter(rest)
        return root, rest if root in ("scale", "parameters", "rule") else "?"

    def _weights(self, path: str, rest: str) -> tuple[str, str]:
        names = (*self._vectors, "*") if self._vectors else ()
        if not any(rest == name or rest.startswith(f"{name}.") for name in names):
            raise InputError(
                f"--vary {path}: no vector or model of that name; {nearest(rest, self._vectors)}"
            )
        if self._rule is None:
            self._factors()
            return "expression", rest
        if not self._weighed:
            raise InputError(
                f"--vary {path}: rule {self._rule.name!r} takes no weights; {nearest(path, self.known())}"
            )
        self._parameter(f"weights.{rest}")
        return "parameters", f"weights.{rest}"

    def _factors(self) -> None:
        """Write an expression out as a number for each name."""
        text = self.content.get("expression")
        if isinstance(text, Mapping):
            return
        names = names_in(text) if isinstance(text, str) else self._vectors[:1]
        stand_ins = {name: TaskVector.from_tensors({name: zeros(1)}, None) for name in names}
        edit = parse_expression(text, stand_ins) if isinstance(text, str) else stand_ins[names[0]]
        self.content["expression"] = {
            name: sum(edit.terms.get(delta, 0.0) for delta in vector.terms)
            for name, vector in stand_ins.items()
        }

    def _parameter(self, rest: str) -> None:
        """Write a default of the rule out, and one value for each vector if the path asks for one of them."""
        given = self.content.get("parameters") or {}
        if not isinstance(given, dict):
            return  # refused where the recipe is read
        self.content["parameters"] = given
        field, _, below = rest.partition(".")
        if self._rule is None or field not in self._rule.parameters():
            return
        default = 1.0 if field == "weights" else self._rule.parameters()[field]
        if given.get(field) is None:
            self._defaults.add(("parameters", field))
            given[field] = default if not isinstance(default, tuple) else list(default)
        value, named = given[field], [*self._vectors, "*"]
        if isinstance(value, list) and len(value) == len(self._vectors) and field == "weights":
            given[field] = dict(zip(self._vectors, value, strict=True))
        elif not isinstance(value, Mapping | list) and any(
            below == name or below.startswith(f"{name}.") for name in named
        ):
            given[field] = dict.fromkeys(self._vectors, value)


def _join(factors: Mapping[str, Plain]) -> str:
    """The expression that is a sum of names with these factors."""
    return " + ".join(f"{factor!r}*{name}" for name, factor in factors.items()).replace("+ -", "- ")


def _keys(content: Mapping[str, Plain], field: str) -> list[str]:
    held = content.get(field)
    return [str(name) for name in held] if isinstance(held, Mapping) else []


def _inside(node: Plain, path: str, keys: Keys) -> Iterator[Keys]:
    """The places below a value that a path stands for."""
    if not path:
        if not isinstance(node, Mapping | list):
            yield keys
        return
    form = next((form for form in _INSIDE if isinstance(node, Mapping) and form in node), None)
    if form is not None and path.partition(".")[0] not in node:
        yield from _inside(node[form], path, (*keys, form))
        return
    for key, value in _entries(node):
        name = str(key)
        if path == name or path == "*":
            yield from _ends(value, (*keys, key))
        elif path.startswith(f"{name}."):
            yield from _inside(value, path[len(name) + 1 :], (*keys, key))
        elif path.startswith("*."):
            yield from _inside(value, path[2:], (*keys, key))


def _ends(node: Plain, keys: Keys) -> Iterator[Keys]:
    """The place of a value, or of the one that a filter has."""
    if isinstance(node, Mapping) and "value" in node:
        yield from _ends(node["value"], (*keys, "value"))
    else:
        yield from _inside(node, "", keys)


def _entries(node: Plain) -> list[tuple[str | int, Plain]]:
    if isinstance(node, Mapping):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []


def _leaves(node: Plain, keys: Keys) -> Iterator[Keys]:
    """The places of all numbers."""
    if isinstance(node, int | float) and not isinstance(node, bool):
        yield keys
    for key, value in _entries(node):
        yield from _leaves(value, (*keys, key))
