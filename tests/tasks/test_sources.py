"""Every data format, good and bad."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from taskvec.errors import InputError
from taskvec.tasks.source import SOURCES
from taskvec.tasks.task import Task

ROWS = [
    {"split": split, "text": f"{split} {number}", "other": f"pair {number}", "label": number % 2}
    for split, count in (("train", 20), ("val", 4), ("test", 6))
    for number in range(count)
]
SPLITS = {"train": "train", "validation": "val", "test": "test"}


def task(**data: Any) -> Task:
    return Task.parse("task", {"name": "demo", "classes": ["no", "yes"], "data": data})


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def table(path: Path) -> Path:
    """The rows above in the format that the name asks for."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ROWS[0].keys())
            writer.writeheader()
            writer.writerows(ROWS)
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        jsonl(path, ROWS)
    return path


@pytest.mark.parametrize(
    ("name", "source"),
    [("d.jsonl", "jsonl"), ("d.jsonl.gz", "jsonl"), ("d.csv", "csv"), ("d.parquet", "parquet")],
)
@pytest.mark.parametrize(("only", "left"), [(1, [1, 3, 5]), ([0, 1], [0, 1, 2, 3, 4, 5]), ("0", [0, 2, 4])])
def test_only_some_rows_are_read_whatever_the_format(
    tmp_path: Path, name: str, source: str, only: object, left: list[int]
) -> None:
    demo = task(source=source, path=str(table(tmp_path / name)), splits=SPLITS, only={"label": only})
    assert demo.split("test").inputs == [f"test {n}" for n in left]


def test_rows_that_are_left_out_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    data = {"source": "jsonl", "path": str(table(tmp_path / "d.jsonl")), "splits": SPLITS}
    assert task(**data, only={"label": 1}).fingerprint != task(**data).fingerprint
    assert "only" not in task(**data).data.model_dump()


def test_an_unknown_field_of_only_is_named(tmp_path: Path) -> None:
    demo = task(source="jsonl", path=str(table(tmp_path / "d.jsonl")), splits=SPLITS, only={"lable": 1})
    with pytest.raises(InputError, match="no field 'lable'; did you mean 'label'"):
        demo.split("test")


@pytest.mark.parametrize(
    ("name", "source"),
    [("d.jsonl", "jsonl"), ("d.jsonl.gz", "jsonl"), ("d.csv", "csv"), ("d.parquet", "parquet")],
)
def test_tables_give_the_same_task_in_every_format(tmp_path: Path, name: str, source: str) -> None:
    demo = task(source=source, path=str(table(tmp_path / name)), splits=SPLITS, text2="other")
    test = demo.split("test")
    assert test.inputs == [(f"test {n}", f"pair {n}") for n in range(6)]
    assert test.labels.tolist() == [0, 1, 0, 1, 0, 1] and test.labels.dtype == torch.int64
    assert [len(demo.split("train")), len(demo.split("validation"))] == [20, 4]


def test_each_split_may_have_its_own_file_without_a_split_field(tmp_path: Path) -> None:
    files = {
        split: str(jsonl(tmp_path / f"{split}.jsonl", [{"text": split, "label": "yes"}] * 30))
        for split in ("train", "test")
    }
    demo = task(source="jsonl", files=files)
    assert demo.split("test").inputs == ["test"] * 30
    assert [len(demo.split("train")), len(demo.split("validation"))] == [27, 3]


def test_leading_rows_are_skipped(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [{"name": "demo"}, *ROWS])
    assert len(task(source="jsonl", path=str(path), skip=1, splits=SPLITS).split("train")) == 20
    with pytest.raises(InputError, match=r"d\.jsonl, row 1: no field 'split'"):
        task(source="jsonl", path=str(path), splits=SPLITS).split("train")


