"""References to models on the Hugging Face hub, turned into local folders."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from taskvec.errors import InputError, MissingExtra

_REFERENCE = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_SIDE_FILES = [
    *("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.codes", "*.tsv", "*.yaml", "*.py"),
    *("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*", "README.md"),
]
"""What ``files_beside`` copies of the models that there are, and what the model card is made of."""


def is_reference(text: str) -> bool:
    """Whether ``text`` has the form ``org/name`` or ``org/name@revision``."""
    return _REFERENCE.fullmatch(text) is not None


def id_in(text: str) -> str:
    """What a URL of the hub names, as a reference; other texts as they are.

    >>> id_in("hf://org/name@v1/folder"), id_in("s3://bucket/model")
    ('org/name@v1', 's3://bucket/model')
    """
    if not text.startswith("hf://"):
        return text
    return "/".join(text.removeprefix("hf://").removeprefix("models/").split("/")[:2])


def resolve(reference: str) -> Path:
    """The local folder of a hub model, downloaded unless the cache has it.

    Honours what ``huggingface_hub`` reads from the environment: ``HF_HUB_OFFLINE``, ``HF_HOME``, mirrors.
    Takes safetensors; ``.bin`` files only where there are none.

    Raises: MissingExtra without ``huggingface_hub``; InputError if the model cannot be had.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise InputError(f"{reference}: expected a hub reference of the form org/name or org/name@revision")
    if ".." in (match["revision"] or "").split("/"):  # it becomes a path in the cache
        raise InputError(f"{reference}: a revision of steps upward, expected a branch, a tag or a commit")
    if find_spec("huggingface_hub") is None:
        raise MissingExtra(
            f"{reference}: no such file or folder; for models of the hub: pip install 'taskvec[hf]'"
        )
    folder = _snapshot(reference, match, "*.safetensors")
    return folder if any(folder.glob("*.safetensors")) else _snapshot(reference, match, "*.bin")


def _snapshot(reference: str, match: re.Match[str], weights: str) -> Path:
    client = import_module("huggingface_hub")
    asked = [weights, *_SIDE_FILES]
    try:
        with bars():
            folder = client.snapshot_download(match["name"], revision=match["revision"], allow_patterns=asked)
    except Exception as error:  # the hub client raises many kinds, from HTTP errors to value errors
        what = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise InputError(
            f"{reference}: no such file or folder, and not to be had from the hub ({what})"
        ) from None
    return Path(folder)


@contextmanager
def bars(*, quiet: bool = False) -> Iterator[None]:
    """The client's progress bars: on a terminal, and nowhere else."""
    shown = import_module("huggingface_hub.utils")
    before = shown.are_progress_bars_disabled()
    if quiet or not sys.stderr.isatty():
        shown.disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            shown.enable_progress_bars()
