"""GGUF files as checkpoints: one file holds weights, configuration and vocabulary."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from taskvec.reading import is_folder
from taskvec.weights import open_weights
from taskvec.weights.folders import find_weights
from taskvec.weights.formats import kind_of_file
from taskvec.weights.network import quiet


def gguf_file(ref: str | Path) -> Path | None:
    """The GGUF file at a path, or the one that holds a folder's weights; none for other checkpoints.

    Raises: InputError for a folder with several of them and no other weights.
    """
    path = Path(ref)
    if is_folder(path):
        found = find_weights(path)[0] if any(path.glob("*.gguf")) else None
        return found if found is not None and found.suffix == ".gguf" else None
    return path if path.suffix == ".gguf" and path.is_file() and kind_of_file(path) == "gguf" else None


def read_config(file: Path) -> dict[str, Any]:
    """The configuration that transformers makes of the file's header."""
    with _opened(file) as weights:
        return cast("dict[str, Any]", json.loads(weights.config))


def load_gguf(kind: Any, file: Path, **options: Any) -> Any:
    """What ``kind.from_pretrained`` of transformers gives for the file, of the tensors of ``open_weights``.

    So names and values agree with those that are edited, and the header is parsed once: transformers would
    take ten seconds for a large vocabulary each time.
    """
    from transformers import AutoConfig

    with _opened(file) as weights, quiet():
        config = AutoConfig.for_model(**json.loads(weights.config))
        with torch.device("meta"):
            network = type(kind.from_config(config))
        return network.from_pretrained(None, config=config, state_dict=dict(weights), **options)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    with open_weights(file) as weights:
        yield weights
