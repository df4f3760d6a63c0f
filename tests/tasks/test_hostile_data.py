"""Data are hostile: what is damaged, odd or far too large is one sentence that names the file."""

import csv
import gzip
import io
import json
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from PIL import Image

from effort import EFFORT
from taskvec.errors import InputError
from taskvec.tasks.source import SPLITS
from taskvec.tasks.task import Task

ROWS = [
    {"split": split, "text": f"{split} {number}", "label": number % 2}
    for split in SPLITS
    for number in range(12)
]
NAMES = ["d.jsonl", "d.jsonl.gz", "d.csv", "d.csv.gz", "d.parquet", "d.npz", "d/train/a/0.png"]


def written(folder: Path, name: str) -> Path:
    """Sound data in a file of that name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    match name.split(".")[-1], name.split(".")[1]:
        case "parquet", _:
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
        case "npz", _:
            draw = np.random.default_rng(0)
            arrays: dict[str, Any] = {"classes": np.array(["no", "yes"])}
            for split in ("train", "val", "test"):
                arrays[f"x_{split}"] = draw.integers(0, 9, (12, 4, 4), dtype=np.uint8)
                arrays[f"y_{split}"] = np.arange(12) % 2
            np.savez_compressed(path, **arrays)
        case "png", _:
            for place in ("train/a", "train/b", "test/a", "test/b"):
                (folder / "d" / place).mkdir(parents=True, exist_ok=True)
                for number in range(10):
                    pixels = np.full((8, 8, 3), number, np.uint8)
                    Image.fromarray(pixels).save(folder / "d" / place / f"{number}.png")
        case last, kind:
            text = io.StringIO()
            if kind == "csv":
                rows = csv.DictWriter(text, ROWS[0].keys())
                rows.writeheader()
                rows.writerows(ROWS)
            else:
                text.writelines(json.dumps(row) + "\n" for row in ROWS)
            content = text.getvalue().encode()
            path.write_bytes(gzip.compress(content, mtime=0) if last == "gz" else content)
    return path


def task(path: Path, **more: Any) -> Task:
    """A task on the data in a file, or on the folder of images that holds it."""
    image = path.suffix in (".npz", ".png")
    source = path.name.split(".")[1] if path.suffix != ".png" else "images"
    data = {"source": source, "path": str(path.parents[2] if source == "images" else path), **more}
    classes = ["a", "b"] if source == "images" else ["no", "yes"]
    values = {"name": "demo", "modality": "image" if image else "text", "classes": classes, "data": data}
    return Task.parse("task", values)


def read(demo: Task) -> None:
    """Everything that a run reads of a task."""
    assert demo.fingerprint
    for split in SPLITS:
        found = demo.split(split)
        assert len(list(found.inputs)) == len(found.labels) > 0


def refusal(demo: Task) -> str:
    with pytest.raises(InputError) as caught:
        read(demo)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def mutated(content: bytes, draw: Random) -> bytes:
    """The bytes with some of them changed, lost, doubled or replaced."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 5])):
        at, many = draw.randrange(len(changed) + 1), draw.choice([1, 1, 2, 8, 100])
        match draw.randrange(6):
            case 0:
                changed[at : at + many] = draw.randbytes(many)
            case 1:
                changed[at : at + 1] = bytes([draw.choice([0, 0xFF, 0x7F, 0x80, 0x22, 0x2C, 0x0A, 0x5B])])
            case 2:
                del changed[at : at + many]
            case 3:
                changed[at:at] = changed[at : at + many] * draw.choice([1, 50])
            case 4:
                del changed[at:]
            case 5 if at < len(changed):
                changed[at] ^= 1 << draw.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_data_are_read_or_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    sound, draw = path.read_bytes(), Random(name)
    read(task(path))
    for _ in range(60 * EFFORT):
        path.write_bytes(mutated(sound, draw))
        begun = perf_counter()
        try:
            read(task(path))
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
            assert path.name in str(error) or "demo: " in str(error)
        assert perf_counter() - begun < 5


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_plain_file_is_never_opened(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    path.unlink()
    os.mkfifo(path)
    assert "is a pipe" in refusal(task(path)) or "is no file" in refusal(task(path))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["x" * 300, "absent", "a\x1bb", "~nosuchuser/d"])
