"""Processes to attack, and a place to do it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from attacks.cases import Arena
    from attacks.writings import Bench
    from forking import Forks

HEAVY = (
    "sklearn.metrics",
    "taskvec.evaluation.evaluator",
    "taskvec.runs.runner",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
)
"""What commands with models import, which takes as long as a hundred cases."""


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Forks]":
    from forking import Forks

    folder = tmp_path_factory.mktemp("log")
    (folder / "heavy").write_text("\n".join(HEAVY))
    server = Forks(folder, folder / "heavy")
    yield server
    server.close()


@pytest.fixture(scope="session")
def arena(tmp_path_factory: pytest.TempPathFactory, forks: "Forks") -> "Arena":
    from attacks.cases import Arena

    return Arena(tmp_path_factory.mktemp("arena"), forks)


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory, forks: "Forks") -> "Bench":
    from attacks.writings import Bench

    return Bench(tmp_path_factory.mktemp("bench"), forks)
