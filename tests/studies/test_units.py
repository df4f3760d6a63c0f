"""Metrics of several units in one table."""

from pathlib import Path

import pytest

from taskvec.errors import InputError
from taskvec.runs.experiment import load_experiment
from taskvec.studies.measured import (
    Measured,
    both,
    in_unit,
    mean_in_unit,
    reciprocal_note,
    titled,
    unit_note,
)


@pytest.mark.parametrize(
    ("metric", "values", "shown"),
    [
        ("accuracy", [0.5], "50.0"),
        ("matthews", [0.25, 0.35], "30.0 ± 7.1"),
        ("perplexity", [1 / 16], "16"),
        ("perplexity", [1 / 20, 1 / 30], "25 ± 7.1"),
        ("mse", [2.0], "0.5"),
    ],
)
def test_a_metric_is_shown_in_its_unit(metric: str, values: list[float], shown: str) -> None:
    assert str(in_unit(metric, values)) == shown


def test_a_mean_over_tasks_of_different_units_is_not_shown() -> None:
    assert str(mean_in_unit(["accuracy", "macro_f1"], [0.5])) == "50.0"
    assert str(mean_in_unit(["perplexity", "perplexity"], [(1 / 10 + 1 / 30) / 2])) == "15"
    assert str(mean_in_unit(["perplexity", "accuracy"], [0.5])) == "–"


def test_absolute_stands_beside_normalized_where_there_is_one() -> None:
    edit = Measured(absolute=0.05, normalized=0.9, values={"wiki": 0.04, "tales": 0.06})
    assert str(both([edit], {"wiki": "perplexity", "tales": "perplexity"})) == "20 / 90.0"
    assert str(both([edit], {"wiki": "perplexity", "tales": "accuracy"})) == "– / 90.0"


def test_notes_and_heads_say_what_is_better() -> None:
    assert unit_note(["accuracy"]) == "Per cent"
    assert unit_note(["perplexity"]) == "Perplexity as it is (less is better)"
    assert (
        unit_note(["accuracy", "bits_per_byte"]) == "Bits per byte as it is (less is better), others per cent"
    )
    assert reciprocal_note(["accuracy"]) == ""
    assert "1 / perplexity" in reciprocal_note(["perplexity", "accuracy"])
    assert (titled("wiki", "perplexity"), titled("sst2", "accuracy")) == ("wiki ↓", "sst2")


@pytest.mark.parametrize(
    ("complement", "words"),
    [
        ("{taste: number}", "'taste' is no target"),
        ("{pets: pets}", "'pets' is no complement of itself"),
        ("{pets: petz}", "no task called 'petz'"),
    ],
)
def test_a_complement_that_cannot_be_is_refused(
    complement: str, words: str, tmp_path: Path, tiny_model: Path, tiny_suite: Path
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        f"experiment: x\nmodel: {tiny_model}\nsuite: {tiny_suite}\nregimes: {{full: {{}}}}\n"
        f"negation: {{targets: [pets], complement: {complement}}}\n"
    )
    with pytest.raises(InputError, match=words):
        load_experiment(file)
