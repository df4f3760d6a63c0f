"""Regular expressions of files and users: Python's syntax, in bounded time."""

import re

import pytest

from taskvec.errors import InputError
from taskvec.patterns import Pattern

NAME = "model.layers.11.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "text", [r".*\.q_proj\..*", r"(?!.*norm).*", r"model\.layers\.(\d+)\..*", r".{3}l", "h"]
)
@pytest.mark.parametrize("how", ["fullmatch", "match", "search"])
def test_a_pattern_finds_what_python_finds(text: str, how: str) -> None:
    found, expected = getattr(Pattern(text, "here"), how)(NAME), getattr(re.compile(text), how)(NAME)
    assert (found is None) == (expected is None)
    assert found is None or (found[0], found.start()) == (expected[0], expected.start())


@pytest.mark.parametrize("text", [r"(([a-z._0-9]+)+)+!x?$", r"((.*)*)*\d\d\d\d", r"(a|b|[a-z.0-9_]|\w)+#"])
def test_no_pattern_hangs(text: str) -> None:
    pattern = Pattern(text, "adapter_config.json")
    with pytest.raises(InputError, match=r"adapter_config\.json: .* takes more than 2 s|^$"):
        for _ in range(100):
            pattern.fullmatch(NAME * 4 + "#!")
            pattern.fullmatch("a" * 4000)
        raise InputError("")


@pytest.mark.parametrize(
    "text", ["(", "a" * 5000, "(a{5000}){5000}", "(" * 2000 + ")" * 2000, "a{9999999999999}"]
)
def test_what_is_no_pattern_or_too_large_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"recipe\.yaml: .* regular expression"):
        Pattern(text, "recipe.yaml")
