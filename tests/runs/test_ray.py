"""An experiment on a Ray cluster of two nodes: the results of one process, whatever happens to workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

import taskvec
from buckets import bucket
from clusters import Cluster, cluster

pytest.importorskip("ray")

EXPERIMENT = """
experiment: tiny
model: {model}
suite: {suite}
training: {{lr: 2e-3, steps: 6, batch_size: 16, weight_decay: 0.01}}
regimes: {{full: {{}}}}
search: {{step: 0.25, coarse: 2, limit: 1.5}}
addition: {{subsets: pairs}}
inspect: true
"""


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    with bucket() as url:
        yield url


@pytest.fixture(scope="module")
def nodes(storage: str) -> Iterator[Cluster]:
    """The nodes know the keys of the bucket from their environment."""
    with cluster(2) as found:
        yield found


@pytest.fixture(scope="module")
def experiment(tiny_model: Path, tiny_suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "tiny.yaml"
    path.write_text(EXPERIMENT.format(model=tiny_model, suite=tiny_suite))
    return path


@pytest.fixture(scope="module")
def plain(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    done = run(experiment, folder)
    assert done.returncode == 0, done.stderr
    return folder


def command(experiment: Path, folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "taskvec", "run", str(experiment), "-o", str(folder), *options]


def run(
    experiment: Path, folder: Path, *options: str, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(experiment, folder, *options),
        env={**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def results(folder: Path) -> dict[str, object]:
    records = map(json.loads, (folder / "records.jsonl").read_text().splitlines())
    return {record["key"]: without_seconds(record["result"]) for record in records}


def without_seconds(result: object) -> object:
    if isinstance(result, dict):
        return {key: without_seconds(value) for key, value in result.items() if "seconds" not in key}
    if isinstance(result, list):
        return [without_seconds(value) for value in result]
    return result


def tables(folder: Path) -> object:
    return without_seconds(json.loads((folder / "results.json").read_text()))


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern)}


def assert_same(one: Path, other: Path) -> None:
    assert results(one) == results(other)
    assert files(one, "inspected/*") == files(other, "inspected/*")
    assert tables(one) == tables(other)


def test_workers_and_drivers_that_are_killed_lose_nothing_and_files_lie_in_the_bucket(
    nodes: Cluster, experiment: Path, plain: Path, tmp_path: Path, storage: str
) -> None:
    import s3fs

    folder, url = tmp_path / "run", f"{storage}/killed"
    options = ("--ray", nodes.address, "--storage", url)
    with at_work(experiment, folder, *options) as (process, _):
        wait_for_records(process, folder, 1)
    ends = time.monotonic() + 200
    while nodes.workers():  # they end with their driver
        assert time.monotonic() < ends
        time.sleep(0.1)
    before = len(results(folder))
    with at_work(experiment, folder, *options) as (process, said):
        wait_for_records(process, folder, before + 1)
        os.kill(nodes.workers()[0], signal.SIGKILL)
        assert process.wait(300) == 0, said.read_text()
        told = said.read_text()
    assert len((folder / "records.jsonl").read_text().splitlines()) == len(results(plain))
    assert f"Ray: 2 workers on the cluster at {nodes.address} of 2 nodes\n" in told
    assert "computed again, 1 of 3 times" in told
    assert not [line for line in told.splitlines() if "ray" in line.lower() and "Ray: " not in line]
    assert_same(folder, plain)
    there = s3fs.S3FileSystem()
    for name, content in files(plain, "vectors/**/*.safetensors").items():
        assert there.cat_file(f"{url}/{name}") == content
    # Another driver finds all of it, with nothing left but the records.
    again = tmp_path / "again"
    again.mkdir()
    shutil.copy(folder / "records.jsonl", again)
    done = run(experiment, again, "--storage", url)
    assert done.returncode == 0 and "results in" not in done.stderr, done.stderr
    assert_same(again, plain)


@contextmanager
def at_work(experiment: Path, folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A run, and what it says; it is killed at the end."""
    said = folder.with_suffix(".txt")
    with said.open("w") as file:
        process = subprocess.Popen(
            command(experiment, folder, *options),
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
        try:
            yield process, said
        finally:
            process.kill()
            process.wait()


def wait_for_records(process: subprocess.Popen[bytes], folder: Path, count: int) -> None:
    path = folder / "records.jsonl"
    ends = time.monotonic() + 200
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None and time.monotonic() < ends
        time.sleep(0.02)


def test_a_merge_in_parts_on_the_nodes_is_that_of_one_process(
    nodes: Cluster, tiny_model: Path, plain: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    vectors = sorted(plain.glob("vectors/**/*.safetensors"))
    named = "".join(f"  v{number}: {path}\n" for number, path in enumerate(vectors))
    recipe.write_text(f"base: {tiny_model}\nvectors:\n{named}rule: ties\nmax_shard_gb: 0.00001\n")
    for name, *options in (("one",), ("ray", "--ray", nodes.address)):
        done = subprocess.run(
            [sys.executable, "-m", "taskvec", "merge", str(recipe), "-o", str(tmp_path / name), *options],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    one, many = (files(tmp_path / name, "*.safetensors") for name in ("one", "ray"))
    assert len(one) > 2 and one == many


def test_a_storage_that_nodes_do_not_see_is_refused(nodes: Cluster, experiment: Path, tmp_path: Path) -> None:
    done = run(experiment, tmp_path / "run", "--ray", nodes.address, "--storage", "memory://run")
    assert done.returncode == 2
    assert done.stderr.startswith("taskvec: node ") and done.stderr.count("\n") == 1
    assert "memory://run: what this machine writes there is not seen; give a storage" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_node_with_another_taskvec_is_refused(nodes: Cluster, experiment: Path, tmp_path: Path) -> None:
    """Its version is the same, its files are not; and then the version is another one, too."""
    other = tmp_path / "other"
    shutil.copytree(
        Path(taskvec.__file__).parent, other / "taskvec", ignore=shutil.ignore_patterns("__pycache__")
    )
    with (other / "taskvec" / "errors.py").open("a") as source:
        source.write("# changed\n")
    nodes.add({"PYTHONPATH": str(other)})
    try:
        done = run(experiment, tmp_path / "run", "--ray", nodes.address)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "has other source files of taskvec" in done.stderr
        made = other / "taskvec-9.9.dist-info"
        made.mkdir()
        (made / "METADATA").write_text("Metadata-Version: 2.1\nName: taskvec\nVersion: 9.9\n")
        done = run(experiment, tmp_path / "run", "--ray", nodes.address)
        assert done.returncode == 2 and "has taskvec 9.9, expected " in done.stderr
        assert not (tmp_path / "run").exists()
    finally:
        nodes.end(2)
