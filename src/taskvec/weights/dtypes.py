"""Element types: their names in safetensors files, and which of them arithmetic is done on."""

from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from taskvec.errors import InputError
from taskvec.later import torch

if TYPE_CHECKING:
    from torch import Tensor

TYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "C64": ("complex64", 8),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
}
"""Element types: the code in safetensors files -> the name in torch, and the bytes of an element."""

_CODES = {name: code for code, (name, _) in TYPES.items()}

HEADER_LIMIT = 100_000_000
"""Bytes of the largest header of a safetensors file, the same as the library of the format takes."""

EDITABLE = frozenset({"F64", "F32", "F16", "BF16"})
"""Codes of the element types that deltas are taken of.

Eight-bit floats are left out: they carry scales in other tensors, so adding them means nothing."""

LARGEST = float(np.finfo(np.float32).max)
"""Of a coefficient, as deltas are multiplied in float32."""


@cache
def dtype_of(code: str) -> "torch.dtype":
    """The element type in torch that a code, or for lack of one torch's own name, stands for."""
    dtype: torch.dtype = getattr(torch, name_of(code))
    return dtype


def code_of(dtype: "torch.dtype | str") -> str | None:
    """The code of an element type, or of its name in torch; ``None`` for one that no file can hold."""
    return _CODES.get(short(dtype))


def name_of(code: str) -> str:
    """``bfloat16`` for ``BF16``."""
    return TYPES[code][0] if code in TYPES else code


def size_of(code: str) -> int:
    """The bytes of an element."""
    return TYPES[code][1] if code in TYPES else dtype_of(code).itemsize


def array_type(code: str) -> "np.dtype[Any]":
    """What arrays of numpy hold for a code; the bits where it has no such numbers."""
    bits = code == "BF16" or code.startswith("F8")
    return np.dtype(f"uint{8 * size_of(code)}" if bits else name_of(code))


def is_editable(dtype: "torch.dtype") -> bool:
    """Whether deltas are taken of an element type."""
    return code_of(dtype) in EDITABLE


def compute_dtype(dtype: "torch.dtype") -> "torch.dtype":
    """The precision that arithmetic on ``dtype`` is done in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def compute_code(code: str) -> str:
    """The same of codes."""
    return "F64" if code == "F64" else "F32"


def promoted(code: str, other: str) -> str:
    """The narrowest element type that holds all values of both."""
    wide = code if code == other else code_of(torch.promote_types(dtype_of(code), dtype_of(other)))
    assert wide is not None
    return wide


def rounded(tensor: "Tensor", dtype: "torch.dtype") -> "Tensor":
    """The nearest values of ``dtype``, ties to even; from float64 to 16 bits in one rounding, not two."""
    if tensor.dtype != torch.float64 or dtype not in (torch.float16, torch.bfloat16):
        return tensor.to(dtype)
    # Rounded to odd: what float32 cannot hold ends in a bit that never makes a tie in 16 bits.
    nearest = tensor.float()
    bits = nearest.view(torch.int32)
    bits -= (nearest.double().abs() > tensor.abs()).int()
    return (bits | (bits.view(torch.float32).double() != tensor).int()).view(torch.float32).to(dtype)


def short(dtype: "torch.dtype | str") -> str:
    """``float32`` for ``torch.float32``, or for that name of it."""
    return str(dtype).removeprefix("torch.")


def check_editable(where: object, dtype: "torch.dtype | None") -> None:
    """Refuse an element type, where one is given, that no deltas are stored in.

    Raises: InputError.
    """
    if dtype is not None and not is_editable(dtype):
        wanted = ", ".join(sorted(map(name_of, EDITABLE)))
        raise InputError(f"{where}: dtype {short(dtype)}, expected one of {wanted}")


def raw_bytes(tensor: "Tensor | NDArray[Any]") -> memoryview:
    """The content of a CPU tensor, or of an array, in row-major order, as a flat view of bytes; no copy if
    contiguous."""
    if isinstance(tensor, np.ndarray):
        return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
    dense = tensor.detach().contiguous()
    flat = dense.as_strided((dense.numel(),), (1,))  # one entry alone may have any stride
    return flat.view(torch.uint8).numpy().data


def array_of(tensor: "Tensor") -> NDArray[Any]:
    """A CPU tensor as an array: of bfloat16 and 8-bit floats the bits."""
    code = code_of(tensor.dtype)
    assert code is not None, f"{tensor.dtype} is in no file"
    return np.frombuffer(raw_bytes(tensor), array_type(code)).reshape(tuple(tensor.shape))


def tensor_of(array: NDArray[Any], code: str) -> "Tensor":
    """What ``array_of`` makes an array of; the memory is shared."""
    return torch.from_numpy(array).view(dtype_of(code))


def as_float32(array: NDArray[Any], code: str) -> NDArray[np.float32]:
    """Numbers of 32 bits or less, given as ``array_of`` gives them, exactly."""
    if code != "BF16":
        return array.astype(np.float32, copy=False)
    bits = array.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def nonfinite_count(tensor: "Tensor") -> int:
    """How many entries are NaN or infinite. Integers have none.

    Cost: one pass when all are finite, since NaN and infinity both show in the extremes.
    """
    if tensor.numel() == 0 or not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not is_editable(tensor.dtype):
        tensor = tensor.float()
    if all(map(isfinite, map(float, torch.aminmax(tensor)))):
        return 0
    return int(tensor.numel() - tensor.isfinite().sum().item())


def __getattr__(name: str) -> "dict[str, torch.dtype]":
    if name == "CODES":
        return {code: dtype_of(code) for code in TYPES}
    raise AttributeError(name)
