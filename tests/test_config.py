"""Plain data from YAML."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskvec.config import parse_yaml
from taskvec.errors import InputError

MERGED = """
a: &a {k: 1, j: {x: 1}}
b: {inner: &b {<<: *a, k: 2}}
c: {<<: *b, z: 3}
d: {<<: [*a, *b], k: 4}
"""


def test_mappings_can_be_brought_into_others_which_win() -> None:
    assert parse_yaml(MERGED) == {
        "a": {"k": 1, "j": {"x": 1}},
        "b": {"inner": {"k": 2, "j": {"x": 1}}},
        "c": {"k": 2, "j": {"x": 1}, "z": 3},
        "d": {"k": 4, "j": {"x": 1}},
    }


@pytest.mark.parametrize("text", ["a: 1\na: 2", "1: a\n1.0: b", "b: &b {k: 1}\nc: {<<: *b, k: 2, k: 3}"])
def test_a_key_given_twice_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match="is given twice, line"):
        parse_yaml(text)


@given(st.floats(allow_nan=False))
def test_every_way_to_write_a_number_is_a_number(number: float) -> None:
    for text in (repr(number), f"{number:e}", f"{number:.0E}", f"{number:+g}"):
        if "inf" not in text.lower():
            assert parse_yaml(f"a: {text}") == {"a": float(text)}
