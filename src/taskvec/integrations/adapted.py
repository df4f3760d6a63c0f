"""The vector of an adapter that PEFT trains."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from taskvec.vectors import TaskVector
from taskvec.vectors.lora.adapter import Adapter
from taskvec.vectors.lora.contents import Product
from taskvec.vectors.stored.factored import Pair, factored
from taskvec.weights import Weights


@contextmanager
def adapter_of(
    network: nn.Module, start: Weights, state: Mapping[str, Tensor] | None
) -> Iterator[TaskVector]:
    """The vector of a network's adapter, as PEFT would save it now; to be used inside the context.

    It is held as factors where it is nothing but products of two matrices.

    Args:
        state: of the network, where its tensors lie on several devices.

    Raises: InputError for an adapter that is no direction in weight space, such as a prompt.
    """
    peft: Any = network
    with TemporaryDirectory(prefix="taskvec-") as folder:
        with warnings.catch_warnings():  # on what is saved besides, which is for files that stay
            warnings.simplefilter("ignore")
            peft.save_pretrained(folder, **({} if state is None else {"state_dict": dict(state)}))
        active = peft.active_adapter
        names = active() if callable(active) else active  # of networks with an adapter of their own
        beside = Path(folder, names if isinstance(names, str) else names[0])
        vector = TaskVector.load(beside if beside.is_dir() else folder).with_base(start)
        yield _as_factors(vector, start) or vector


def _as_factors(vector: TaskVector, start: Weights) -> TaskVector | None:
    """The same as pairs of factors; ``None`` where more than plain LoRA changes tensors."""
    pairs: dict[str, Pair] = {}
    for name in vector:
        for delta, _ in vector.terms_at(name):
            piece = delta.plain(name) if isinstance(delta, Adapter) else None
            if not isinstance(piece, Product):
                return None
            assert isinstance(delta, Adapter)
            b, a = (half[0] for half in delta.factors(piece, torch.float32))
            pairs[name] = Pair(a.mT, b.mT) if piece.transposed else Pair(b, a)
    shapes = {name: vector.specs[name].shape for name in pairs}
    return TaskVector.from_tensors(factored(pairs, shapes), base=start) if pairs else None
