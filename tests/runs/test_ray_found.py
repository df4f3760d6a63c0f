"""What is said where there is no Ray, no cluster, or none that can be used; no cluster is started."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from taskvec.cli import main, with_values
from taskvec.runs.executors import machine
from taskvec.runs.executors.cluster import _differing

needs_ray = pytest.mark.skipif("not __import__('importlib.util').util.find_spec('ray')")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.count("\n") == 1, said
    return said


@needs_ray
@pytest.mark.parametrize(
    "address", ["ray://localhost:10001", "somewhere", "host:99999", "a b:1", "http://x:1"]
)
def test_an_address_that_is_none_is_refused(
    address: str, experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "run", str(experiment), "-o", str(tmp_path / "run"), f"--ray={address}")
    assert "expected HOST:PORT" in said and not (tmp_path / "run").exists()


@needs_ray
def test_no_cluster_at_an_address_is_said_within_seconds(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        begun = time.monotonic()
        said = refused(capsys, "run", str(experiment), "-o", str(tmp_path / "run"), "--ray", address)
    assert f"Ray, {address}: no cluster answers there" in said
    assert time.monotonic() - begun < 20 and not (tmp_path / "run").exists()


@needs_ray
def test_a_cluster_of_the_environment_that_is_gone_is_said(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    said = refused(capsys, "run", str(experiment), "-o", str(tmp_path / "run"), "--ray")
    assert "Ray, 127.0.0.1:1: no cluster answers there" in said


def test_without_ray_the_way_to_install_it_is_said(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('no module named ray')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from taskvec.cli import main; main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(experiment), "-o", str(tmp_path / "run"), "--ray"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "taskvec: --ray: Ray is not installed; pip install 'taskvec[ray]'\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["run", "x.yaml", "--ray"], ["run", "x.yaml", "--ray", "auto"]),
        (["run", "--ray", "x.yaml", "-o", "y"], ["run", "--ray", "auto", "x.yaml", "-o", "y"]),
        (["run", "--ray", "10.0.0.1:6379", "x.yaml"], ["run", "--ray", "10.0.0.1:6379", "x.yaml"]),
        (["run", "--ray", "--json"], ["run", "--ray", "auto", "--json"]),
        (["run", "--ray=local"], ["run", "--ray=local"]),
        (["run", "--ray", "auto"], ["run", "--ray", "auto"]),
    ],
)
def test_ray_may_stand_without_an_address(given: list[str], meant: list[str]) -> None:
    assert with_values(given) == meant


def test_versions_that_differ_are_named() -> None:
    here = machine.describe()
    assert here["taskvec"] and here["torch"] and len(here[machine.CODE]) == 64
    assert "has torch 1.0, expected" in _differing({**here, "torch": "1.0"}, here)
    assert "has transformers (none), expected 9" in _differing(here, {**here, "transformers": "9"}) or (
        "expected 9" in _differing(here, {**here, "transformers": "9"})
    )
    assert "other source files of taskvec" in _differing({**here, machine.CODE: "0"}, here)
    without = {key: value for key, value in here.items() if key not in ("taskvec", machine.CODE)}
    assert "has taskvec (none), expected" in _differing(without, here)


def test_the_digest_of_a_package_is_of_names_and_content(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "__pycache__").mkdir(parents=True)
    (package / "a.py").write_text("1")
    before = machine.digest_of(package)
    (package / "__pycache__" / "a.pyc").write_text("made")
    assert machine.digest_of(package) == before
    (package / "a.py").rename(package / "b.py")
    renamed = machine.digest_of(package)
    (package / "b.py").write_text("2")
    assert len({before, renamed, machine.digest_of(package)}) == 3
