"""Outputs that go to a bucket: complete or not a model, resumed, and without secrets in what is said."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from taskvec.edits.opening import open_recipe, save_merge, save_part
from taskvec.errors import CorruptFile, InputError, NonFinite, OutputExists, TaskvecError
from taskvec.vectors import TaskVector
from taskvec.weights import open_weights, save_weights, uploads
from taskvec.weights.parts import Part

Files = dict[str, bytes]
URL = "memory://bucket/model"


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryFileSystem]:
    """An empty store in memory."""
    monkeypatch.setattr(uploads, "_PAUSES", (0.0, 0.0, 0.0))
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()


def there(fs: MemoryFileSystem, root: str = "/bucket/model") -> Files:
    return {path.removeprefix(root).strip("/"): fs.cat_file(path) for path in fs.find(root)}


def here(folder: Path) -> Files:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A base, a model made of it, a vector, and a recipe."""
    shapes = {f"model.layers.{i}.mlp.weight": (60, 200) for i in range(5)} | {"model.norm.weight": (7,)}
    draw = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    for step, name in enumerate(("base", "a")):
        state = {
            key: value + 0.1 * step * torch.randn(value.shape, generator=draw) for key, value in base.items()
        }
        save_weights(state, tmp_path / name)
        (tmp_path / name / "config.json").write_text('{"num_hidden_layers": 5}')
    (tmp_path / "recipe.yaml").write_text("base: base\nmodels: {a: a}\nscale: 0.5\n")
    return tmp_path


