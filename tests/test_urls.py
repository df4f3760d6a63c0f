"""URLs: told from paths, opened through fsspec, never printed with what is secret in them."""

from pathlib import Path

import pytest

from taskvec.errors import InputError, MissingExtra
from taskvec.urls import check_takes_files, is_url, open_filesystem, protocol_of, said, without_secrets

SECRETS = ("hunter2", "AKIA", "sig")


@pytest.mark.parametrize("text", ["s3://b/x", "https://h/x.safetensors", "memory://x", "hf://org/name@rev"])
def test_urls_are_urls(text: str) -> None:
    assert is_url(text) and protocol_of(text) == text.split(":")[0]


@pytest.mark.parametrize("text", ["org/name@rev", "s3:/b/x", "/tmp/x", "C:\\model", "://x", "s3://", "", 3])
def test_paths_and_ids_are_none(text: object) -> None:
    assert not is_url(text)


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("s3://AKIA:hunter2@bucket/model", "s3://bucket/model"),
        ("https://me:hunter2@host:8080/a@b/x?X-Amz-Signature=sig#sig", "https://host:8080/a@b/x"),
        ("https://a@b:hunter2@host/x", "https://host/x"),
        ("hf://org/name@v1/sub", "hf://org/name@v1/sub"),
        ("https://[hunter2/x", "https://…"),
        ("a path", "a path"),
    ],
)
def test_no_secret_is_said(url: str, printed: str) -> None:
    assert said(url) == printed


@pytest.mark.parametrize(
    "url", ["simplecache::s3://AKIA:hunter2@b/x", "zip://x::file:///tmp/x.zip", "reference://x", "tar://x"]
)
def test_places_inside_others_are_refused(url: str) -> None:
    with pytest.raises(InputError) as caught:
        open_filesystem(url)
    assert not any(secret in str(caught.value) for secret in SECRETS)


def test_unknown_protocols_and_missing_packages_are_said() -> None:
    with pytest.raises(InputError, match=r"bogus://h/x: nobody knows the protocol bogus://"):
        open_filesystem("bogus://me:hunter2@h/x?sig")
    with pytest.raises(MissingExtra, match=r"gs://b/x: .*gcsfs"):
        open_filesystem("gs://b/x")


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "with space").write_text("here")
    fs, place = open_filesystem((tmp_path / "with space").as_uri())
    assert fs.cat_file(place) == b"here"


def test_memory_is_shared_in_a_process() -> None:
    fs, place = open_filesystem("memory://test_urls/x")
    fs.pipe_file(place, b"here")
    try:
        assert open_filesystem("MEMORY://test_urls/x")[0].cat_file(place) == b"here"
    finally:
        fs.rm(place)


@pytest.mark.parametrize(
    ("text", "public"),
    [
        (
            "no model called 'https://me:hush@host/x?sig=1'; known: a",
            "no model called 'https://host/x'; known: a",
        ),
        (
            "/r.yaml: base: /home/http:/me:hush@host/x?key=1: no such file",
            "/r.yaml: base: /home/http:/host/x: no such file",
        ),
        ("s3://key:p@ss@bucket/m?versionId=2, and more", "s3://bucket/m, and more"),
        ("hf://org/name@v1 and hf://name@main", "hf://org/name@v1 and hf://name@main"),
        (
            "https://host/a; was it fine-tuned from https://host/b?",
            "https://host/a; was it fine-tuned from https://host/b?",
        ),
        ("C:/me@home?x, me@host.org, a://b", "C:/me@home?x, me@host.org, a://b"),
    ],
)
def test_no_message_repeats_a_secret(text: str, public: str) -> None:
    assert str(InputError(text)) == public


def test_names_that_are_urls_are_stored_without_secrets() -> None:
    assert without_secrets({"s3://me:hush@b/m": [1]}) == {"s3://b/m": [1]}


def test_what_is_stored_says_which_vector_of_a_file_was_taken() -> None:
    stored = without_secrets(["hf://me/masked@v1#sst2", "https://me:hush@h/m.safetensors?key=1#a-b"])
    assert stored == ["hf://me/masked@v1#sst2", "https://h/m.safetensors#a-b"]


@pytest.mark.parametrize("mark", "#?/")
def test_a_password_that_is_not_escaped_is_not_told_either(mark: str) -> None:
    url = f"https://me:hunter{mark}2@host/model"
    assert "hunter" not in said(url) and "hunter" not in str(without_secrets(url))


@pytest.mark.parametrize(
    ("url", "protocol"), [("http://[::1]:80/m", "http"), ("http://me@[fe80::1]/m", "http")]
)
def test_an_address_with_colons_chains_nothing(url: str, protocol: str) -> None:
    assert protocol_of(url) == protocol


@pytest.mark.parametrize(
    ("url", "remedy"), [("hf://me/merged", "taskvec push"), ("https://me:hush@host/m", "bucket")]
)
def test_what_takes_no_files_is_refused_before_work(url: str, remedy: str) -> None:
    with pytest.raises(InputError, match=remedy) as caught:
        check_takes_files(url)
    assert "hush" not in str(caught.value)
