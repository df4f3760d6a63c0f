"""Labels, splits and fingerprints of a task."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskvec.errors import InputError
from taskvec.tasks.kinds.classification import Classification
from taskvec.tasks.task import Split, Task, held_out_split


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [
        {"split": split, "text": f"{split} {n}", "label": n % 3}
        for split in ("train", "test")
        for n in range(60)
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "d.jsonl"


def task(path: Path, **change: Any) -> Task:
    values = {"name": "demo", "classes": ["a", "b", "c"], "data": {"source": "jsonl", "path": str(path)}}
    return Task.parse("task", {**values, **change})


def test_a_limit_takes_the_first_rows(path: Path) -> None:
    demo = task(path)
    assert demo.split("test", 2).inputs == ["test 0", "test 1"]
    assert len(demo.split("test", 1000)) == 60


def test_taking_places_keeps_their_order(path: Path) -> None:
    assert task(path).split("test").take(torch.tensor([5, 2])) == ["test 5", "test 2"]


def test_train_and_held_out_validation_are_disjoint_and_whole(path: Path) -> None:
    demo = task(path)
    train, validation = demo.split("train"), demo.split("validation")
    assert sorted([*train.inputs, *validation.inputs]) == sorted(f"train {n}" for n in range(60))
    assert len(validation) == 6
    again = task(path)
    assert again.split("validation").inputs == validation.inputs


def test_the_held_out_split_is_the_one_of_the_papers() -> None:
    whole = Split(list(range(60000)), torch.arange(60000))
    train, validation = held_out_split(whole)
    assert [len(train), len(validation)] == [55000, 5000]
    assert train.inputs[0] == 36044


@settings(deadline=None)
@given(st.integers(10, 400))
def test_a_tenth_is_held_out_and_labels_stay_with_their_inputs(count: int) -> None:
    train, validation = held_out_split(Split(list(range(count)), torch.arange(count)))
    assert len(validation) == count // 10
    assert [*train.inputs, *validation.inputs] == torch.cat([train.labels, validation.labels]).tolist()


def test_too_few_rows_to_hold_out_is_an_error() -> None:
    with pytest.raises(InputError, match="9 training rows are too few"):
        held_out_split(Split(list(range(9)), torch.arange(9)))


def test_labels_are_mapped_and_dropped(path: Path) -> None:
    demo = task(path, classes=["low", "high"], labels={0: "low", 1: None, 2: "high"})
    test = demo.split("test", 4)
    assert test.inputs == ["test 0", "test 2", "test 3", "test 5"]
    assert test.labels.tolist() == [0, 1, 0, 1]


def test_a_label_that_is_not_mapped_is_an_error(path: Path) -> None:
    with pytest.raises(InputError, match="row 62: label 1, expected one of 'labels' \\(0, 2\\)"):
        task(path, classes=["low", "high"], labels={0: "low", 2: "high"}).split("test")


def test_kept_classes_narrow_the_rows_and_not_the_head(path: Path) -> None:
    demo = task(path, keep=["c"])
    assert demo.classes == ("a", "b", "c")
    assert set(demo.split("test").labels.tolist()) == {2}


def test_a_changed_copy_reads_its_own_rows(path: Path) -> None:
    demo = task(path)
    assert len(demo.split("test")) == 60
    assert len(demo.model_copy(update={"keep": ("c",)}).split("test")) == 20
    assert len(demo.split("test")) == 60


def test_dropping_every_row_is_an_empty_split(path: Path) -> None:
    with pytest.raises(InputError, match="the test split is empty"):
        task(path, labels={0: None, 1: None, 2: None}).split("test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "acuracy"}, "metric: no metric called 'acuracy'; did you mean 'accuracy'"),
        ({"head": "zero"}, "head: .*'zero-shot' or 'linear-probe'"),
        ({"templates": ["a photo"]}, "template 'a photo' has no '{}'"),
        ({"classes": ["a"]}, "two or more"),
        ({"classes": ["a", "a"]}, "each once"),
        ({"classes": ["a", ""]}, "classes.1: string should have at least 1 character"),
        ({"templates": []}, "templates: .* at least 1 item"),
        ({"wordings": {"d": ["x"]}}, "no class called 'd'"),
        ({"wordings": {"a": []}}, "wordings.a: .* at least 1 item"),
        ({"keep": ["d"]}, "no class called 'd'"),
        ({"labels": {0: "d"}}, "no class called 'd'"),
        ({"max_length": 0}, "max_length"),
        ({"tempaltes": ["{}"]}, "unknown key 'tempaltes'; did you mean 'templates'"),
        ({"clases": ["a", "b"]}, "unknown key 'clases'; did you mean 'classes'"),
    ],
)
def test_a_bad_field_is_one_line_that_names_it(path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        task(path, **change)
    assert "\n" not in str(caught.value)


def test_an_unknown_split_names_the_nearest(path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'validation'"):
        task(path).split("validations")  # type: ignore[arg-type]


def test_fingerprints_follow_meaning_and_not_the_path(path: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(path.read_bytes())
    demo = task(path)
    assert task(moved).fingerprint == demo.fingerprint
    assert task(path, description="other").fingerprint == demo.fingerprint
    assert task(path, templates=["a {}"]).fingerprint != demo.fingerprint
    assert task(path, version=2).fingerprint != demo.fingerprint
    assert task(path, labels={0: "a", 1: "b", "x": "c"}).fingerprint != demo.fingerprint
    moved.write_bytes(path.read_bytes().replace(b"train 7", b"train x"))
    assert task(moved).fingerprint != demo.fingerprint


def test_fingerprints_follow_the_options_of_the_data(path: Path) -> None:
    rows = path.read_text().splitlines()
    path.write_text("\n".join(line.replace('"text"', '"other": "x", "text"') for line in rows))
    data = {"source": "jsonl", "path": str(path)}
    assert task(path).fingerprint != task(path, data={**data, "text": "other"}).fingerprint
    assert task(path).fingerprint != task(path, data={**data, "splits": {"test": "train"}}).fingerprint


def test_kinds_of_task_are_told_apart() -> None:
    values = {"name": "demo", "classes": ["a", "b"], "data": {"source": "csv", "path": "x.csv"}}
    plain = Task.parse("task", values)
    assert type(plain) is Classification and plain.kind == "classification"
    assert type(Task.parse("task", {**values, "kind": "classification"})) is Classification
    for kind in ("clasification", 5, None):
        with pytest.raises(InputError, match="kind: no kind of task called"):
            Task.parse("task", {**values, "kind": kind})
