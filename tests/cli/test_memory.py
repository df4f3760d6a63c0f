"""``--memory`` is kept, beside what a process takes itself, or what is asked for is refused or said."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from processes import run
from taskvec.cli._editing import bound, parse_size
from taskvec.errors import InputError
from taskvec.vectors import TaskVector
from taskvec.weights import save_weights

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="measured on Linux alone"
)

ROOM = 48
"""MB that every command is given. Its tensor has 134 MB in float32."""

LOOSE = 70
"""MB that forked processes and what the C library keeps come to, on a busy machine too; half a tensor."""

APPLY = ("apply", "base.safetensors", "-v", "a=a.safetensors", "-v", "b=b.safetensors", "-o", "out")
COMPRESS = ("compress", "a.safetensors", "-o", "out.safetensors", "--form")
COMMANDS: dict[str, Sequence[str]] = {
    "diff": ("diff", "base.safetensors", "tuned.safetensors", "-o", "out.safetensors"),
    "apply": (*APPLY, "-e", "0.3 * a + 0.3 * b"),
    "ties": (*APPLY, "--rule", "ties"),
    "int8": (*COMPRESS, "int8"),
    "sparse": (*COMPRESS, "sparse", "--density", "0.1"),
}


def checkpoints(folder: Path, rows: int) -> Path:
    """A base, a fine-tuned model and two task vectors, each of one matrix, in bfloat16."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "tuned", "a", "b"):
        drawn = torch.randn(256, 2048, generator=generator).bfloat16()
        if name in ("base", "tuned"):
            save_weights({"layer.weight": drawn.repeat(rows // 256, 1)}, folder / f"{name}.safetensors")
        else:
            held = {"layer.weight": 0.01 * drawn.repeat(rows // 256, 1)}
            vector = TaskVector.from_tensors(held, folder / "base.safetensors")
            vector.save(folder / f"{name}.safetensors", dtype=torch.bfloat16)
    return folder


def megabytes(folder: Path, words: Sequence[str]) -> float:
    """The most memory that a command holds, all its processes together."""
    paths = [str(folder / word) if word.endswith((".safetensors", "out")) else word for word in words]
    named = [f"{word[:2]}{folder / word[2:]}" if word[1:2] == "=" else word for word in words]
    final = [one if word[1:2] == "=" else path for word, path, one in zip(words, paths, named, strict=True)]
    cost, _ = run([sys.executable, "-m", "taskvec", *final, "--memory", f"{ROOM}MB", "--force", "--quiet"])
    return cost.memory / 1e6


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints(tmp_path_factory.mktemp("memory") / "large", 16_384)


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> float:
    """What a process takes that edits next to nothing by a compiled loop."""
    return megabytes(checkpoints(tmp_path_factory.mktemp("floor") / "small", 256), COMMANDS["ties"])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_keeps_its_bound_above_the_floor_of_a_process(
    command: str, large: Path, floor: float
) -> None:
    assert megabytes(large, COMMANDS[command]) < floor + ROOM + LOOSE


@pytest.mark.parametrize("size", [64_000_001, 100_000_000, 3_111_111_111])
def test_a_refusal_names_a_bound_that_is_enough(size: int) -> None:
    with pytest.raises(InputError, match="'w' needs about") as caught:
        bound("1MB", [("v", 5), ("w", size)])
    advised = str(caught.value).split("about ")[1].split(",")[0]
    assert bound(advised, [("w", size)]) == parse_size(advised, "--memory") >= size


def test_what_needs_more_than_the_usual_takes_it_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert bound(None, [("w", 700_000_000)]) == 512e6
    assert capsys.readouterr().err == "note: 'w' needs about 700MB of memory, more than the usual 512MB\n"
    bound(None, [("w", 500_000_000)])
    assert not capsys.readouterr().err


def test_blocks_are_not_made_smaller_so_a_smaller_bound_refuses_nothing() -> None:
    assert bound("1MB", [("w", 60_000_000)]) == 1e6
