"""Options mean the same wherever they are."""

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from cyclopts import Parameter

from taskvec.cli import COMMANDS

ANALYSES = ("disentanglement", "linearity", "similarity", "gradients", "ntk")


def commands() -> dict[str, Callable[..., Any]]:
    """Every command's function."""
    places = {name: f"taskvec.cli.{name}" for name in COMMANDS if name != "analyze"}
    places |= {name: f"taskvec.cli.analyze.{name}" for name in ANALYSES}
    return {name: getattr(import_module(module), name) for name, module in places.items()}


def short_names(option: inspect.Parameter) -> set[str]:
    """``-s`` of an option that has it."""
    told = [one for one in getattr(option.annotation, "__metadata__", ()) if isinstance(one, Parameter)]
    names = [name for one in told for name in (one.name or ())]
    return {name for name in names if not name.startswith("--")}


def test_an_option_has_the_same_short_name_in_every_command() -> None:
    spelled: dict[str, dict[str, set[str]]] = {}
    for command, function in commands().items():
        for name, option in inspect.signature(function).parameters.items():
            if option.kind is option.KEYWORD_ONLY:
                spelled.setdefault(name, {})[command] = short_names(option)
    assert spelled["suite"]["tasks"] == {"-s"}
    for name, by_command in spelled.items():
        assert len({frozenset(names) for names in by_command.values()}) == 1, (name, by_command)
