"""The house stands: imports go down the floors, and importing the package costs nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

import taskvec

SOURCE = Path(taskvec.__file__).parent
GROUND = {
    *("_version", "arguments", "compiled", "config", "errors", "memory", "patterns", "pickles", "progress"),
    *("names", "reading", "registry", "substitution", "writing"),
}
EDITING = {"weights", "rules", "vectors", "edits"}
LEARNING = {"models", "tangent", "tasks", "statistics", "training"}
ABOVE = {"evaluation", "analysis", "studies", "runs"}

# What each part of the house may import, beside the ground and itself.
MAY_IMPORT: dict[str, set[str]] = {
    "weights": set(),
    "rules": set(),
    "models": set(),
    "tangent": set(),
    "vectors": {"weights", "rules"},
    "edits": {"weights", "rules", "vectors"},
    "tasks": {"models"},
    "statistics": {"models", "tangent", "tasks"},
    "training": {"models", "tangent", "tasks", "statistics", "vectors", "rules"},
    "evaluation": EDITING | LEARNING,
    "analysis": EDITING | LEARNING | {"evaluation"},
    "studies": EDITING | LEARNING | {"evaluation", "analysis", "reports"},
    "runs": EDITING | LEARNING | {"evaluation", "analysis", "reports", "studies"},
    "reports": set(),
    "cli": EDITING | LEARNING | ABOVE | {"reports"},
    "__init__": EDITING | LEARNING | ABOVE | {"reports"},
    "__main__": {"cli"},
}


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


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, taskvec; assert 'torch' not in sys.modules, sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
