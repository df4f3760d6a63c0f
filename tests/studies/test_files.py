"""Files of a run under a URL: whole or not there, checked when they come back."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from buckets import KEYS, bucket
from taskvec.errors import CorruptFile, DiskFull, InputError, TaskvecError
from taskvec.studies import storage as storages
from taskvec.studies.files import Here
from taskvec.studies.storage import Stored, checked_storage

VECTOR = Path("vectors/seed0/full/pets-0123.safetensors")


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with bucket() as url:
        yield url


@pytest.fixture(params=["memory", "file", "path", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name = token_hex(4)
    match request.param:
        case "memory":
            return f"memory://{name}/run"
        case "file":
            return (tmp_path / "a shared" / "disk").as_uri()
        case "path":
            return str(tmp_path / "nfs")
        case _:
            found: str = request.getfixturevalue("store")
            return f"{found}/{name}"


def made(folder: Path, name: Path | str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_what_one_worker_made_another_reads(tmp_path: Path, url: str) -> None:
    one, two = Stored(tmp_path / "one", url), Stored(tmp_path / "two", url)
    content = os.urandom(5_000_000)
    made(one.folder, VECTOR, content)
    made(one.folder, "logs/seed0/full/pets.jsonl", b'{"step": 1}\n')
    made(one.folder, "partial/pets.pt", b"half done")
    made(one.folder, "statistics/.pets.partial", b"half done")
    made(one.folder, "records.jsonl", b"the driver's")
    assert not two.fetch(two.folder / VECTOR)
    one.publish()
    assert two.fetch(two.folder / VECTOR) and (two.folder / VECTOR).read_bytes() == content
    two.bring("logs", "statistics", "inspected")
    there = sorted(str(path.relative_to(two.folder)) for path in two.folder.rglob("*") if path.is_file())
    assert there == ["logs/seed0/full/pets.jsonl", str(VECTOR)]


def test_a_file_is_uploaded_once_and_again_when_it_changed(tmp_path: Path, url: str) -> None:
    one = Stored(tmp_path / "one", url)
    made(one.folder, "outputs/a.safetensors", b"first")
    one.publish()
    uploads = []
    one._upload = lambda path, name: uploads.append(name)  # type: ignore[method-assign]
    one.publish()
    assert not uploads
    made(one.folder, "outputs/a.safetensors", b"second")
    one.publish()
    assert uploads == ["outputs/a.safetensors"]


@pytest.mark.parametrize(
    "spoiled", [b"", b"short", b"another of same size", b"one that is longer than it was"]
)
def test_what_was_changed_there_is_refused(
    tmp_path: Path, url: str, spoiled: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storages, "_PAUSES", (0.0,))
    one, two = Stored(tmp_path / "one", url), Stored(tmp_path / "two", url)
    made(one.folder, VECTOR, b"what a worker wrote.")
    one.publish()
    one._fs.pipe_file(f"{one._root}/{VECTOR}", spoiled)
    with pytest.raises(CorruptFile, match=r"pets-0123\.safetensors: is not what a run wrote there"):
        two.fetch(two.folder / VECTOR)
    assert not (two.folder / VECTOR).exists()


@pytest.mark.parametrize("check", [b"", b"[]", b'{"size": "1", "digest": 2}', b"\xff"])
def test_a_spoiled_check_is_refused(tmp_path: Path, url: str, check: bytes) -> None:
    one, two = Stored(tmp_path / "one", url), Stored(tmp_path / "two", url)
    made(one.folder, VECTOR, b"content")
    one.publish()
    one._fs.pipe_file(f"{one._root}/{VECTOR}.check", check)
    with pytest.raises(CorruptFile, match=r"safetensors\.check: "):
        two.fetch(two.folder / VECTOR)


def test_half_a_file_is_nobody_s(tmp_path: Path, url: str) -> None:
    """A worker that dies while it uploads leaves something without a check, or without its name."""
    one, two = Stored(tmp_path / "one", url), Stored(tmp_path / "two", url)
    one._fs.makedirs(f"{one._root}/vectors/seed0/full", exist_ok=True)
    one._fs.pipe_file(f"{one._root}/{VECTOR}", b"half")
    two.bring("vectors")
    assert not two.fetch(two.folder / VECTOR)
    made(one.folder, VECTOR, b"whole")
    one.publish()
    assert two.fetch(two.folder / VECTOR) and (two.folder / VECTOR).read_bytes() == b"whole"


def test_names_that_lead_elsewhere_are_left_alone(tmp_path: Path) -> None:
    one = Stored(tmp_path / "one", f"memory://{token_hex(4)}")
    one._looked = lambda *_, **__: [  # type: ignore[method-assign]
        f"{one._root}/logs/{name}.check" for name in ("../../evil", "/etc/passwd", ".hidden", "a/../b", "")
    ]
    assert one._listed("logs") == []


def test_marks_are_seen_by_those_who_see_the_place(tmp_path: Path, url: str) -> None:
    one, two = Stored(tmp_path / "one", url), Stored(tmp_path / "two", url)
    other = Here(tmp_path / "three")
    other.folder.mkdir()
    for each, name in ((one, "a"), (two, "b"), (other, "c")):
        each.probe(name)
    assert one.probes() == two.probes() == {"a", "b"} and other.probes() == {"c"}
    one.unprobe("a")
    other.unprobe("c")
    assert two.probes() == {"b"} and other.probes() == set()


class _Flaky(MemoryFileSystem):  # type: ignore[misc]
    """Fails so many times before it works."""

    protocol = "flaky"
    cachable = False
    failures = 0

    def pipe_file(self, path: str, value: bytes, **kwargs: object) -> None:
        if _Flaky.failures > 0:
            _Flaky.failures -= 1
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        super().pipe_file(path, value, mode="overwrite")


@pytest.mark.parametrize(("failures", "survives"), [(1, True), (3, True), (4, False)])
def test_requests_are_tried_again(
    tmp_path: Path, failures: int, survives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    fsspec.register_implementation("flaky", _Flaky, clobber=True)
    monkeypatch.setattr(storages, "_PAUSES", (0.0, 0.0, 0.0))
    one = Stored(tmp_path / "one", f"flaky://me:secret@{token_hex(4)}/run?token=hidden")
    made(one.folder, VECTOR, b"content")
    _Flaky.failures = failures
    if survives:
        one.publish()
        return
    with pytest.raises(TaskvecError, match="could not be written") as caught:
        one.publish()
    assert "secret" not in str(caught.value) and "hidden" not in str(caught.value)
    _Flaky.failures = 0
    one.publish()  # what failed is not taken for done


def test_a_full_disk_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    one = Stored(tmp_path / "one", str(tmp_path / "disk"))
    made(one.folder, VECTOR, b"content")
    monkeypatch.setattr(LocalFileSystem, "put_file", full)
    with pytest.raises(DiskFull, match="no space left on device, here or there; free some space"):
        one.publish()


def test_a_bucket_that_is_not_there_is_said(tmp_path: Path, store: str) -> None:
    with pytest.raises(
        TaskvecError,
        match=r"s3://no-such-bucket/run: nothing can be written \(there is no such bucket or folder\);",
    ) as caught:
        Stored(tmp_path, "s3://no-such-bucket/run").probe("a")
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


@pytest.mark.parametrize("storage", ["", "  ", "nothing://x", "zip://a::s3://b", "a\0b"])
def test_what_is_no_place_is_refused(tmp_path: Path, storage: str) -> None:
    with pytest.raises(InputError):
        Stored(tmp_path, storage)


def test_a_path_is_a_storage_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked_storage("with space/x") == (tmp_path / "with space" / "x").as_uri()
    assert checked_storage("s3://bucket/run") == "s3://bucket/run"
