"""The source of plain texts: files, splits by position, separators."""

from pathlib import Path
from typing import Any

import pytest

from taskvec.errors import InputError
from taskvec.tasks.source import SplitName
from taskvec.tasks.sources.texts import Text


def source(folder: Path, text: str | bytes = "", **options: Any) -> Text:
    content = text.encode() if isinstance(text, str) else text
    (folder / "a.txt").write_bytes(content)
    options = options if "files" in options else {"path": "a.txt", **options}
    return Text.parse("data", {"source": "text", "folder": folder, **options})


def texts(of: Text, split: SplitName) -> list[str]:
    rows = of.rows(split)
    assert rows is not None
    return list(rows.inputs)


def test_a_file_is_one_text_and_all_of_it_is_tested(tmp_path: Path) -> None:
    of = source(tmp_path, "0123456789\n" * 10)
    assert texts(of, "test") == ["0123456789\n" * 10]
    assert texts(of, "train") + texts(of, "validation") == [("0123456789\n" * 10)[:99], "0123456789\n"]


def test_shares_divide_a_text_by_position(tmp_path: Path) -> None:
    of = source(tmp_path, "aaaaaaaaébbcc", splits={"train": 8 / 13, "validation": 3 / 13, "test": 2 / 13})
    parts = {"train": "aaaaaaaa", "validation": "ébb", "test": "cc"}
    assert {split: texts(of, split) for split in parts} == {split: [part] for split, part in parts.items()}  # type: ignore[arg-type]


def test_the_order_in_which_shares_are_named_does_not_matter(tmp_path: Path) -> None:
    shares = {"train": 0.5, "test": 0.5}
    one, other = (source(tmp_path, "aabb", splits=dict(s)) for s in (shares.items(), [*shares.items()][::-1]))
    assert texts(one, "test") == texts(other, "test") == ["bb"]


def test_a_separator_divides_texts_and_shares_whole_texts(tmp_path: Path) -> None:
    of = source(tmp_path, "a\n\nb\n \nc\nd\n", separator="\n", splits={"train": 0.5, "test": 0.5})
    assert texts(of, "test") == ["c", "d"]
    assert texts(of, "train") == ["a", "b"][: len(texts(of, "train"))]


def test_ten_texts_lend_one_to_validation(tmp_path: Path) -> None:
    of = source(tmp_path, "|".join(f"text {n}" for n in range(10)), separator="|")
    assert texts(of, "validation") == ["text 9"] and len(texts(of, "train")) == 9


def test_a_file_for_each_split(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("the other")
    of = source(tmp_path, "0123456789", files={"train": "a.txt", "test": "b.txt"})
    assert texts(of, "test") == ["the other"]
    assert texts(of, "train") == ["012345678"] and texts(of, "validation") == ["9"]
    alone = source(tmp_path, "0123456789", files={"train": "a.txt", "validation": "b.txt"})
    assert texts(alone, "train") == ["0123456789"] and alone.rows("test") is None


def test_a_message_names_the_text(tmp_path: Path) -> None:
    rows = source(tmp_path, "a\nb", separator="\n").rows("test")
    assert rows is not None and rows.where(1) == f"{tmp_path}/a.txt, test text 2"


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    first, again = source(tmp_path, "one").digest(), source(tmp_path, "one").digest()
    assert first == again != source(tmp_path, "two").digest()


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "a.txt: holds no text"),
        (" \n ", {"separator": "\n"}, "a.txt: holds no text"),
        (b"caf\xe9", {}, "a.txt: cannot be read as text in UTF-8"),
        (b"\x00\xff\xfe", {}, "UTF-8"),
        ("a", {"path": "b.txt"}, "b.txt: no such file"),
        ("a", {"path": "."}, "is no file, expected a text file"),
        ("a", {"files": {}, "path": None}, "either 'path'"),
        ("a", {"separator": ""}, "separator: "),
        (
            "a",
            {"splits": {"train": 0.9, "test": 0.2}},
            "splits: the shares add up to 1.1, expected 1 at most",
        ),
        ("a", {"splits": {"train": 0}}, "splits.train: "),
        ("a", {"splits": {"dev": 0.5}}, "splits.dev"),
        ("a", {"files": {"train": "a.txt"}, "path": None, "splits": {"train": 1.0}}, "splits: divides"),
    ],
)
def test_bad_texts_and_options_are_one_line(
    text: str | bytes, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        source(tmp_path, text, **options).rows("test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("separator", ["\n\n", "\r\n\r\n", "\r\r"])
def test_lines_of_the_separator_end_as_those_of_the_text(separator: str, tmp_path: Path) -> None:
    assert texts(source(tmp_path, b"a\r\n\r\nb\r\nc", separator=separator), "test") == ["a", "b\nc"]