def test_paths_that_lead_nowhere_are_one_sentence(name: str, place: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    demo = task(path)
    values = {**demo.data.model_dump(), "path": place, "folder": tmp_path}
    lost = Task.parse("task", {"name": "demo", "classes": ["a", "b"], "data": values})
    assert "no such" in refusal(lost) or "too long" in refusal(lost)


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.csv.gz"])
def test_an_archive_of_lines_unpacks_to_no_more_than_is_honest(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    head = gzip.compress(b"split,text,label\n" if name == "d.csv.gz" else b"")
    for piece in (b" " * 10**7, b'{"split": "other", "text": "a", "label": 0}\n' * 10**5, b"\n" * 10**6):
        # Parts of an archive may stand one after the other.
        path.write_bytes(head + gzip.compress(piece) * 20)
        said = refusal(task(path, splits={"train": "train", "test": "test"}))
        expected = {" ": "10 million characters", "{": "in good faith", "\n": "in good faith"}[chr(piece[0])]
        assert expected in said or (name == "d.jsonl.gz" and "row 1: not valid JSON" in said)


def npz(path: Path, header: bytes, content: bytes, key: str = "x_test", **options: Any) -> Path:
    """An archive with one array of a header of one's own; other arrays are sound."""
    written(path.parent, path.name)
    sound = {member: zipfile.ZipFile(path).read(member) for member in zipfile.ZipFile(path).namelist()}
    with zipfile.ZipFile(path, "w", options.get("method", zipfile.ZIP_DEFLATED)) as archive:
        for member, held in sound.items():
            if member != f"{key}.npy":
                archive.writestr(member, held)
        padded = header.ljust(117) + b"\n"
        archive.writestr(
            f"{key}.npy", b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + content
        )
    return path


def claim(dtype: str, shape: str, order: str = "False") -> bytes:
    return f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (claim("'|u1'", "(9000000000,)"), "claims to be uint8"),
        (claim("'|u1'", "(-1, -64)"), "claims to be"),
        (claim("'|u1'", "(0, 9223372036854775808)"), "cannot be read"),
        (claim("'<f8'", "(8,)"), "expected uint8"),
        (claim("[('a', '<i4'), ('b', '<i4')]", "(8,)"), "expected uint8"),
        (claim("'|O'", "(8,)"), "holds Python objects"),
        (claim("'<U0'", "(8,)"), "claims to be"),
        (claim("'|u1'", "(64,)"), "expected uint8"),
        (claim("'|u1'", "(4, 0, 9)"), "claims to be"),
        (claim("'|u1'", "[64]"), "cannot be read"),
        (claim("'junk'", "(64,)"), "cannot be read"),
        (b"(" * 100, "cannot be read"),
        (b"{'descr': '|u1'}", "cannot be read"),
    ],
)
def test_an_array_is_what_its_header_claims(header: bytes, what: str, tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", header, bytes(64))
    tracemalloc.start()
    said = refusal(task(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "d.npz: " in said and "'x_test'" in said and what in said
    assert peak < 50e6


def test_an_array_of_zeros_without_end_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    size = 400_000_000
    npz(path, claim("'|u1'", f"({size // 16}, 4, 4)"), bytes(size))
    tracemalloc.start()
    assert "far more than so few bytes can in good faith" in refusal(task(path))
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize("order", ["True", "False"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_arrays_of_either_order_and_packing_are_read(order: str, method: int, tmp_path: Path) -> None:
    pixels = np.arange(12 * 8, dtype=np.uint8).reshape(12, 2, 4)
    content = pixels.tobytes("F" if order == "True" else "C")
    path = npz(tmp_path / "d.npz", claim("'|u1'", "(12, 2, 4)", order), content, method=method)
    found: Any = task(path).split("test").inputs
    assert np.array_equal(found[..., 1].numpy(), pixels)


def packed(path: Path, method: int) -> Path:
    return npz(path, claim("'|u1'", "(12, 2, 4)"), bytes(96), method=method)


def lone(path: Path) -> Path:
    with path.open("wb") as file:
        np.save(file, np.zeros((3, 4, 4), np.uint8))
    return path


def doubled(path: Path) -> Path:
    written(path.parent, path.name)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("x_test.npy", b"")
    return path


def secret(path: Path) -> Path:
    written(path.parent, path.name)
    content = bytearray(path.read_bytes())
    at = content.rfind(b"PK\x01\x02", 0, content.rfind(b"x_test.npy"))
    content[at + 8] |= 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: packed(path, zipfile.ZIP_BZIP2), "packed otherwise than numpy does it"),
        (lambda path: packed(path, zipfile.ZIP_LZMA), "packed otherwise than numpy does it"),
        (lone, "not a numpy archive"),
        (doubled, "two arrays of one name"),
        (secret, "packed otherwise than numpy does it"),
    ],
)
def test_archives_that_numpy_does_not_write_are_refused(
    make: Callable[[Path], Path], what: str, tmp_path: Path
) -> None:
    assert what in refusal(task(make(tmp_path / "d.npz")))


@pytest.mark.parametrize(
    "names",
    [np.array(["a", "a"]), np.array(["a"]), np.array(3), np.array([0.5, 1]), np.array(["\ud800"])],
)
def test_class_names_in_an_archive_are_several_words_each_once(names: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, classes=names, x_test=np.zeros((2, 4, 4), np.uint8), y_test=np.arange(2))
    values = {"name": "demo", "classes": "from-data", "modality": "image"}
    with pytest.raises(InputError, match=r"demo: the classes in the data|expected names|no text"):
        Task.parse("task", {**values, "data": {"source": "npz", "path": str(path)}}).split("test")


# Images


def saved(image: Any, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


DEEP = np.array([[0, 256, 0x8000, 0xFFFF]], np.uint16)


@pytest.mark.parametrize(
    ("content", "shades"),
    [
        (saved(Image.fromarray(DEEP), "PNG"), [0, 1, 128, 255]),
        (saved(Image.fromarray(DEEP), "TIFF"), [0, 1, 128, 255]),
        (saved(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), [0, 1, 128, 255]),
        (saved(Image.new("1", (4, 1), 1), "PNG"), [255] * 4),
        (saved(Image.new("P", (4, 1)), "PNG", transparency=b"\0\1"), [0] * 4),
        (saved(Image.new("RGBA", (4, 1), (7, 7, 7, 3)), "PNG"), [7] * 4),
        (saved(Image.new("CMYK", (4, 1)), "TIFF"), [255] * 4),
        (
            saved(Image.new("L", (4, 1)), "GIF", save_all=True, append_images=[Image.new("L", (4, 1), 9)]),
            [0] * 4,
        ),
    ],
)
def test_pictures_of_every_kind_are_eight_bits_of_three_colours(
    content: bytes, shades: list[int], tmp_path: Path
) -> None:
    path = written(tmp_path, "d/train/a/0.png")
    path.write_bytes(content)
    rows = task(path).data.rows("train")
    assert rows is not None
    found = rows.inputs[0]
    assert found.dtype == np.uint8 and found[0].tolist() == [[shade] * 3 for shade in shades]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"P6 100000 100000 255\n", "decompression bomb"),
        (saved(Image.new("1", (12_000, 12_000)), "PNG"), "decompression bomb"),
        (b"P6 -1 x 255\n", "cannot be read as an image"),
        (b"P6 9 9 65536\n" + bytes(999), "cannot be read as an image"),
        (b"P5 8 8 255\n\0", "cannot be read as an image"),
        (saved(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "pixels of 32 bits"),
        (saved(Image.fromarray(np.full((2, 2), 1 << 20, np.int32)), "TIFF"), "pixels of 32 bits"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "cannot identify"),
        (b"", "cannot identify"),
    ],
)
def test_pictures_that_are_none_or_too_large_are_one_sentence(
    content: bytes, what: str, tmp_path: Path
) -> None:
    path = written(tmp_path, "d/train/a/0.png")
    path.write_bytes(content)
    tracemalloc.start()
    assert f"{path}: cannot be read as an image" in (said := refusal(task(path))) and what in said
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["²", "٣", "1e3", "-1", "1" * 200, "_", "a b", "é"])
def test_any_name_of_a_folder_is_a_label(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, "d/train/a/0.png")
    for split in ("train", "test"):
        (tmp_path / "d" / split / "b").rename(tmp_path / "d" / split / name)
    values = {"name": "demo", "classes": "from-data", "modality": "image"}
    demo = Task.parse("task", {**values, "data": task(path).data})
    if name == "_":  # no word is left
        assert "" in demo.classes
        return
    assert sorted(demo.classes) == sorted(["a", name])
    assert demo.split("test").labels.bincount().tolist() == [10, 10]


