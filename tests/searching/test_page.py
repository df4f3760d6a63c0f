"""What the page on searching shows is what happens."""

import re
from pathlib import Path

import pytest

from searching.bowls import save_world
from taskvec.config import parse_yaml
from taskvec.searching.space import open_space

PAGE = (Path(__file__).parents[2] / "docs" / "search.md").read_text()


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    for snippet in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(snippet, {})


def test_the_recipe_shown_is_a_space() -> None:
    [shown] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    space = open_space("recipe.yaml", parse_yaml(shown), {})
    assert list(space.values(space.start)) == ["parameters.keep", "parameters.trim", "scale.0"]
