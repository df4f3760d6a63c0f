"""Files are hostile: what is read from disk fails in one sentence, and leads nowhere."""

import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskvec.errors import CorruptFile, InputError
from taskvec.reading import check_inside, inside, local_path, parse_json, printable, read_json, read_mapping

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(JSON)
def test_json_comes_back_as_it_was(content: object) -> None:
    assert parse_json(json.dumps(content), "here") == content


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[" * 50_000, "nested deeper than 100"),
        ("[" * 101 + "]" * 101, "nested deeper than 100"),
        ('{"a": 1, "b": 2, "a": 3}', "the name 'a' is given twice"),
        (r'{"a": ["\ud800"]}', "half a character"),
        (r'{"\udfff": 1}', "half a character"),
        ("9" * 6000, "not valid JSON"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_what_is_no_json_is_one_sentence(text: str, what: str) -> None:
    with pytest.raises(CorruptFile, match=f"^index: .*{what}"):
        parse_json(text, "index")


def test_pairs_of_surrogates_and_a_hundred_levels_are_json() -> None:
    assert parse_json(r'"\ud83d\ude00"', "here") == "\N{GRINNING FACE}"
    assert parse_json("[" * 100 + "]" * 100, "here")


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path, kind in {
            "pipe": "a pipe",
            "socket": "a socket",
            ".": "a folder",
            "/dev/zero": "a device",
        }.items():
            with pytest.raises(InputError, match=f"is {kind}, expected a file"):
                read_json(tmp_path / path)


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b'"\xe9"')
    (tmp_path / "list").write_text("[1]")
    (tmp_path / "loop").symlink_to("loop")
    for name, what in {
        "absent": "no such file",
        "x" * 300: "too long",
        "loop": "symbolic links",
        "a\0b": "zero byte",
    }.items():
        with pytest.raises(InputError, match=what):
            read_json(tmp_path / name)
    with pytest.raises(CorruptFile, match=r"cannot be read as text in UTF-8 \(byte 1"):
        read_json(tmp_path / "latin")
    with pytest.raises(CorruptFile, match="holds a list, expected a mapping"):
        read_mapping(tmp_path / "list")
    with pytest.raises(InputError, match="holds more than"):
        read_json(tmp_path / "list", limit=2)


@pytest.mark.parametrize(
    "name", ["..", "../x", "a/../../x", "/etc/passwd", "", "a\0b", None, 3, ["x"], "away", "sub/away"]
)
def test_no_name_in_a_file_leads_out_of_its_folder(name: object, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (folder / "away").symlink_to("../secret")
    (folder / "sub" / "away").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=r"^index\.json: |leads out of its folder"):
        inside(folder, name, "index.json")


def test_names_and_links_within_a_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    assert inside(tmp_path, "link", "index.json").read_text() == "x"
    assert inside(tmp_path, "not/yet/there", "index.json") == tmp_path / "not/yet/there"


def test_links_of_a_hub_cache_lead_to_its_own_blobs_alone(tmp_path: Path) -> None:
    for name in ("models--a--b", "models--other--c"):
        (tmp_path / name / "blobs").mkdir(parents=True)
        (tmp_path / name / "blobs" / "0123").write_text("x")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    (snapshot / "text").mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/0123")
    (snapshot / "text" / "config.json").symlink_to("../../../blobs/0123")
    (snapshot / "foreign").symlink_to("../../../models--other--c/blobs/0123")
    assert inside(snapshot, "config.json", "x").read_text() == "x"
    assert inside(snapshot / "text", "config.json", "x").read_text() == "x"
    with pytest.raises(InputError, match="leads out of its folder"):
        check_inside(snapshot / "foreign", snapshot)


@given(st.text())
def test_nothing_printed_steers_a_terminal(text: str) -> None:
    shown = printable(text)
    assert not any((ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 for c in shown)
    assert shown == text or not text.isprintable()
    shown.encode()


def test_an_unknown_home_is_one_sentence() -> None:
    with pytest.raises(InputError, match="~nosuchuser/x: no such user"):
        local_path("~nosuchuser/x")
