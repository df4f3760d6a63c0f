"""The page on learned merges shows what runs."""

import re
from pathlib import Path
from typing import Any

import yaml

import taskvec as tv
from taskvec.merging import method_of

PAGE = (Path(__file__).parents[2] / "docs" / "learned-merges.md").read_text()


def test_the_snippets_run(evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector]) -> None:
    names: dict[str, Any] = {"evaluator": evaluator, "vectors": vectors, "print": lambda *values: None}
    for snippet in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(snippet, names)
    assert names["fitted"].after < names["fitted"].before
    assert names["tally"].keys() == {"logits", "labels"}


def test_the_entries_name_methods() -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    entries = yaml.safe_load(block)["methods"]["rules"]
    assert len({method_of(entry).name for entry in entries}) == len(entries)
