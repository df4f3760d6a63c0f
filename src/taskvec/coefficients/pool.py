"""Where the vectors of a pool come from: a library, a folder of vectors, expressions over them."""

from collections.abc import Mapping
from pathlib import Path

from taskvec.errors import InputError, UnknownName
from taskvec.reading import is_folder, local_path
from taskvec.registry import nearest
from taskvec.vectors import TaskVector
from taskvec.vectors.expression import names_in, parse_expression
from taskvec.vectors.library import Library
from taskvec.weights.staging import MANIFEST, SUFFIX


def pool_paths(folder: str | Path) -> dict[str, Path]:
    """The vectors of a library, or of a folder with a file for each, by name.

    Raises: InputError for a folder without vectors.
    """
    place = local_path(folder)
    if not is_folder(place):
        raise InputError(f"{folder}: no folder, expected a library or a folder of task vectors")
    if (place / MANIFEST).exists():
        return {name: place / "vectors" / f"{name}{SUFFIX}" for name in Library.load(place).names}
    found = {path.name.removesuffix(SUFFIX): path for path in sorted(place.glob(f"*{SUFFIX}"))}
    if not found:
        raise InputError(f"{folder}: holds no {SUFFIX} files, expected a task vector in each of some")
    return found


def load_pool(folder: str | Path) -> dict[str, TaskVector]:
    """The same, opened. Raises: InputError also for a file that is no task vector."""
    return {name: TaskVector.load(path) for name, path in pool_paths(folder).items()}


def composed(vectors: Mapping[str, TaskVector], expressions: Mapping[str, str]) -> dict[str, TaskVector]:
    """The pool with expressions, by name, in the place of the vectors that they name.

    Raises: InputError for a name that is taken; UnknownName for a vector that is not there.
    """
    used = {name for text in expressions.values() for name in names_in(text)}
    for name in sorted(used - vectors.keys()):
        raise UnknownName(f"{name!r}: no vector of the pool; {nearest(name, vectors)}")
    kept = {name: vector for name, vector in vectors.items() if name not in used}
    made = {name: parse_expression(text, vectors) for name, text in expressions.items()}
    for name in made.keys() & kept.keys():
        raise InputError(f"{name!r}: the name of a vector and of an expression; choose another")
    return {**kept, **made}
