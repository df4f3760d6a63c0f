"""Options mean the same wherever they are."""

from collections.abc import Iterator

from cyclopts import App
from cyclopts.argument import Argument

from taskvec.cli import COMMANDS, app_of
from taskvec.studies import ANALYSES


def options() -> Iterator[tuple[str, Argument]]:
    """Every option of every command, those of flattened settings included."""
    app = app_of(None)
    commands: dict[str, App] = {name: app[name] for name in COMMANDS if name != "analyze"}
    commands |= {f"analyze {name}": app["analyze"][name] for name in ANALYSES}
    for command, function in commands.items():
        for argument in function.assemble_argument_collection():
            if argument.show and argument.index is None:
                yield command, argument


def test_an_option_has_the_same_short_name_in_every_command() -> None:
    spelled: dict[str, dict[str, set[str]]] = {}
    for command, option in options():
        short = {name for name in option.names if not name.startswith("--")}
        for name in set(option.names) - short:
            spelled.setdefault(name, {})[command] = short
    assert spelled["--suite"]["tasks"] == {"-s"}
    assert spelled["--lr"]["train"] == set()
    for name, by_command in spelled.items():
        assert len({frozenset(names) for names in by_command.values()}) == 1, (name, by_command)
