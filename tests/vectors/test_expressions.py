"""Expressions over named vectors: arithmetic, and nothing but arithmetic."""

import pytest
import torch

from taskvec.errors import InputError, UnknownName
from taskvec.vectors import TaskVector, parse_expression

VECTORS = {name: TaskVector.from_tensors({"w": torch.ones(2) * i}, None) for i, name in enumerate("abc", 1)}
A, B, C = VECTORS.values()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", A),
        ("0.4*a + 0.4*b - 0.3*c", 0.4 * A + 0.4 * B - 0.3 * C),
        ("c + (b - a)", C + B - A),
        ("-a", -A),
        ("-0.5*a", -0.5 * A),
        ("+a/4 - -b", A / 4 + B),
        ("2*(a - b*0.5)/4", 0.5 * A - 0.25 * B),
        ("(1 - 0.75)*a", 0.25 * A),
        ("1e-2*a", 0.01 * A),
        (" \n a ", A),
        ("a - 0*b", A),
    ],
)
def test_an_expression_is_the_form_it_spells(text: str, expected: TaskVector) -> None:
    assert parse_expression(text, VECTORS) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "invalid syntax"),
        ("a +", "invalid syntax"),
        ("a b", "invalid syntax"),
        ("a*b", "a vector times a vector"),
        ("a + 1", "a number plus or minus a vector"),
        ("1 / a", "division by a vector"),
        ("a / 0", "division by zero"),
        ("a / (1 - 1)", "division by zero"),
        ("3 * 2", "comes to the number 6"),
        ("a + a", "'a' stands 2 times, expected once"),
        ("a ** 2", r"'a \*\* 2' found, expected numbers"),
        ("a[0]", "expected numbers, names"),
        ("True * a", "'True' found"),
        ("1j * a", "'1j' found"),
        ("1e999 * a", "a number too large"),
        ("a / (1e308 * 10)", "a number too large"),
        ("a / (1e308 + 1e308)", "a number too large"),
        ("a * (0 * (1e308 / 1e-308))", "a number too large"),
        ("a / 1e200 / 1e200", "a coefficient rounded to 0"),
        ("1e-200 * (1e-200 * a)", "a coefficient rounded to 0"),
        ("'a'", "found, expected numbers"),
        ("(lambda: a)()", "found, expected numbers"),
        ("a if a else a", "stands 3 times"),
        ("a\0", "cannot be parsed|null bytes"),
        ("1" * 5000 + "*a", "cannot be parsed|too large|the limit"),
    ],
)
def test_what_is_no_linear_expression_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse_expression(text, VECTORS)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize("text", ["(" * 2000 + "a" + ")" * 2000, "-" * 100_000 + "a", "a" + "+b" * 3])
def test_depth_and_repetition_are_refused_and_never_crash(text: str) -> None:
    with pytest.raises(InputError, match="expression"):
        parse_expression(text, VECTORS)


def test_an_unknown_name_brings_the_nearest() -> None:
    vectors = {"sst2": A, "cola": B}
    with pytest.raises(UnknownName, match="no vector called 'sts2'; did you mean 'sst2'"):
        parse_expression("0.5*sts2", vectors)


def test_nothing_is_executed() -> None:
    with pytest.raises(InputError):
        parse_expression("__import__('os').abort()", VECTORS)
