"""Methods: ways to make one model of several task vectors, or one for each task, so that they are compared.

A rule (``RULES``) is a method by itself, and so is a preset of learned coefficients (``PRESETS``); the others
are a file beside this one and a line here. See ``method.py`` for what a method is, and ``studies/methods.py``
for the table.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from taskvec.coefficients.presets import PRESETS
from taskvec.errors import InputError
from taskvec.reading import shown
from taskvec.registry import Registry, nearest
from taskvec.rules import RULES

if TYPE_CHECKING:
    from taskvec.merging.method import Method

METHODS: "Registry[Callable[[Mapping[str, object]], Method]]" = Registry(
    "method",
    {
        "library": "taskvec.merging.library:library_method",
        "emr (task id)": "taskvec.merging.served:emr_method",
        "tall": "taskvec.merging.served:tall_method",
        "tsv-compress": "taskvec.merging.served:tsv_method",
    },
)
"""Name -> what makes the method of the settings beside its name."""

ALL_CHAINS = ("dare+ties", "tsv+svc", "tsv+surgery", "tsv+learned_lines")
"""Chains that stand in tables beside the single rules."""

AFTER = ("surgery", "learned_lines")
"""What is learned after any method."""


def method_of(entry: object) -> "Method":
    """The method that an entry of a list names: a name, or ``{rule: NAME}`` with settings beside it; or
    ``{after: NAME, of: ENTRY}`` for what comes after another method, which ``METHOD+NAME`` is short for.

    Raises: UnknownName; InputError for settings that do not fit.
    """
    match entry:
        case str():
            return _method(entry, {})
        case {"rule": str(name), **given}:
            return _method(name, {str(key): value for key, value in given.items()})
        case {"after": str(name), "of": inner, **given} if name in AFTER:
            return _after(name, method_of(inner), {str(key): value for key, value in given.items()})
    raise InputError(f"{shown(entry)}, expected a name, or 'rule' with a name and settings beside it")


def _after(name: str, of: "Method", given: Mapping[str, object]) -> "Method":
    from taskvec.merging.lines import LinesMethod
    from taskvec.merging.surgery import SurgeryMethod

    return SurgeryMethod(of, given) if name == "surgery" else LinesMethod(of, given)


def _method(name: str, given: Mapping[str, object]) -> "Method":
    from taskvec.merging.learned import LearnedMethod
    from taskvec.merging.rules import RuleMethod

    first, _, last = name.rpartition("+")
    if last in AFTER:
        if not first:
            raise InputError(f"{name!r} comes after a method, expected METHOD+{name} such as tsv+{name}")
        return _after(last, _method(first, {}), given)
    if name in METHODS:
        return METHODS[name](given)
    if name in PRESETS:
        return LearnedMethod(name, given)
    if all(part in RULES for part in name.split("+")):
        return RuleMethod(name, given)
    raise InputError(f"no rule or method called {name!r}; {nearest(name, [*RULES, *PRESETS, *METHODS])}")


def every_method() -> "Iterator[Method]":
    """Every rule by itself, the usual chains, and every other method, with their own settings."""
    yield from (method_of(name) for name in (*RULES, *ALL_CHAINS, *PRESETS, *METHODS))