def test_a_split_that_nobody_named_is_not_left_out_in_silence(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", ROWS)
    with pytest.raises(InputError, match=r"row 21: split 'val', expected train, validation, test; name it"):
        task(source="jsonl", path=str(path)).split("train")
    assert len(task(source="jsonl", path=str(path), splits={"train": "train"}).split("train")) == 18


def test_a_csv_without_a_header_is_given_its_columns(tmp_path: Path) -> None:
    (tmp_path / "d.tsv").write_text("0\tgood film\n1\tbad film\n" * 3)
    demo = task(
        source="csv", files={"test": str(tmp_path / "d.tsv")}, delimiter="\t", columns=["label", "text"]
    )
    assert demo.split("test").inputs[:2] == ["good film", "bad film"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"split": "test", "text": "x"}', "row 31: no field 'label'"),
        ('{"split": "test", "txt": "x", "label": 0}', "row 31: no field 'text'; did you mean 'txt'"),
        ('{"split": "test", "text": "x", "label": 2}', "row 31: label 2 is outside the 2 classes"),
        ('{"split": "test", "text": "x", "label": -1}', "row 31: label -1 is outside"),
        ('{"split": "test", "text": "x", "label": "maybe"}', "row 31: label 'maybe' is outside"),
        ('{"split": "test", "text": "x", "label": 0.5}', "row 31: label 0.5, expected a whole number"),
        ('{"split": "test", "text": "x", "label": true}', "row 31: label True, expected a whole number"),
        ('{"split": "test", "text"', "row 31: not valid JSON"),
        ("[1, 2]", "row 31: list, expected an object"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = jsonl(tmp_path / "d.jsonl", ROWS)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError) as caught:
        task(source="jsonl", path=str(path), splits=SPLITS).split("test")
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl.gz", ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"d\.jsonl\.gz: cannot be read to its end"):
        task(source="jsonl", path=str(path), splits=SPLITS).split("train")


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_text("text")
    with pytest.raises(InputError, match=r"d\.parquet: not a parquet file"):
        task(source="parquet", path=str(tmp_path / "d.parquet")).split("test")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
        task(source="jsonl", path=str(tmp_path / "none.jsonl")).split("test")


def test_a_variable_that_is_not_set_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TASKVEC_DATA", raising=False)
    demo = task(source="jsonl", path="${TASKVEC_DATA}/text/demo.jsonl")
    with pytest.raises(
        InputError, match=r"TASKVEC_DATA is not set.*'text/demo\.jsonl'; export TASKVEC_DATA="
    ):
        demo.split("test")
    monkeypatch.setenv("TASKVEC_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"text/demo\.jsonl: no such file.*TASKVEC_DATA is '"):
        demo.split("test")


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "d.jsonl", [row for row in ROWS if row["split"] != "test"])
    with pytest.raises(InputError, match="demo: the test split is empty"):
        task(source="jsonl", path=str(path), splits=SPLITS).split("test")


@pytest.mark.parametrize("options", [{}, {"path": "a", "files": {"train": "b"}}])
def test_a_table_is_one_file_or_one_for_each_split(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"'path' .* or 'files'"):
        task(source="jsonl", **options)


def test_unknown_sources_and_options_name_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'jsonl'"):
        task(source="json", path="a")
    with pytest.raises(InputError, match="unknown key 'labl'; did you mean 'label'"):
        task(source="jsonl", path="a", labl="b")


def archive(path: Path, **change: Any) -> Path:
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", 30), ("val", 4), ("test", 5)):
        arrays[f"x_{split}"] = draw.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 2
    arrays = {**arrays, "classes": np.array(["no", "yes"]), **change}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def images(path: Path, **data: Any) -> Task:
    values = {
        "name": "demo",
        "modality": "image",
        "classes": "from-data",
        "data": {"path": str(path), **data},
    }
    return Task.parse("task", values)


def test_grey_images_of_an_archive_become_rgb(tmp_path: Path) -> None:
    demo = images(archive(tmp_path / "d.npz"), source="npz")
    test = demo.split("test")
    assert demo.classes == ("no", "yes")
    pixels: Any = test.inputs
    assert pixels.shape == (5, 8, 8, 3) and pixels.dtype == torch.uint8
    assert torch.equal(pixels[..., 0], pixels[..., 2])
    assert len(demo.split("validation")) == 4


def test_an_archive_without_validation_lends_from_train(tmp_path: Path) -> None:
    demo = images(archive(tmp_path / "d.npz", x_val=None, y_val=None), source="npz")
    assert [len(demo.split("train")), len(demo.split("validation"))] == [27, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": None}, "no array 'x_test'"),
        ({"y_test": np.arange(3)}, r"'y_test' is int64 \(3,\), expected 5 whole numbers"),
        ({"x_test": np.zeros((5, 8, 8))}, "'x_test' is float64"),
        ({"y_test": np.full(5, 2)}, r"y_test\[0\]: label 2 is outside"),
        ({"x_test": np.array([{}] * 5, dtype=object)}, "'x_test' cannot be read"),
    ],
)
def test_a_bad_array_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        images(archive(tmp_path / "d.npz", **change), source="npz").split("test")


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_text("text")
    with pytest.raises(InputError, match=r"d\.npz: not a numpy archive"):
        images(tmp_path / "d.npz", source="npz").split("test")


