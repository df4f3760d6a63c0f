"""What CONTRIBUTING promises: whatever is new takes a file, a line and a page."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from taskvec.models.known import LOADERS
from taskvec.tasks.kinds import KINDS
from taskvec.tasks.metrics import METRICS
from taskvec.tasks.source import SOURCES
from taskvec.tasks.suite import suite_names
from taskvec.training.regimes import REGIMES

ROOT = Path(__file__).parents[1]

TEXT = {
    "text": "a type that transformers has a text model for",
    "language": "a type that transformers has a language model for",
    "classifier": "a type that transformers has a classifier for",
    "image": "a type that transformers has an image encoder for",
}


@pytest.mark.parametrize(
    ("kind", "names", "page", "pattern"),
    [
        ("regime", REGIMES, "docs/training.md", r"^\| `{}` \|"),
        ("regime", REGIMES, "docs/supported.md", r"^\| regimes \|.*`{}`"),
        ("metric", METRICS, "docs/suites.md", r"^\| `metric` \|.*`{}`"),
        ("kind of task", KINDS, "docs/suites.md", r"kind \*\*`{}`\*\*"),
        ("kind of task", KINDS, "docs/supported.md", r"^\| kinds of task \|.*`{}`"),
        ("data source", SOURCES, "docs/suites.md", r"^`[\w`, ]*\b{}`[\w`, ]*:"),
        ("kind of model", [TEXT.get(name, name) for name in LOADERS], "docs/models.md", r"^\| `?{}`? \|"),
        ("suite", suite_names(), "docs/supported.md", r"^\| suites \|.*`{}`"),
    ],
)
def test_whatever_is_registered_is_on_its_page(
    kind: str, names: Iterable[str], page: str, pattern: str
) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in names:
        wanted = pattern.replace("{}", re.escape(name))
        assert re.search(wanted, text, re.MULTILINE), (
            f"{page} lacks the {kind} {name!r}: no line like {wanted}"
        )