def merge(place: Path, target: str | Path, shard: float, **options: object) -> None:
    made = replace(open_recipe(place / "recipe.yaml"), max_shard_size=shard)
    save_merge(made, target, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shard", [5e4, 1e5, 5e9])
def test_what_is_there_is_what_a_disk_would_have(shard: float, place: Path, store: MemoryFileSystem) -> None:
    merge(place, place / "one" / "model", shard)
    merge(place, URL, shard)
    assert there(store) == here(place / "one" / "model")
    assert open_weights(URL).fingerprint() == open_weights(place / "one" / "model").fingerprint()


def test_one_file(place: Path, store: MemoryFileSystem) -> None:
    url = "memory://bucket/deep/m.safetensors"
    merge(place, url, 1e9)
    merge(place, place / "m.safetensors", 1e9)
    assert there(store, "/bucket/deep") == {"m.safetensors": (place / "m.safetensors").read_bytes()}
    with pytest.raises(OutputExists, match="exists already; --force"):
        merge(place, url, 1e9)
    merge(place, url, 1e9, force=True)


def test_vectors(place: Path, store: MemoryFileSystem) -> None:
    vector = TaskVector.between(place / "base", place / "a")
    vector.save("memory://bucket/v", max_shard_size=5e4)
    vector.save(place / "v", max_shard_size=5e4)
    assert there(store, "/bucket/v") == here(place / "v")
    vector.save("memory://bucket/v.safetensors", form="int8")
    vector.save(place / "v.safetensors", form="int8")
    assert store.cat_file("/bucket/v.safetensors") == (place / "v.safetensors").read_bytes()


def test_file_urls_are_paths(place: Path) -> None:
    merge(place, (place / "in a folder" / "model").as_uri(), 1e5)
    merge(place, place / "one" / "model", 1e5)
    assert here(place / "in a folder" / "model") == here(place / "one" / "model")


class Dies(BaseException):
    """The end of the process, as far as the store can tell."""


@pytest.mark.parametrize("number", range(1, 14))
@pytest.mark.parametrize("shard", [5e4, 5e9])
def test_an_end_at_any_moment_leaves_no_model_and_is_gone_on_with(
    shard: float, number: int, place: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(place, place / "one" / "model", shard)
    expected, seen = here(place / "one" / "model"), 0
    put, remove = uploads.Store.put, uploads.Store.remove

    def puts(self: uploads.Store, file: Path, name: str) -> None:
        nonlocal seen
        seen += 1
        if seen >= number:
            raise Dies
        put(self, file, name)

    monkeypatch.setattr(uploads.Store, "put", puts)
    monkeypatch.setattr(uploads.Store, "remove", lambda self, name: None)
    try:
        merge(place, URL, shard)
    except Dies:
        assert "taskvec.json" not in there(store) and "model.safetensors.index.json" not in (
            {} if seen > 11 else there(store)
        )
        if "model.safetensors" in there(store):  # it is whole then
            assert there(store)["model.safetensors"] == expected["model.safetensors"]
    monkeypatch.setattr(uploads.Store, "put", put)
    monkeypatch.setattr(uploads.Store, "remove", remove)
    resume = Random(number).random() < 0.7
    if "taskvec.json" in there(store):
        return
    merge(place, URL, shard, resume=resume)
    assert there(store) == expected


def test_finished_shards_are_not_sent_again_unless_they_changed(
    place: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(place, place / "one" / "model", 5e4)

    def stop(label: str, done: int, total: int, **facts: float) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="finished shards are there, --resume"):
        merge(place, URL, 5e4, watch=stop)
    finished = [name for name in sorted(there(store)) if name.endswith(".safetensors")]
    assert len(finished) == 3
    with pytest.raises(InputError):
        open_weights(URL)
    store.pipe_file(f"/bucket/model/{finished[1]}", b"other")
    sent, put = [], uploads.Store.put

    def puts(self: uploads.Store, file: Path, name: str) -> None:
        sent.append(name)
        put(self, file, name)

    monkeypatch.setattr(uploads.Store, "put", puts)
    merge(place, URL, 5e4, resume=True)
    assert finished[0] not in sent and finished[2] not in sent and finished[1] in sent
    assert there(store) == here(place / "one" / "model")


def test_another_recipe_takes_nothing_over(place: Path, store: MemoryFileSystem) -> None:
    def stop(label: str, done: int, total: int, **facts: float) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(place, URL, 5e4, watch=stop)
    (place / "recipe.yaml").write_text("base: base\nmodels: {a: a}\nscale: 0.7\n")
    merge(place, URL, 1e5, resume=True)
    merge(place, place / "one" / "model", 1e5)
    assert there(store) == here(place / "one" / "model")


def test_what_others_wrote_is_left_alone(place: Path, store: MemoryFileSystem) -> None:
    store.pipe_file("/bucket/model/thesis.txt", b"text")
    for force in (False, True):
        with pytest.raises(OutputExists, match=r"holds 'thesis.txt', but no taskvec.json"):
            merge(place, URL, 1e5, force=force)
    assert there(store) == {"thesis.txt": b"text"}


def test_a_file_is_no_folder_to_be(place: Path, store: MemoryFileSystem) -> None:
    store.pipe_file("/bucket/model", b"text")
    with pytest.raises(OutputExists, match="is a file; choose another output"):
        merge(place, URL, 1e5, force=True)
    assert store.cat_file("/bucket/model") == b"text"


def test_force_replaces_what_taskvec_wrote(place: Path, store: MemoryFileSystem) -> None:
    merge(place, URL, 5e4)
    with pytest.raises(OutputExists, match="exists already; --force"):
        merge(place, URL, 5e9)
    merge(place, URL, 5e9, force=True)
    merge(place, place / "one" / "model", 5e9)
    assert there(store) == here(place / "one" / "model"), "files of the old one are left"


def test_a_manifest_leads_nowhere_else(place: Path, store: MemoryFileSystem) -> None:
    merge(place, URL, 5e9)
    store.pipe_file("/bucket/thesis.txt", b"text")
    manifest = json.loads(store.cat_file("/bucket/model/taskvec.json"))
    manifest["files"] += ["../thesis.txt", "/bucket/thesis.txt", 3, ""]
    store.pipe_file("/bucket/model/taskvec.json", json.dumps(manifest).encode())
    merge(place, URL, 5e9, force=True)
    assert store.cat_file("/bucket/thesis.txt") == b"text"


def test_an_input_is_never_the_output(place: Path, store: MemoryFileSystem) -> None:
    save_weights(open_weights(place / "base"), "memory://bucket/base", like=open_weights(place / "base"))
    before = there(store, "/bucket")
    made = replace(open_recipe(place / "recipe.yaml"), inputs={"base": open_weights("memory://bucket/base")})
    for target in ("memory://bucket/base", "memory://bucket/base/x", "memory://bucket/base/m.safetensors"):
        with pytest.raises(OutputExists, match="lies inside the input"):
            save_merge(made, target, force=True)
    assert there(store, "/bucket") == before


class Flaky:
    """A store whose first answers to everything fail."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.left, self.error = failures, error

    def __call__(self, put: object) -> object:
        def puts(fs: MemoryFileSystem, *args: object, **more: object) -> object:
            self.left -= 1
            if self.left >= 0:
                raise self.error
            return put(fs, *args, **more)  # type: ignore[operator]

        return puts


SECRET = OSError("cannot reach https://me:hunter2@host/bucket?X-Signature=hunter2 now")


def test_a_connection_that_breaks_is_tried_again(
    place: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("put_file", "ls", "info", "rm_file"):
        monkeypatch.setattr(MemoryFileSystem, method, Flaky(2, SECRET)(getattr(MemoryFileSystem, method)))
    merge(place, URL, 1e5)
    merge(place, place / "one" / "model", 1e5)
    assert there(store) == here(place / "one" / "model")


def test_one_that_stays_broken_is_said_without_secrets(
    place: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = MemoryFileSystem.put_file
    monkeypatch.setattr(MemoryFileSystem, "put_file", Flaky(99, SECRET)(put))
    with pytest.raises(TaskvecError, match=r"could not be written .*, 4 times") as failed:
        merge(place, "memory://bucket/model?key=hunter2", 1e5)
    assert "hunter2" not in str(failed.value) and str(failed.value).startswith("memory://bucket/model: ")
    monkeypatch.setattr(MemoryFileSystem, "put_file", Flaky(1, PermissionError("no"))(put))
    with pytest.raises(TaskvecError, match=r"could not be written \(no\)"):
        merge(place, URL, 1e5)
    assert there(store) == {}


def test_nothing_stays_of_what_would_fail_again(place: Path, store: MemoryFileSystem) -> None:
    state = {**open_weights(place / "a"), "model.layers.4.mlp.weight": torch.full((60, 200), torch.inf)}
    save_weights(state, place / "a", force=True, allow_nonfinite=True)
    (place / "a" / "config.json").write_text('{"num_hidden_layers": 5}')
    with pytest.raises(NonFinite, match="12000 values that are NaN or infinite; nothing was written"):
        merge(place, URL, 5e4)
    assert there(store) == {}


def test_inputs_that_change_meanwhile_are_noticed(place: Path, store: MemoryFileSystem) -> None:
    def change(label: str, done: int, total: int, **facts: float) -> None:
        (place / "a" / "model.safetensors").touch()

    with pytest.raises(CorruptFile, match="was written to while it was read"):
        merge(place, URL, 5e4, watch=change)
    assert there(store) == {}


def test_what_cannot_go_there_is_refused(place: Path) -> None:
    made = open_recipe(place / "recipe.yaml")
    with pytest.raises(InputError, match="where parts cannot know of each other"):
        save_part(made, URL, Part(1, 2))
    with pytest.raises(InputError, match="nobody knows the protocol bogus"):
        save_merge(made, "bogus://me:hunter2@x/y")
    with pytest.raises(InputError, match="a place inside another one"):
        save_merge(made, "simplecache::memory://x")
    with pytest.raises(InputError, match=r"ends in \.gguf"):
        save_merge(made, "memory://bucket/m.gguf")


def test_commands_write_to_a_bucket(place: Path) -> None:
    script = f"""
import sys, fsspec
from taskvec.cli import main
def run(*words):
    try:
        main([*words])
    except SystemExit as ended:
        return ended.code
    return 0
assert run("merge", "recipe.yaml", "-o", "{URL}", "-q", "--json") == 0
assert run("merge", "recipe.yaml", "-o", "{URL}", "-q", "--dry-run") == 0
assert run("merge", "recipe.yaml", "-o", "{URL}", "-q") == 2
assert run("diff", "base", "{URL}", "-o", "memory://bucket/v.safetensors", "-q") == 0
assert run("diff", "base", "{URL}", "-o", "v.safetensors", "-q") == 0
assert run("apply", "base", "-v", "v=v.safetensors", "-o", "memory://bucket/w", "-q") == 0
assert run("inspect", "memory://bucket/w") == 0
assert run("compress", "v.safetensors", "--form", "bf16", "-o", "memory://bucket/c", "-q") == 0
assert run("mask", "-v", "v=v.safetensors", "-o", "memory://bucket/m", "-q") == 2
assert fsspec.filesystem("memory").exists("/bucket/w/taskvec.json")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=place, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [path for path in place.iterdir() if ":" in path.name]


def test_a_place_that_cannot_be_written_is_found_before_work(
    place: Path, store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watch(label: str, done: int, total: int, **facts: float) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(
        MemoryFileSystem, "put_file", Flaky(99, PermissionError("no"))(MemoryFileSystem.put_file)
    )
    with pytest.raises(TaskvecError, match=r"could not be written \(no\)"):
        merge(place, URL, 1e5, watch=watch)


def test_what_was_there_stays_until_the_first_shard_is_made(place: Path, store: MemoryFileSystem) -> None:
    merge(place, URL, 5e4)
    before = there(store)

    def stop(label: str, done: int, total: int, **facts: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(place, URL, 5e4, force=True, watch=stop)
    assert there(store) == before


@pytest.mark.parametrize("shard", ["5e-5", "1"])
def test_a_command_that_is_killed_goes_on_in_a_bucket(shard: str, place: Path) -> None:
    merge(place, place / "one" / "m", float(shard) * 1e9)
    s3fs = pytest.importorskip("s3fs")
    with pytest.importorskip("buckets").bucket(name := f"killed-{shard}") as url:
        command = [
            sys.executable,
            "-m",
            "taskvec",
            "merge",
            str(place / "recipe.yaml"),
            "-o",
            f"{url}/m",
            "-q",
        ]
        command += ["--max-shard-gb", shard]
        fs = s3fs.S3FileSystem(anon=False)
        process = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            fs.invalidate_cache()
            if fs.exists(f"{name}/m/taskvec-journal.json"):
                process.kill()
        process.wait()
        done = subprocess.run([*command, "--resume"], cwd=place, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "exists already" in done.stderr, done.stderr
        fs.invalidate_cache()
        found = {path.removeprefix(f"{name}/m/"): fs.cat_file(path) for path in fs.find(f"{name}/m")}
        assert found == here(place / "one" / "m")
