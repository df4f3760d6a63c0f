"""Truth values, eight to a byte."""

import numpy as np
import torch
from torch import Tensor


def packed_size(count: int) -> int:
    """Bytes of ``count`` bits."""
    return -(-count // 8)


def pack(flags: Tensor) -> Tensor:
    """The flags in row-major order, the first in the lowest bit: uint8 (bytes,)."""
    return torch.from_numpy(np.packbits(flags.reshape(-1).numpy(), bitorder="little"))


def unpack(data: Tensor, first: int, last: int) -> Tensor:
    """The flags from place ``first`` to before ``last``, bool (last - first,)."""
    return torch.from_numpy(np.unpackbits(data.numpy(), count=last, bitorder="little")[first:].view(np.bool_))