def test_hidden_files_are_left_out_and_inner_folders_belong_to_their_class(tmp_path: Path) -> None:
    path = written(tmp_path, "d/train/a/0.png")
    (path.parent / "more").mkdir()
    path.rename(path.parent / "more" / "inner.png")
    (path.parent / "._1.png").write_bytes(b"of another system")
    (path.parent / "folder.png").mkdir()
    (path.parent.parent / ".ipynb_checkpoints").mkdir()
    rows = task(path).data.rows("train")
    assert rows is not None and rows.labels == ["a"] * 10 + ["b"] * 10
    assert len(list(rows.inputs)) == 20


def test_links_of_pictures_are_followed_to_files_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "d/train/a/0.png")
    path.rename(tmp_path / "elsewhere.png")
    path.symlink_to(tmp_path / "elsewhere.png")
    read(task(path))
    for target, what in (("/dev/zero", "is a device"), ("0.png", "cannot be looked through|symbolic links")):
        path.unlink()
        path.symlink_to(target)
        with pytest.raises(InputError, match=what):
            read(task(path))


@pytest.mark.parametrize("source", ["images", "hf"])
def test_splits_without_one_for_training_are_named(source: str, tmp_path: Path) -> None:
    data = {
        "source": source,
        "splits": {"test": "test"},
        {"images": "path", "hf": "id"}[source]: str(tmp_path),
    }
    values = {"name": "demo", "classes": "from-data", "modality": "image", "data": data}
    with pytest.raises(InputError, match=r"'splits' names no .*'train'"):
        assert Task.parse("task", values).classes


