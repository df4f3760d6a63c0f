"""What the documentation shows is what the code does."""

import re
from pathlib import Path

import pytest

import taskvec as tv
from taskvec.cli import COMMANDS
from taskvec.experiments.config import load_experiment

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_exists(page: Path) -> None:
    shown = set(re.findall(r"(?:^|`|\$ |    )taskvec ([a-z-]+)", page.read_text()))
    assert shown <= {*COMMANDS, "install-completion"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_shown_is_public(page: Path) -> None:
    shown = set(re.findall(r"\btv\.([A-Za-z_]+)", page.read_text()))
    assert shown <= set(tv.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_suite_in_the_documentation_is_valid(tmp_path: Path) -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "suites.md").read_text(), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(block)
    suite = tv.load_suite(tmp_path / "mine.yaml")
    assert set(suite.tasks) == {"sentiment", "topics"}


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.name)
def test_every_experiment_file_is_valid(path: Path) -> None:
    experiment, suite = load_experiment(path)
    assert set(experiment.task_names(suite)) <= set(suite.tasks)
