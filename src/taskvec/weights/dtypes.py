"""Element types: their names in safetensors files, and which of them arithmetic is done on."""

from math import isfinite

import torch
from torch import Tensor

from taskvec.errors import InputError

CODES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
NAMES: dict[torch.dtype, str] = {dtype: code for code, dtype in CODES.items()}

HEADER_LIMIT = 100_000_000
"""Bytes of the largest header of a safetensors file, the same as the library of the format takes."""

# Eight-bit floats are left out: they carry scales in other tensors, so adding them means nothing.
EDITABLE = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})

LARGEST = torch.finfo(torch.float32).max
"""Of a coefficient, as deltas are multiplied in float32."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision that arithmetic on ``dtype`` is done in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest values of ``dtype``, ties to even; from float64 to 16 bits in one rounding, not two."""
    if tensor.dtype != torch.float64 or dtype not in (torch.float16, torch.bfloat16):
        return tensor.to(dtype)
    # Rounded to odd: what float32 cannot hold ends in a bit that never makes a tie in 16 bits.
    nearest = tensor.float()
    bits = nearest.view(torch.int32)
    bits -= (nearest.double().abs() > tensor.abs()).int()
    return (bits | (bits.view(torch.float32).double() != tensor).int()).view(torch.float32).to(dtype)


def short(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def check_editable(where: object, dtype: torch.dtype | None) -> None:
    """Refuse an element type, where one is given, that no deltas are stored in.

    Raises: InputError.
    """
    if dtype is not None and dtype not in EDITABLE:
        wanted = ", ".join(sorted(map(short, EDITABLE)))
        raise InputError(f"{where}: dtype {short(dtype)}, expected one of {wanted}")


def raw_bytes(tensor: Tensor) -> memoryview:
    """The content of a CPU tensor in row-major order, as a flat view of bytes; no copy if contiguous."""
    dense = tensor.detach().contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))  # one entry alone may have any stride
    return flat.view(torch.uint8).numpy().data


def nonfinite_count(tensor: Tensor) -> int:
    """How many entries are NaN or infinite. Integers have none.

    Cost: one pass when all are finite, since NaN and infinity both show in the extremes.
    """
    if tensor.numel() == 0 or not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.dtype not in EDITABLE:
        tensor = tensor.float()
    if all(map(isfinite, map(float, torch.aminmax(tensor)))):
        return 0
    return int(tensor.numel() - tensor.isfinite().sum().item())
