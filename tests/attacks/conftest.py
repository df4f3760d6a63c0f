"""Processes to attack, and a place to do it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from attacks.cases import Arena
    from attacks.writings import Bench
    from forking import Forks


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Forks]":
    from forking import Forks

    server = Forks(tmp_path_factory.mktemp("log"))
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