def folder(root: Path, classes: list[str], count: int = 10) -> Path:
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (6 + number, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
            (root / split / name / "notes.txt").write_text("not an image")
    return root


def test_folders_of_images_are_read_when_looked_at(tmp_path: Path) -> None:
    demo = images(folder(tmp_path, ["parking_lot", "beach"]), source="images")
    assert demo.classes == ("beach", "parking lot")
    test = demo.split("test")
    assert test.labels.tolist() == [0] * 10 + [1] * 10
    assert test.inputs[0].shape == (6, 8, 3) and test.inputs[0].dtype == np.uint8
    (tmp_path / "test" / "beach" / "1.png").write_text("broken")
    assert len(test.inputs[1:3]) == 2
    with pytest.raises(InputError, match=r"1\.png: cannot be read as an image"):
        test.inputs[1]


def test_folders_called_by_digits_are_places_in_the_classes(tmp_path: Path) -> None:
    root = folder(tmp_path, ["00000", "00001"])
    values = {"name": "demo", "modality": "image", "classes": ["no", "yes"]}
    named = Task.parse("task", {**values, "data": {"source": "images", "path": str(root)}})
    assert named.split("test").labels.tolist() == [0] * 10 + [1] * 10
    assert images(root, source="images").classes == ("0", "1")


def test_held_out_images_stay_unread(tmp_path: Path) -> None:
    demo = images(folder(tmp_path, ["a", "b"], count=20), source="images")
    assert [len(demo.split("train")), len(demo.split("validation"))] == [36, 4]
    assert demo.split("validation").inputs[0].shape[1:] == (8, 3)


def test_a_missing_split_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="test: no such folder, expected one folder of images"):
        images(tmp_path, source="images").split("test")


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set folder that the datasets library loads offline."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    place = tmp_path / "data"
    place.mkdir()
    for split, count in (("train", 20), ("test", 6)):
        jsonl(place / f"{split}.jsonl", [{"sentence": f"{split} {n}", "label": n % 2} for n in range(count)])
    return place


def test_a_data_set_of_the_datasets_library(dataset: Path) -> None:
    demo = task(source="hf", id=str(dataset), text="sentence")
    assert demo.split("test").inputs[:2] == ["test 0", "test 1"]
    assert [len(demo.split("train")), len(demo.split("validation"))] == [18, 2]
    with pytest.raises(InputError, match="no column 'sentense'; did you mean 'sentence'"):
        task(source="hf", id=str(dataset), text="sentense").split("test")
    with pytest.raises(InputError, match="neither 'text' nor 'image'"):
        task(source="hf", id=str(dataset)).split("test")


def test_images_and_class_names_of_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    pixels = [Image.fromarray(np.full((4, 5), 40 * n, dtype=np.uint8)) for n in range(6)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["parking_lot", "beach"])}
    )
    made = datasets.Dataset.from_dict({"image": pixels, "label": [0, 1] * 3}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *place, **options: made)
    values = {"name": "demo", "modality": "image", "classes": "from-data"}
    demo = Task.parse("task", {**values, "data": {"source": "hf", "id": "org/name", "image": "image"}})
    test = demo.split("test")
    assert demo.classes == ("parking lot", "beach")
    assert test.labels.tolist() == [0, 1] * 3
    assert test.inputs[2].tolist() == [[[80] * 3] * 5] * 4


