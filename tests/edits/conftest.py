"""Where models lie that several tests merge."""

from pathlib import Path

import pytest

from edits.mergekit_models import save_models


@pytest.fixture(scope="session")
def mergekit_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models: base, a, b, c, half and headless."""
    folder = tmp_path_factory.mktemp("mergekit")
    save_models(folder)
    return folder


@pytest.fixture
def here(mergekit_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the working directory."""
    monkeypatch.chdir(mergekit_models)
    return mergekit_models
