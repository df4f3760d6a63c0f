"""Trainings by several processes give the vector of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import taskvec as tv
from integrations import several

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def trained(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vectors of two processes."""
    place = tmp_path_factory.mktemp("several")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(TESTS / "integrations" / "several.py"), str(llama), str(place), *several.OPTIONS]
    paths = os.pathsep.join([str(TESTS), str(Path(tv.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([*command, *script], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return place


@pytest.mark.parametrize("name", [*several.OPTIONS, "sharded"])
def test_two_processes_give_the_vector_of_one(llama: Path, trained: Path, tmp_path: Path, name: str) -> None:
    if name == "sharded":
        several.train_sharded(llama, tmp_path, 1)
    else:
        several.train(llama, tmp_path, name, 1)
    one, two = (tv.TaskVector.load(place / f"{name}.safetensors") for place in (tmp_path, trained))
    assert one.norm() > 0
    for tensor in one:
        torch.testing.assert_close(two[tensor], one[tensor], rtol=1e-3, atol=1e-6)
    assert two.info.training is not None and two.info.training["processes"] == 2
    assert two.info.base.fingerprint == one.info.base.fingerprint