def test_a_local_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*place: object, **options: object) -> None:
        raise ConnectionError("offline\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    values = {"name": "demo", "modality": "image", "classes": "from-data"}
    data = {"source": "hf", "id": "org/name", "image": "image", "local": "${TASKVEC_DATA}/demo"}
    monkeypatch.delenv("TASKVEC_DATA", raising=False)
    with pytest.raises(
        InputError, match=r"'test' cannot be loaded \(offline\); or put the images into .*demo/train"
    ):
        Task.parse("task", {**values, "data": data}).split("test")
    folder(tmp_path / "demo", ["a", "b"])
    monkeypatch.setenv("TASKVEC_DATA", str(tmp_path))
    local = Task.parse("task", {**values, "data": data})
    assert local.classes == ("a", "b") and len(local.split("test")) == 20


def test_every_source_of_the_registry_is_named_after_its_key() -> None:
    for name in SOURCES:
        stated = SOURCES[name].model_fields["source"].default
        assert stated == name, f"tasks/source.py lists {name!r}, and its class says source: {stated!r}"


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = table(tmp_path / "d.csv")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(task(source="csv", path=str(path), splits=SPLITS).split("test")) == 6


def test_a_csv_field_that_never_ends_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('split,label,text\ntest,0,"' + "x" * 200_000)
    with pytest.raises(InputError, match=r"d\.csv: not a table of columns"):
        task(source="csv", path=str(path)).split("test")


def test_a_folder_in_place_of_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no file, expected a jsonl file"):
        task(source="jsonl", path=str(tmp_path)).split("test")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"split": "test", "label": 0, "text": ["a"]}', "text is a list, expected text"),
        ('{"split": "test", "label": 0, "text": "\\ud800"}', "half a character"),
        ('{"split": "test", "label": 0, "text": null}', "the field 'text' is empty"),
        ('{"split": "test", "label": "--5", "text": "a"}', "label '--5' is outside the 2 classes"),
        ('{"split": "test", "label": "\u00b2", "text": "a"}', "is outside the 2 classes"),
        ("[" * 100_000, "nested deeper than 100"),
    ],
)
def test_values_of_the_wrong_kind_are_named(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(row + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="row 1: .*" + message):
        task(source="jsonl", path=str(path)).split("test")


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        ({"validation": "val"}, {"train": 20, "validation": 4, "test": 6}),
        ({"test": "val"}, {"train": 18, "validation": 2, "test": 4}),  # what is tested is not validated on
        ({"train": "test", "validation": "val"}, {"train": 6, "validation": 4, "test": None}),
    ],
)
@pytest.mark.parametrize("name", ["d.jsonl", "d.csv"])
def test_splits_that_are_not_named_keep_their_own_names(
    tmp_path: Path, name: str, splits: dict[str, str], sizes: dict[str, int | None]
) -> None:
    demo = task(source=name[2:], path=str(table(tmp_path / name)), splits=splits)
    for split, size in sizes.items():
        if size is None:
            with pytest.raises(InputError, match="the test split is empty"):
                demo.split("test")
        else:
            assert len(demo.split(split)) == size  # type: ignore[arg-type]


def test_splits_of_images_that_are_not_named_keep_theirs(tmp_path: Path) -> None:
    held = images(archive(tmp_path / "d.npz"), source="npz", splits={"validation": "val"})
    same = images(archive(tmp_path / "d.npz"), source="npz")
    assert [len(held.split(part)) for part in SPLITS] == [len(same.split(part)) for part in SPLITS]  # type: ignore[arg-type]
    root = folder(tmp_path, ["a", "b"], count=20)
    partly = images(root, source="images", splits={"validation": "none"})
    assert partly.classes == ("a", "b") and len(partly.split("test")) == len(
        images(root, source="images").split("test")
    )
    before = partly.fingerprint
    Path(root / "test" / "a" / "more.png").write_bytes(next((root / "test" / "a").glob("*.png")).read_bytes())
    assert images(root, source="images", splits={"validation": "none"}).fingerprint != before
