"""Tensors as arrays: the bytes of the file, whatever holds them, and digests and norms from them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from taskvec import open_weights, save_weights
from taskvec.weights import TensorSpec
from taskvec.weights.dtypes import CODES, TYPES, array_type, code_of, dtype_of, promoted, size_of
from taskvec.weights.summary import tensor_norms

FLOATS = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"]


def numbers(code: str, *shape: int) -> torch.Tensor:
    """Of an element type, with many different values."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (8 * drawn).to(dtype_of(code)) if "F" in code else (8 * drawn).abs().to(dtype_of(code))


@pytest.mark.parametrize("code", TYPES)
def test_codes_are_torchs_element_types(code: str) -> None:
    dtype = CODES[code]
    assert code_of(dtype) == code and dtype_of(code) == dtype
    assert size_of(code) == dtype.itemsize == array_type(code).itemsize
    spec = TensorSpec((2, 3), dtype)
    assert spec == TensorSpec((2, 3), code) and hash(spec) == hash(TensorSpec((2, 3), code))
    assert (spec.dtype, spec.nbytes, spec.floating) == (dtype, 6 * dtype.itemsize, dtype.is_floating_point)
    assert repr(spec) == f"TensorSpec(shape=(2, 3), dtype={dtype})"


@pytest.mark.parametrize("one", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("other", ["F64", "F32", "F16", "BF16"])
def test_the_wider_of_two_is_torchs(one: str, other: str) -> None:
    assert dtype_of(promoted(one, other)) == torch.promote_types(dtype_of(one), dtype_of(other))


@pytest.mark.parametrize("code", [code for code in TYPES if code != "C64"])
@pytest.mark.parametrize("rows", [None, slice(1, 4), slice(0, 5, 2)])
def test_an_array_holds_the_bytes_of_the_tensor(code: str, rows: slice | None, tmp_path: Path) -> None:
    tensors = {"first": numbers(code, 3), "a": numbers(code, 5, 7), "b": numbers(code, 2, 3, 4)}
    save_weights(tensors, tmp_path / "folder", max_shard_size=100)
    save_file(tensors, tmp_path / "one.safetensors")
    for place in (tmp_path / "folder", tmp_path / "one.safetensors", tensors):
        with open_weights(place) as weights:
            for name in ("a", "b"):
                tensor, array = weights.read(name, rows), weights.read_array(name, rows)
                assert array.shape == tensor.shape and array.dtype == array_type(code)
                assert array.tobytes() == bytes(tensor.contiguous().view(torch.uint8).numpy().data)


def test_a_name_that_is_not_there_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "one.safetensors")
    with pytest.raises(KeyError, match="no tensor called 'wieght'; did you mean 'weight'"):
        open_weights(tmp_path / "one.safetensors").read_array("wieght")


@pytest.mark.parametrize("code", FLOATS)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (70_001,), (600, 1000), (2, 300, 1000)])
def test_norms_are_those_of_float64(code: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = numbers(code, *shape)
    save_file({"w": tensor, "n": torch.arange(3)}, tmp_path / "one.safetensors")
    expected = math.sqrt(math.fsum(np.square(tensor.double().numpy().reshape(-1)).tolist()))
    assert tensor_norms(open_weights(tmp_path / "one.safetensors")) == {
        "w": pytest.approx(expected, rel=1e-14)
    }


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_norm_that_is_not_finite_is_said(value: float, tmp_path: Path) -> None:
    save_file({"w": torch.tensor([1.0, value])}, tmp_path / "one.safetensors")
    assert not math.isfinite(tensor_norms(open_weights(tmp_path / "one.safetensors"))["w"])


@pytest.mark.parametrize("code", ["BF16", "F32", "I64", "BOOL"])
def test_reading_arrays_gathers_the_fingerprint(code: str, tmp_path: Path) -> None:
    save_file({"a": numbers(code, 700, 1000), "b": numbers(code, 3)}, tmp_path / "one.safetensors")
    weights, read = (open_weights(tmp_path / "one.safetensors") for _ in range(2))
    read.fingerprint_while_reading()
    for name in read:
        for rows in read.row_blocks(name):
            read.read_array(name, rows)
    assert read.tally is not None and all(map(read.tally.digest, read))
    assert read.fingerprint() == weights.fingerprint() == open_weights(dict(weights)).fingerprint()