# Tables


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("split,text,label,text\ntest,a,0,b\n", "the column 'text' is there twice"),
        ("split,text,label\ntest,a, b,0\n", "row 1: 4 fields, and there are 3 columns"),
        ("split,text,label\ntest,a\n", "no field 'label'"),
        ("", "the test split is empty"),
        ("\n\n", "the test split is empty"),
        ("split,text,label\n" + 'test,"' + "x\n" * 100_000, "not a table of columns"),
        ("split,text,label\ntest,a," + "9" * 5000 + "\n", "is outside the 2 classes"),
    ],
)
def test_tables_that_say_two_things_are_refused(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        task(tmp_path / "d.csv").split("test")
    assert what in str(caught.value)


def test_fields_that_end_empty_are_no_fields(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("split,text,label,,\ntest,a,0,,,\n\ntest,b,1\n")
    assert task(tmp_path / "d.csv").split("test").inputs == ["a", "b"]


@pytest.mark.parametrize("delimiter", ['"', "\n", "\r", " "])
def test_any_delimiter_is_a_table_or_one_sentence(delimiter: str, tmp_path: Path) -> None:
    path = written(tmp_path, "d.csv")
    with pytest.raises(InputError):
        task(path, delimiter=delimiter).split("test")


@pytest.mark.parametrize(
    ("column", "values", "what"),
    [
        ("text", [["a"], ["b"]], "text is a list, expected text"),
        ("text", [b"a", b"b"], "text is a bytes, expected text"),
        ("text", [None, None], "the field 'text' is empty"),
        ("label", [0.5, 1.0], "label 0.5, expected a whole number"),
        ("label", [0, 7], "label 7 is outside"),
        ("other", [1, 2], "no field 'text'"),
    ],
)
def test_columns_of_other_types_are_named(column: str, values: list[Any], what: str, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    columns = {"split": ["test"] * 2, "text": ["a", "b"], "label": [0, 1], column: values}
    if column == "other":
        del columns["text"]
    parquet.write_table(pyarrow.table(columns), tmp_path / "d.parquet")
    with pytest.raises(InputError) as caught:
        task(tmp_path / "d.parquet").split("test")
    assert what in str(caught.value)


@pytest.mark.parametrize(("many", "text"), [(40_000_000, "test"), (100_000, "x" * 10_000_000)])
def test_a_parquet_file_of_one_value_without_end_is_not_unpacked(
    many: int, text: str, tmp_path: Path
) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(many, np.int8)), [text])
    same = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(many, np.int8)), ["test"])
    numbers = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(many, np.int8)), [0])
    parquet.write_table(
        pyarrow.table({"split": same, "text": texts, "label": numbers}), tmp_path / "d.parquet"
    )
    assert (tmp_path / "d.parquet").stat().st_size < 1e6
    before = pyarrow.default_memory_pool().max_memory()
    with pytest.raises(InputError, match="in good faith"):
        task(tmp_path / "d.parquet", splits={"test": "none"}).split("test")
    assert pyarrow.default_memory_pool().max_memory() < max(before, 400e6)


def test_pictures_of_a_data_set_lie_in_its_folder(tmp_path: Path) -> None:
    from taskvec.tasks.sources.hub import Hub

    (tmp_path / "data").mkdir()
    for place in (tmp_path / "secret.png", tmp_path / "data" / "own.png"):
        Image.new("L", (2, 2)).save(place)
    hub = Hub(id="data", folder=tmp_path)
    assert hub._image({"bytes": None, "path": str(tmp_path / "data" / "own.png")}, "row 1").shape == (2, 2, 3)
    for value in ({"bytes": None, "path": str(tmp_path / "secret.png")}, {"bytes": b"x"}, None, "a.png"):
        with pytest.raises(InputError, match=r"leads out of its folder|row 1: "):
            hub._image(value, "row 1")


def test_a_data_set_folder_with_a_pipe_in_it_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.jsonl")
    data = {"source": "hf", "id": str(tmp_path), "text": "text"}
    demo = Task.parse("task", {"name": "demo", "classes": ["a", "b"], "data": data})
    with pytest.raises(InputError, match=r"train\.jsonl: is no plain file"):
        demo.split("train")
