"""Checks of inputs: that folders are sound, that no two inputs are alike, that none holds the output."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from taskvec.edits.configs import read_config
from taskvec.errors import CorruptFile, InputError, OutputExists
from taskvec.reading import exists, is_folder, local_path, read_bytes
from taskvec.urls import said
from taskvec.vectors import TaskVector
from taskvec.vectors.directions import Stored
from taskvec.vectors.lora.adapter import Adapter
from taskvec.weights import Weights
from taskvec.weights.blocks import row_size
from taskvec.weights.output import url_of
from taskvec.weights.quantized import check_plain

LOOK = 1 << 10
"""Entries of a tensor that are compared first."""


@contextmanager
def errors_at(where: str) -> Iterator[None]:
    """Begin the messages of errors with the recipe, or the place in it, that they come from."""
    try:
        yield
    except InputError as error:
        message = str(error)
        raise type(error)(message if message.startswith(where) else f"{where}: {message}") from None


def check_sound(weights: Weights) -> Weights:
    """Refuse quantized weights, a broken config.json, or a shard that is no part of the weights.

    Returns: the weights.
    Raises: CorruptFile; InputError for quantized weights.
    """
    check_plain(weights)
    folder = weights.folder
    if folder is None:
        return weights
    read_config(folder)
    if any(site.chosen for site in weights.sites):  # the user said which
        return weights
    for shard in sorted(folder.glob("model-*-of-*.safetensors")):
        if shard.resolve() not in weights.files:
            raise CorruptFile(
                f"{shard}: no part of the weights in this folder, expected only shards of one model; "
                "remove it, write the index again, or name the file that is meant"
            )
    return weights


def check_outside(target: str | Path, inputs: Iterable[Weights]) -> None:
    """Refuse an output that would lie inside an input folder, among the files of another model.

    Outputs that are input files themselves are left to ``check_target``; those that go elsewhere are not, as
    nothing else looks at them.

    Raises: OutputExists.
    """
    if (url := url_of(target)) is not None:
        here = f"{said(url).rstrip('/')}/"
        for weights in inputs:
            there = f"{said(weights.ref).rstrip('/')}/"
            if there.startswith(here) or here.startswith(there):
                raise OutputExists(f"{said(url)}: lies inside the input {weights.ref}; choose another output")
        return
    place = local_path(target).resolve()
    for weights in inputs:
        folder = Path(weights.ref).expanduser()
        inside = is_folder(folder) and folder.resolve() in place.parents
        if inside and place not in weights.files:
            raise OutputExists(f"{target}: lies inside the input {weights.ref}; choose another output")


def find_copies(inputs: Mapping[str, Weights]) -> Iterator[tuple[str, str]]:
    """Pairs of inputs in different files that hold the same tensors: the first, and a later one.

    Cost: a look at the first entries of tensors; a read of all only where those are the same.
    """
    seen: dict[str, Weights] = {}
    for name, weights in inputs.items():
        first = next((other for other, held in seen.items() if alike(held, weights)), None)
        if first is None:
            seen[name] = weights
        else:
            yield first, name


def describe_copy(first: str) -> str:
    """Words for an input that is a copy of another."""
    return f"holds the same tensors as {first}, and both count"


def alike(first: Weights, other: Weights) -> bool:
    """Whether two inputs hold the same tensors with the same adapter settings."""
    if first.identity == other.identity:
        return True
    if first.specs != other.specs or _settings(first) != _settings(other):
        return False
    return all(_start(first, name) == _start(other, name) for name in first) and (
        first.fingerprint() == other.fingerprint()
    )


def stored(vector: TaskVector) -> list[Weights]:
    """The files that a vector was opened from."""
    return [source.weights for source in vector.terms if isinstance(source, Stored | Adapter)]


def _settings(weights: Weights) -> bytes | None:
    beside = weights.adapter
    return None if beside is None or not exists(beside) else read_bytes(beside)


def _start(weights: Weights, name: str) -> bytes:
    """The first entries of a tensor."""
    shape = weights.spec(name).shape
    rows = slice(0, 1 + LOOK // max(1, row_size(shape))) if shape else None
    return weights.read_array(name, rows).tobytes()
