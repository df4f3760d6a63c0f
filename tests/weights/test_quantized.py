"""Quantized weights are turned back where that is exact, and refused in one sentence elsewhere."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from taskvec.edits.inputs import check_sound
from taskvec.errors import CorruptFile, InputError
from taskvec.vectors import TaskVector, apply
from taskvec.weights import open_weights, save_weights

F8 = torch.float8_e4m3fn


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def spread(scale: Tensor, shape: tuple[int, ...], block: tuple[int, int]) -> Tensor:
    """Scales by entry, one loop a block: slow, and plainly right."""
    made = torch.empty(shape, dtype=torch.float64)
    for row in range(shape[-2]):
        for column in range(shape[-1]):
            made[..., row, column] = scale[..., row // block[0], column // block[1]].double()
    return made


def save(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


FP8: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, int], str, list[int] | None]] = [
    ((8, 12), (2, 3), (4, 4), "_scale_inv", [4, 4]),
    ((9, 10), (3, 3), (4, 4), "_scale_inv", [4, 4]),
    ((8, 12), (4, 2), (2, 6), "_scale_inv", None),
    ((6, 4), (6, 1), (1, 4), "_scale", None),
    ((6, 4), (6,), (1, 4), "_scale", None),
    ((6, 4), (), (6, 4), "_scale", None),
    ((6, 4), (1,), (6, 4), "_scale_inv", None),
    ((3, 8, 4), (3, 4, 2), (2, 2), "_scale_inv", [2, 2]),
]


@pytest.mark.parametrize(("shape", "grid", "block", "ending", "listed"), FP8)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_eight_bits_times_their_scales_are_the_weights(
    shape: tuple[int, ...],
    grid: tuple[int, ...],
    block: tuple[int, int],
    ending: str,
    listed: list[int] | None,
    dtype: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    codes, scale, norm = random(*shape).to(F8), random(*grid).abs() + 0.1, random(4).bfloat16()
    held = {
        "a.weight": codes,
        f"a.weight{ending}": scale,
        "norm.weight": norm,
        "a.input_scale": torch.ones(1),
    }
    method = {"quant_method": "fp8", "weight_block_size": listed}
    folder = save(tmp_path / "m", held, torch_dtype=dtype, quantization_config=method, model_type="llama")
    full = scale if scale.ndim > 1 else scale.reshape(-1, 1)
    expected = (codes.double() * spread(full, shape, block)).to(getattr(torch, dtype))
    with open_weights(folder) as weights:
        assert set(weights) == {"a.weight", "norm.weight"}
        assert torch.equal(weights["a.weight"], expected) and torch.equal(weights["norm.weight"], norm)
        flat = expected.reshape(-1, shape[-1])
        assert torch.equal(weights.read("a.weight", slice(1, 5)), flat[1:5])
        assert f"m: 1 matrices in 8 bits are multiplied by their scales and read as {dtype}" in caplog.text
        out = save_weights(weights, tmp_path / "out")
        assert open_weights(out).fingerprint() == weights.fingerprint()
    assert json.loads((out / "config.json").read_text()) == {"torch_dtype": dtype, "model_type": "llama"}


def test_it_is_what_transformers_makes_of_them() -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    codes, scale = random(16, 24).to(F8), random(4, 3).abs()
    theirs = Fp8Dequantize(None)._dequantize_one(codes, scale, output_dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    from taskvec.weights.quantized import dequantized

    ours = dequantized(open_weights({"w": codes, "w_scale_inv": scale}))
    assert torch.equal(ours["w"], theirs)


def test_matrices_and_scales_may_lie_in_different_shards(tmp_path: Path) -> None:
    codes, scale = random(4, 4).to(F8), torch.full((1, 1), 0.5)
    save_file({"w": codes}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"w_scale_inv": scale}, tmp_path / "model-00002-of-00002.safetensors")
    assert torch.equal(open_weights(tmp_path)["w"], (codes.float() / 2).bfloat16())


def test_a_difference_of_two_is_taken_of_what_they_stand_for(tmp_path: Path) -> None:
    base = save(tmp_path / "base", {"w": random(4, 4).to(F8), "w_scale_inv": torch.full((1, 1), 0.5)})
    tuned = save(tmp_path / "tuned", {"w": random(4, 4).to(F8), "w_scale_inv": torch.full((1, 1), 0.75)})
    vector = TaskVector.between(base, tuned)
    assert list(vector) == ["w"]
    expected = (random(4, 4).to(F8).float() * 0.75).bfloat16().float()
    assert torch.equal(vector["w"], expected - (random(4, 4).to(F8).float() * 0.5).bfloat16().float())


@pytest.mark.parametrize("grid", [(3, 1), (1, 5), (2, 2, 2), (0, 1)])
def test_scales_that_do_not_fit_are_refused(grid: tuple[int, ...], tmp_path: Path) -> None:
    folder = save(tmp_path / "m", {"w": torch.zeros(4, 4, dtype=F8), "w_scale_inv": torch.ones(grid)})
    with pytest.raises(CorruptFile, match=r"'w_scale_inv' has shape .*, which does not fit 'w' of shape"):
        open_weights(folder)


def integers(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.ones(shape, dtype=dtype)


SCHEMES: dict[str, tuple[dict[str, Tensor], str]] = {
    "GPTQ": (
        {
            "l.q.qweight": integers(torch.int32, 4, 8),
            "l.q.qzeros": integers(torch.int32, 1, 4),
            "l.q.scales": torch.ones(1, 8).half(),
            "l.q.g_idx": integers(torch.int32, 32),
        },
        "quantized by GPTQ or AWQ .*start from the checkpoint that it was made from",
    ),
    "bitsandbytes in 4 bits": (
        {
            "l.q.weight": integers(torch.uint8, 32, 1),
            "l.q.weight.absmax": torch.ones(2),
            "l.q.weight.quant_map": torch.ones(16),
            "l.q.weight.quant_state.bitsandbytes__nf4": integers(torch.uint8, 90),
        },
        r"quantized by bitsandbytes .*dequantize\(\)",
    ),
    "bitsandbytes in 8 bits": (
        {"l.q.weight": integers(torch.int8, 4, 4), "l.q.SCB": torch.ones(4)},
        r"quantized by bitsandbytes .*dequantize\(\)",
    ),
    "MXFP4": (
        {
            "e.gate_up_proj_blocks": integers(torch.uint8, 2, 4, 1, 16),
            "e.gate_up_proj_scales": integers(torch.uint8, 2, 4, 1),
        },
        r"quantized by MXFP4 .*Mxfp4Config\(dequantize=True\)",
    ),
    "compressed-tensors": (
        {
            "l.q.weight_packed": integers(torch.int32, 4, 1),
            "l.q.weight_scale": torch.ones(4, 1).bfloat16(),
            "l.q.weight_shape": integers(torch.int64, 2),
        },
        r"quantized by compressed-tensors .*CompressedTensorsConfig\(dequantize=True\)",
    ),
    "integers with scales": (
        {"l.q.weight": integers(torch.int8, 4, 4), "l.q.weight_scale": torch.ones(4, 1)},
        "'l.q.weight' holds int8 codes with scales",
    ),
    "MLX": (
        {
            "l.q.weight": integers(torch.uint32, 4, 1),
            "l.q.scales": torch.ones(4, 1),
            "l.q.biases": torch.ones(4, 1),
        },
        r"quantized by MLX .*mlx_lm\.convert",
    ),
}  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_that_arithmetic_would_get_wrong_are_refused(scheme: str, tmp_path: Path) -> None:
    held, words = SCHEMES[scheme]
    whole = {**held, "norm.weight": torch.ones(4)}
    base, tuned = save(tmp_path / "base", whole), save(tmp_path / "tuned", whole)
    with pytest.raises(InputError, match=words):
        check_sound(open_weights(base))
    with pytest.raises(InputError, match=words):
        TaskVector.between(base, tuned)
    with pytest.raises(InputError, match=words):
        apply(base, TaskVector.between({"norm.weight": torch.zeros(4)}, {"norm.weight": torch.ones(4)}))


def test_plain_models_with_odd_names_are_plain(tmp_path: Path) -> None:
    for held in (
        {"l.scales": torch.ones(2, 2), "l.weight_scale": torch.ones(4), "mask": integers(torch.bool, 2, 2)},
        {"relative_position_index": integers(torch.int64, 4, 4), "logit_scale": torch.ones(())},
    ):
        check_sound(open_weights(save(tmp_path / "m", held)))
