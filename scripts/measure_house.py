"""What a stranger measures of a Python package: size, grain, names, comments, types, circles.

    python scripts/measure_house.py [FOLDER of a package …]

Each folder is one column; without any, ours. Lines of code are those that are neither blank, nor a comment,
nor part of a docstring. Imports inside functions and for type checkers count for circles too.
"""

import ast
import io
import statistics
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import resolve_name
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def measure(package: Path) -> dict[str, str]:
    """The rows of the table for one package."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lines = sum(text.count("\n") for text in texts.values())
    code = sum(len(code_lines(text, trees[path])) for path, text in texts.items())
    comments = sum(comment_lines(text) for text in texts.values())
    functions = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    lengths = sorted(body_length(function) for function in functions)
    tenth = lengths[int(0.9 * len(lengths))]
    arguments = [argument for function in functions for argument in arguments_of(function)]
    annotated = sum(argument.annotation is not None for argument in arguments)
    circles = circles_of(import_graph(package, trees))
    return {
        "files": str(len(texts)),
        "lines": f"{lines:,}",
        "code lines": f"{code:,}",
        "longest file": str(max(text.count("\n") for text in texts.values())),
        "function length, median / p90": f"{statistics.median(lengths):.0f} / {tenth}",
        "public top-level names": str(sum(len(public_names(tree)) for tree in trees.values())),
        "full-line comments, %": f"{100 * comments / lines:.1f}",
        "annotated arguments, %": f"{100 * annotated / max(1, len(arguments)):.0f}",
        "import circles (files)": " + ".join(str(len(circle)) for circle in circles) or "0",
    }


def docstring_lines(tree: ast.Module) -> set[int]:
    """The numbers of the lines that docstrings take, those of attributes included."""
    strings = (
        node
        for parent in ast.walk(tree)
        if isinstance(parent, DOCUMENTED)
        for node in parent.body
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
    return {line for node in strings for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def code_lines(text: str, tree: ast.Module) -> set[int]:
    """The numbers of the lines that hold code."""
    skipped = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    held = {
        line
        for token in tokens
        if token.type not in skipped
        for line in range(token.start[0], token.end[0] + 1)
    }
    return held - docstring_lines(tree)


def comment_lines(text: str) -> int:
    """How many lines hold a comment and nothing else."""
    return sum(line.lstrip().startswith("#") for line in text.splitlines())


def body_length(function: Function) -> int:
    """The lines of a function without its decorators and its docstring, its signature included."""
    length = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length


def arguments_of(function: Function) -> list[ast.arg]:
    """The arguments that a type checker wants annotated."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    return [argument for argument in (*named, *starred) if argument.arg not in ("self", "cls")]


def public_names(tree: ast.Module) -> set[str]:
    """The functions, classes and values that a module defines under a name without an underscore."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, *FUNCTIONS)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def import_graph(package: Path, trees: Mapping[Path, ast.Module]) -> dict[str, set[str]]:
    """The modules of the package that each of its modules imports anywhere in its file."""
    modules = {module_name(package, path): path for path in trees}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        home = name if path.name == "__init__.py" else name.rpartition(".")[0]
        statements = (imported(node, home) for node in ast.walk(trees[path]))
        wanted = (next((m for m in names if m in modules), name) for one in statements for names in one)
        graph[name] = set(wanted) - {name}
    return graph


def module_name(package: Path, path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(node: ast.AST, home: str) -> Iterator[tuple[str, ...]]:
    """What each name of a statement may stand for: a module, or something in the module named after it."""
    if isinstance(node, ast.Import):
        yield from ((alias.name,) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        origin = "." * node.level + (node.module or "")
        source = resolve_name(origin, home) if node.level else origin
        yield from ((f"{source}.{alias.name}", source) for alias in node.names)


def circles_of(graph: Mapping[str, Iterable[str]]) -> list[set[str]]:
    """The sets of two or more modules that all reach each other, largest first."""
    reached = {name: reachable(graph, name) for name in graph}
    circles = {
        frozenset(other for other in targets if name in reached[other])
        for name, targets in reached.items()
        if name in targets
    }
    return sorted(map(set, circles), key=len, reverse=True)


def reachable(graph: Mapping[str, Iterable[str]], start: str) -> set[str]:
    """The modules that one imports, and those that they import, and so on."""
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(graph[name])
    return seen


def main() -> None:
    """Print the table, in Markdown."""
    ours = Path(__file__).parents[1] / "src" / "taskvec"
    packages = [Path(argument).resolve() for argument in sys.argv[1:]] or [ours]
    columns = [measure(package) for package in packages]
    print("| | " + " | ".join(package.name for package in packages) + " |")
    print("| --- |" + " ---: |" * len(packages))
    for row in columns[0]:
        print(f"| {row} | " + " | ".join(column[row] for column in columns) + " |")


if __name__ == "__main__":
    main()
