"""bfloat16: all entries, with eight bits of precision."""

from typing import ClassVar

import torch
from torch import Tensor

from taskvec.vectors.stored.compact.form import PLAIN, Coded, Entries, Form, Parts, Shape, Specs, plain


class Rounded(Form):
    """Every entry rounded to bfloat16: half of float32, relative errors up to 2^-9."""

    name: ClassVar[str] = "bf16"
    parts: ClassVar[tuple[str, ...]] = ()
    takes_dtype: ClassVar[bool] = False

    def encode(self, tensor: Entries, dtype: torch.dtype) -> Coded:
        """The rounded tensor, under its own name."""
        return plain(tensor, torch.bfloat16)

    def decode(self, parts: Parts, shape: Shape, rows: slice | None = None) -> Tensor:
        """The rounded tensor."""
        return parts.read(PLAIN, rows).float()

    def layout(self, shape: Shape, specs: Specs) -> Specs:
        """No parts: the tensor is stored under its own name."""
        return {}
