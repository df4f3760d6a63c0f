"""Figures of written texts, and what a score function of the user's may give."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from taskvec.errors import InputError
from taskvec.tasks.written import distinct_2, is_empty, plain, scored


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        (["a b c"], 1.0),
        (["a a a a"], 1 / 3),
        (["a b a b", "b a"], 2 / 4),
        (["one two", "one\n two", ""], 1 / 2),
    ],
)
def test_distinct_2_counts_different_pairs_of_words(texts: list[str], share: float) -> None:
    assert distinct_2(texts) == pytest.approx(share)


def test_texts_of_a_word_have_no_pairs() -> None:
    assert distinct_2(["", "one", "  "]) is None
    assert [is_empty(text) for text in ("", " \n\t", "a ")] == [True, True, False]


def test_an_exact_match_looks_past_case_and_white_space_alone() -> None:
    assert plain(" The  Answer\n") == plain("the answer") == "the answer"
    assert plain("the answer.") != plain("the answer")


@pytest.mark.parametrize(
    "given",
    [
        [0.5, 1],
        (0.5, 1.0),
        np.array([0.5, 1.0], dtype=np.float32),
        torch.tensor([0.5, 1.0]),
        iter([0.5, "1"]),
    ],
    ids=["list", "tuple", "array", "tensor", "iterator"],
)
def test_any_sequence_of_numbers_will_do(given: Any) -> None:
    assert scored(lambda texts: given, ["a", "b"], "score") == [0.5, 1.0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([0.5], "gave 1 numbers, expected 2, one for each text"),
        (0.5, "gave 0.5, expected 2"),
        (None, "gave None, expected 2"),
        ("ab", "gave 'ab', expected 2"),
        (torch.tensor(0.5), "gave Tensor, expected 2"),
        ([0.1, math.nan], "gave nan for text 2, expected a finite number"),
        ([[0.1, 0.2], [0.3, 0.4]], "gave list of float for text 1, expected a number"),
        ([0.1, "bad"], "gave 'bad' for text 2, expected a number"),
    ],
)
def test_anything_else_is_refused_in_one_line(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"^score of 'talk': {words}"):
        scored(lambda texts: given, ["a", "b"], "score of 'talk'")


def failing(texts: list[str]) -> list[float]:
    raise KeyError("no\nweights")


def test_what_a_score_function_raises_is_said_in_one_line() -> None:
    with pytest.raises(InputError, match=r"^score: raised KeyError: 'no\\nweights', given 1 texts; expected"):
        scored(failing, ["a"], "score")
