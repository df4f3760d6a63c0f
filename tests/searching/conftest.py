"""A recipe to search."""

from pathlib import Path

import pytest

from searching.bowls import save_world


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a base and two vectors, in a folder of their own."""
    return save_world(tmp_path_factory.mktemp("searched"))
