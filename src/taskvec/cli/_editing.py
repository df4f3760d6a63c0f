"""What the commands on files share: models by name, task vectors by name."""

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from taskvec.cli._common import assignments, say
from taskvec.errors import InputError
from taskvec.later import count_threads
from taskvec.urls import said

if TYPE_CHECKING:
    from taskvec.vectors import TaskVector
    from taskvec.weights import Weights

_LEAST = 1e6
_SHARED = 100e6
"""Bytes from which on an edit is shared out among processes."""

_TENSOR = 1e5
"""The overhead of a tensor, as bytes that could be edited in the same time."""

_DEFAULT = 512e6
_BLOCK = 64e6
"""Bytes that computing a block of a tensor takes at most, with few exceptions; no smaller bound is kept."""

Memory = Annotated[
    str | None,
    Parameter(
        help="What blocks being read and computed may take, such as 512MB or 2GB, from 64MB on; beside the "
        "150 to 300 MB of the process itself, and some 15 MB for each further process. A tensor that needs "
        "more is refused; without the option it may take more than 512MB, which a note says.",
    ),
]


def _above_zero(_: object, size: float | None) -> None:
    if size is not None and not 0 < size < math.inf:
        raise ValueError("expected a number above 0")


ShardSize = Annotated[
    float,
    Parameter(name="--max-shard-gb", validator=_above_zero, help="Size of a shard of a folder, in GB."),
]
Output = Annotated[Path, Parameter(name=["--output", "-o"])]
Vectors = Annotated[tuple[str, ...], Parameter(name=["--vector", "-v"], negative=())]
Expression = Annotated[str | None, Parameter(name=["--expression", "-e"], allow_leading_hyphen=True)]
Patterns = Annotated[tuple[str, ...], Parameter(negative=(), allow_leading_hyphen=False)]
AllowOther = Annotated[bool, Parameter(name="--allow-other-base", negative=())]


def parse_size(text: str, option: str) -> float:
    """Bytes in words such as ``512MB`` or ``1.5GiB``.

    Raises: InputError.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?\s*", text.upper())
    size = float(found[1]) * (1024 if found[3] else 1000) ** "_KMGT".find(found[2] or "_") if found else 0
    if size < _LEAST:
        raise InputError(f"{option}: {text!r}, expected a size from 1MB on, such as 512MB or 2GB")
    return size


def bound(memory: str | None, needs: Iterable[tuple[str, int]]) -> float:
    """Bytes that blocks may take, by the option ``--memory``; a note says what needs more than the default.

    Args:
        needs: tensors, and the bytes that it takes to compute each, a block at a time where that goes.

    Raises: InputError if the option allows less than a tensor needs.
    """
    size = _DEFAULT if memory is None else parse_size(memory, "--memory")
    name, most = max(needs, key=lambda need: need[1], default=("", 0))
    if most > max(size, _BLOCK):
        what = f"{name!r} needs about {_rounded_up(most)}"
        if memory is not None:
            raise InputError(f"--memory: {what}, more than {memory}; allow as much, or leave the option out")
        say([f"{what} of memory, more than the usual 512MB"])
    return size


def _rounded_up(size: int) -> str:
    """``3.2GB``, which ``parse_size`` understands."""
    return f"{math.ceil(size / 1e8) / 10:g}GB" if size >= 1e9 else f"{math.ceil(size / 1e6)}MB"


def workers(weights: "Weights") -> int:
    """How many processes to share an edit out to: one a core, but one for what is done in no time, for what
    waits for a network, and where a process with libraries of its own had better not be forked."""
    from taskvec.weights.remote.mirror import file_behind

    if any(file_behind(path) is not None for path in weights.files):
        return 1
    size = weights.nbytes + _TENSOR * len(weights)
    return min(16, count_threads()) if size >= _SHARED and sys.platform == "linux" else 1


def open_model(ref: str) -> "Weights":
    """Weights by path, hub id, a known name such as ``minilm``, or a function that gives a model; what exists
    on the disk wins."""
    from taskvec.models.known import check_installed, path_or_id
    from taskvec.weights import open_weights

    if (own := _own_weights(ref)) is not None:
        return own
    check_installed(ref)
    return open_weights(path_or_id(ref))


def known_ref(name: str) -> str | None:
    """The path or hub id of a known model."""
    from taskvec.models.known import MODELS

    return MODELS[name].ref() if name in MODELS else None


def known_model(name: str) -> "str | Weights | None":
    """The same, or the weights of a function that gives a model: for what the command line itself names."""
    return known_ref(name) or _own_weights(name)


def _own_weights(ref: str) -> "Weights | None":
    from taskvec.code import names_code
    from taskvec.weights import open_weights

    if not names_code(ref):
        return None
    from taskvec.models.own import is_own, load

    return open_weights(load(ref).source) if is_own(ref) else None


def check_vectors(vectors: "Mapping[str, TaskVector]", output: Path | str) -> list[str]:
    """Refuse an output inside the folder of a vector.

    Returns: notes on vectors that are the same.
    Raises: OutputExists.
    """
    from taskvec.edits.inputs import check_outside, describe_copy, find_copies, stored

    held = {name: files[0] for name, vector in vectors.items() if (files := stored(vector))}
    check_outside(output, held.values())
    return [f"{name}: {describe_copy(first)}" for first, name in find_copies(held)]


def load_vectors(pairs: Sequence[str]) -> dict[str, "TaskVector"]:
    """The vectors of ``name=PATH`` arguments.

    Raises: InputError for no vector, a name that no expression could hold, or the same vector twice.
    """
    from taskvec.vectors import TaskVector

    paths = assignments(pairs, "--vector")
    if not paths:
        raise InputError("--vector: none given, expected at least one name=PATH")
    for name in paths:
        if not name.isidentifier():
            raise InputError(f"--vector: the name {name!r} is not one word of letters, digits and _")
    loaded = {name: TaskVector.load(path) for name, path in paths.items()}
    _check_distinct(loaded, paths)
    return loaded


def _check_distinct(vectors: Mapping[str, "TaskVector"], paths: Mapping[str, str]) -> None:
    names = list(vectors)
    for place, name in enumerate(names):
        for earlier in names[:place]:
            if vectors[name].terms == vectors[earlier].terms:
                path = said(paths[name])
                raise InputError(
                    f"--vector: {name!r} and {earlier!r} are the same vector, {path}; give it once"
                )
