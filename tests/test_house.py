"""The house stands: imports go down the floors, and importing the package costs nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import resolve_name
from pathlib import Path

import pytest

import taskvec
from measure_house import circles_of, import_graph

SOURCE = Path(taskvec.__file__).parent
GROUND = {
    *(
        "_version",
        "arguments",
        "code",
        "compiled",
        "config",
        "errors",
        "group",
        "later",
        "memory",
        "names",
        "parameters",
        "processes",
    ),
    *(
        "patterns",
        "pickles",
        "place",
        "processes",
        "progress",
        "reading",
        "registry",
        "substitution",
        "turns",
        "urls",
    ),
    "writing",
}
EDITING = {"weights", "combiners", "rules", "vectors", "edits"}
LEARNING = {"models", "tangent", "tasks", "statistics", "training"}
ABOVE = {"evaluation", "coefficients", "merging", "studies", "runs", "searching"}

# What each part of the house may import, beside the ground and itself.
MAY_IMPORT: dict[str, set[str]] = {
    "weights": set(),
    "combiners": set(),
    "rules": {"combiners"},
    "models": {"weights"},  # only to open checkpoints, as everything else does
    "tangent": set(),
    "vectors": {"weights", "rules"},
    "edits": {"weights", "rules", "vectors"},
    "tasks": {"models"},
    "statistics": {"models", "tangent", "tasks"},
    "training": {"models", "tangent", "tasks", "statistics", "vectors", "combiners", "rules"},
    "evaluation": EDITING | LEARNING,
    "coefficients": EDITING | LEARNING | {"evaluation", "reports"},
    "merging": EDITING | LEARNING | {"evaluation", "coefficients"},
    "studies": EDITING | LEARNING | {"evaluation", "coefficients", "merging", "reports"},
    "runs": EDITING | LEARNING | {"evaluation", "coefficients", "merging", "reports", "studies"},
    "searching": EDITING | LEARNING | {"evaluation", "coefficients", "reports", "studies"},
    "integrations": EDITING | LEARNING,
    "reports": set(),
    "cli": EDITING | LEARNING | ABOVE | {"reports"},
    "__init__": EDITING | LEARNING | ABOVE | {"reports"},
    "__main__": {"cli"},
}


# The floors inside ``vectors``, the lowest first: a file imports from its own and from those below. A folder
# stands for those of its files that are not named themselves.
VECTOR_FLOORS: tuple[set[str], ...] = (
    {"advice", "info", "base", "linear", "lora.lowrank"},
    {"delta", "checks"},
    {"bits", "directions", "edited", "fitting", "geometry", "noise", "statistics", "lora", "stored"},
    {"opening"},
    {"vector"},
    {"combining", "expression", "lora.writing"},
    {"stored.masked", "library"},
    {"__init__"},
)


def graph_of(package: Path) -> dict[str, set[str]]:
    return import_graph(package, {path: ast.parse(path.read_text("utf-8")) for path in package.rglob("*.py")})


def floor_of(module: str, floors: Sequence[set[str]]) -> int:
    """The floor of a module of a package, named as there."""
    place = module
    while place:
        number = next((number for number, floor in enumerate(floors) if place in floor), None)
        if number is not None:
            return number
        place = place.rpartition(".")[0]
    raise AssertionError(f"{module} has no floor yet; give it one")


def climbs(graph: Mapping[str, set[str]], package: str, floors: Sequence[set[str]]) -> list[str]:
    """The imports inside a package that run up a floor."""
    inside = {
        module: module.removeprefix(f"{package}.") if module != package else "__init__"
        for module in graph
        if module == package or module.startswith(f"{package}.")
    }
    return [
        f"{module} imports {other}"
        for module, place in inside.items()
        for other in graph[module] & inside.keys()
        if floor_of(place, floors) < floor_of(inside[other], floors)
    ]


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Every module of ours that a file names in an import, inside functions too."""
    inside = ".".join(["taskvec", *path.relative_to(SOURCE).parent.parts])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = (
                resolve_name("." * node.level + (node.module or ""), inside)
                if node.level
                else node.module or ""
            )
            yield from (f"{home}.{alias.name}" for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    names = (module.split(".") for module in imported(path))
    return {name[1] for name in names if name[0] == "taskvec" and len(name) > 1}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down_the_floors(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT.keys() | GROUND, f"{part} has no place in the house yet"
    assert parts_imported(path) <= MAY_IMPORT.get(part, set()) | GROUND | {part}


def test_no_files_import_each_other_in_a_circle() -> None:
    assert not circles_of(graph_of(SOURCE))


def test_imports_among_vectors_go_down_the_floors() -> None:
    assert not climbs(graph_of(SOURCE), "taskvec.vectors", VECTOR_FLOORS)


def test_circles_and_climbs_are_seen(tmp_path: Path) -> None:
    package = tmp_path / "made_up"
    package.mkdir()
    (package / "__init__.py").write_text("from made_up.high import go\n")
    (package / "high.py").write_text("from made_up import low\n\ngo = low\n")
    (package / "low.py").write_text("")
    floors = ({"low"}, {"high"}, {"__init__"})
    assert not circles_of(graph_of(package)) and not climbs(graph_of(package), "made_up", floors)
    (package / "low.py").write_text("if False:\n    from made_up.high import go\n")
    assert circles_of(graph_of(package)) == [{"made_up.high", "made_up.low"}]
    assert climbs(graph_of(package), "made_up", floors) == ["made_up.low imports made_up.high"]
    (package / "new.py").write_text("from made_up import low\n")
    with pytest.raises(AssertionError, match=r"new has no floor yet"):
        climbs(graph_of(package), "made_up", floors)


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, taskvec; assert 'torch' not in sys.modules, sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
