"""YAML is hostile: what is read of it is plain data of a bounded size, or one sentence."""

from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from effort import EFFORT
from taskvec.config import Config, parse_yaml, read_yaml
from taskvec.errors import InputError

PIECES = [
    *("a", "b", "1", "0", ".5", "e9", "-", "+", ":", "_", "0x", "0b", "<<", "~", "yes", ".inf", ".nan"),
    *(
        ": ",
        "- ",
        ", ",
        "? ",
        "\n",
        "\n  ",
        "\t",
        "[",
        "]",
        "{",
        "}",
        "&a ",
        "*a",
        "#",
        "|\n",
        ">",
        "---\n",
        "...",
    ),
    *(
        "'",
        '"',
        "\\",
        "\\u",
        "\\U0011",
        "\\ud800",
        "\\0",
        "%",
        "@",
        "`",
        "!",
        "!!",
        "!<",
        "\0",
        "\x1b",
        "\ufeff",
        "²",
    ),
    *("!!bool ", "!!int ", "!!float ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!str ", "!!null "),
    *("!!map ", "!!seq ", "!!merge ", "!!value ", "!!python/name:os.system ", "2024-01-01", "9" * 5000),
]


def plain(content: object) -> bool:
    match content:
        case dict():
            return all(plain(part) for pair in content.items() for part in pair)
        case list():
            return all(map(plain, content))
        case str():
            return "\0" not in content and bool(content.encode() or not content)
        case int():
            return content.bit_length() <= 64
    return content is None or isinstance(content, float)


@settings(max_examples=150 * EFFORT, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_text_is_plain_data_or_one_sentence(text: str) -> None:
    try:
        assert plain(parse_yaml(text, "suite.yaml"))
    except InputError as error:
        assert str(error).startswith("suite.yaml: not valid YAML: ") and len(str(error)) < 250
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: !!bool foo", "'foo' is no bool, line 1"),
        ("a:\n  !!int ''", "'' is no int, line 2"),
        ("!!float ''", "'' is no float"),
        ("!!timestamp foo", "could not determine a constructor for the tag"),
        ('"\\UFFFFFFFF"', "too large"),
        ('"\\uD800"', "half a character"),
        ('a: "\\0"', "zero byte"),
        ("a: \0", "special characters are not allowed"),
        ("9" * 6000, "is no int"),
        ("0x" + "f" * 6000, "more than 64 bits"),
        ("&a [*a]", "nested deeper than 100, or in itself"),
        ("a: &a {<<: *a}", "nested deeper than 100, or in itself"),
        ("a: {<<: 3}", "<< takes a mapping, or a list of mappings"),
        ("{<<: {a: 1}, <<: {a: 2}}", "'<<' is given twice"),
        ("[a]: 1", "a list as a key"),
        ("a: 1\n---\nb: 1", "expected a single document"),
        ("a:\t1", "cannot start any token"),
        ("[" * 100_000, "nested deeper than 100"),
        ("- " * 100_000, "nested deeper than 100"),
        ("[" * 101 + "]" * 101, "nested deeper than 100"),
    ],
)
def test_what_is_no_plain_data_is_named_with_its_line(text: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, "suite.yaml")
    assert what in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "step", ["[{0}, {0}, {0}]", "{{k: {0}, l: {0}, m: {0}}}", "{{<<: [{0}, {0}], k{1}: 1}}", "[{0}]"]
)
def test_aliases_stand_for_no_more_than_a_file_may_hold(step: str) -> None:
    lines = [f"a{n}: &a{n} {step.format(f'*a{n - 1}', n)}" for n in range(1, 300)]
    begun = perf_counter()
    with pytest.raises(InputError, match=r"more than 200,000 values|nested deeper than 100"):
        parse_yaml("\n".join(["a0: &a0 {k: 1}", *lines]))
    assert perf_counter() - begun < 10


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("1:30.5", "1:30.5"),
        ("010", 8),
        ("0x1F", 31),
        ("1_000", 1000),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("1e999", float("inf")),
        ("\ufeff[yes, No, ~, ]", [True, False, None]),
        ("18446744073709551615", 2**64 - 1),
        ("'<<': 1", {"<<": 1}),
        ("!!str 010", "010"),
        ("[" * 100 + "]" * 100, [[]]),
        ("", None),
    ],
)
def test_numbers_and_dates_are_what_people_mean(text: str, value: object) -> None:
    found = parse_yaml(text)
    while isinstance(found, list) and len(found) == 1 and found != value:
        found = found[0]
    assert found == value or (value == [[]] and found == [])


def test_what_a_mapping_says_wins_over_what_it_brings_in_and_earlier_over_later() -> None:
    found = parse_yaml(
        "a: &a {k: 1, l: 1}\nb: &b {<<: *a, k: 2, m: 2}\nc: {<<: [*a, *b], l: 3}\nd: {<<: [*b, *a]}"
    )
    assert found["b"] == {"k": 2, "l": 1, "m": 2}
    assert found["c"] == {"k": 1, "l": 3, "m": 2} and found["d"] == {"k": 2, "l": 1, "m": 2}


def test_files_that_are_no_text_or_too_large_are_named(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    for content, what in (
        (b"\xff\xfea\0", "cannot be read as text in UTF-8"),
        (b"#" * 2_000_000, "holds more than 1 MB"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"s\.yaml: {what}"):
            read_yaml(path)


class Settings(Config):
    name: str = ""
    number: int = 0
    share: float = 0.5
    parts: tuple[str, ...] = ()


@pytest.mark.parametrize("key", Settings.model_fields)
@pytest.mark.parametrize(
    "value",
    [".nan", "1e999", "0xffffffffffffffff", "[[]]", "{1: 2}", "~", '"a\\e[2J\\nb"', "[" * 90 + "]" * 90],
)
def test_values_of_any_kind_are_taken_or_refused_in_one_line(key: str, value: str) -> None:
    for text in (f"{key}: {value}", f"{{{key}: 1, ? {value if value[0] not in '[{' else 3} : 1}}"):
        content: Any = parse_yaml(text)
        try:
            Settings.parse("here", content)
        except InputError as error:
            assert str(error).startswith("here: ") and str(error).isprintable()
