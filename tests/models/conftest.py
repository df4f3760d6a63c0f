"""Folders with tiny checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging

from checkpoints import save_bert, save_clip


@pytest.fixture(autouse=True, scope="session")
def no_bars() -> Iterator[None]:
    library: Any = logging
    library.disable_progress_bar()
    yield
    library.enable_progress_bar()


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))
