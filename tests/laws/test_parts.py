"""Whatever is made of others when it is read says of itself what follows from them: nothing is forgotten."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import taskvec
from taskvec.coefficients.trimming import Agreeing
from taskvec.edits.layers import Joined, Origin
from taskvec.edits.merge import Merge
from taskvec.edits.mergekit.intermediate import Intermediate
from taskvec.edits.realigned import Alignment, Padded, Realigned
from taskvec.vectors import EditedWeights, TaskVector, combine
from taskvec.vectors.base import Base
from taskvec.vectors.combining import Combined
from taskvec.vectors.delta import Delta
from taskvec.vectors.directions import Difference, Scaled, Stored
from taskvec.vectors.fitting import Deltas
from taskvec.vectors.info import CompactInfo, MaskInfo, VectorInfo
from taskvec.vectors.lora.adapter import Adapter
from taskvec.vectors.lora.contents import Contents, Saved
from taskvec.vectors.lora.loaded import Loaded, Reverted
from taskvec.vectors.lora.settings import Settings
from taskvec.vectors.noise import Noise
from taskvec.vectors.stored.compact import FORMS
from taskvec.vectors.stored.compact.decoding import Decoded
from taskvec.vectors.stored.files import Uncoded
from taskvec.vectors.stored.masked import Masked, MaskedVectors
from taskvec.vectors.stored.masks import Computed, Packed, Unified
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.lazy import Lazy
from taskvec.weights.modules import Modular
from taskvec.weights.network import Layout, Network
from taskvec.weights.picked import Added, Grown, Picked, Step
from taskvec.weights.quantized import Dequantized

FILE = Path("/somewhere/spied.safetensors")
NAME = "layer.weight"


class Spied(Weights):
    """Weights of which nothing may be taken for granted, and that note who asks them to prepare."""

    splits = False

    def __init__(self, number: float) -> None:
        super().__init__(f"spied {number}", {}, ("spied", number), files=(FILE,))
        self.prepared: list[torch.dtype] = []
        self.hold({NAME: torch.full((3, 2), number)})

    def hold(self, tensors: Mapping[str, Tensor]) -> None:
        """Hold these tensors from now on."""
        self.tensors = tensors
        self._specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}

    @property
    def frozen(self) -> bool:
        return False

    def prepare(self, precision: torch.dtype | None = None) -> None:
        self.prepared.append(precision or torch.float32)

    def own_bytes(self, name: str) -> int:
        return 12345

    def _read(self, name: str, rows: slice | None) -> Tensor:
        return self.tensors[name]


def direction(spied: Spied) -> Delta:
    return Stored(spied, Base("base"), VectorInfo(), {})


def decoded(spied: Spied) -> Lazy:
    spied.hold({f"{NAME}#scales": torch.ones(1), f"{NAME}#codes": torch.ones(6, dtype=torch.int8)})
    info = CompactInfo(form="int8", error=0, errors={NAME: 0}, coded={NAME: (3, 2)})
    return Decoded(spied, FORMS["int8"].parse("", {}), info)


def unified(spied: Spied) -> Lazy:
    spied.hold({**spied.tensors, f"{NAME}#a": torch.ones(1, dtype=torch.uint8)})
    return Unified(spied, MaskInfo(method="emr", factors={"a": 1.0}))


def masked(spied: Spied) -> Lazy:
    info = MaskInfo(method="emr", factors={"a": 1.0})
    shared = TaskVector.of(direction(Spied(3.0)))
    masks = Computed({"a": direction(spied)}, {"a": torch.eq}, "emr")
    return Masked(MaskedVectors(shared, masks, info, "masked"), "a")


def adapter(spied: Spied) -> Lazy:
    settings = Settings(peft_type="LORA")
    base = Spied(2.0)
    base.splits, base.own_files = True, ()
    return Adapter(Contents(base, settings, {NAME: Saved(NAME)}, {NAME: spied.spec(NAME)}), spied)


def loaded(spied: Spied) -> Loaded:
    network = Network("network", nn.ModuleDict({"layer": nn.Linear(2, 3, bias=False)}))
    return Loaded(spied, network, Layout({NAME: NAME}, [], [], [], []))


def reverted(spied: Spied) -> Lazy:
    inner = direction(spied)
    assert isinstance(inner, Stored)
    return Reverted(inner, loaded(Spied(2.0)))


MADE: dict[type, Callable[[Spied], Lazy]] = {
    Picked: lambda spied: Picked(spied, {}, steps=[Step((NAME,), {NAME: spied.spec(NAME)}, dict)]),
    Grown: lambda spied: Grown(spied, {NAME: Added(Spied(2.0), NAME, [0], 3)}),
    Loaded: loaded,
    Intermediate: lambda spied: Intermediate("merge", Merge(spied, {}, like=spied)),
    Deltas: lambda spied: Deltas(direction(spied)),
    Origin: Origin,
    Modular: lambda spied: Modular("modular", Path(), {"": spied}),
    Joined: lambda spied: Joined([spied]),
    Dequantized: lambda spied: Dequantized(spied, {}, torch.bfloat16, {}),
    Padded: lambda spied: Padded(spied, {NAME: 0}, 4),
    Realigned: lambda spied: Realigned(Alignment((spied,), torch.arange(3)[None], {NAME: 0}, spied), 0),
    EditedWeights: lambda spied: EditedWeights(Spied(2.0), direction(spied)),
    Uncoded: lambda spied: Uncoded(TaskVector.of(direction(spied)), None),
    Decoded: decoded,
    Unified: unified,
    Difference: lambda spied: Difference(Spied(2.0), spied, [NAME]),
    Stored: direction,
    Scaled: lambda spied: Scaled(direction(spied), {NAME: 2.0}),
    TaskVector: lambda spied: TaskVector.of(direction(spied)),
    Noise: lambda spied: Noise(direction(spied), 0),
    Combined: lambda spied: next(iter(combine("ties", [TaskVector.of(direction(spied))]).terms)),
    Masked: masked,
    Computed: lambda spied: Computed({"a": direction(spied)}, {"a": torch.eq}, "emr"),
    Packed: lambda spied: Packed(spied, {NAME: (3, 2)}, [""]),
    Adapter: adapter,
    Reverted: reverted,
    Agreeing: lambda spied: Agreeing(TaskVector.of(direction(spied)), {NAME: np.zeros(1, np.uint8)}),
}
"""A way to make each kind of something that is made of others, of weights."""


LEAVES = {
    "ArchivedWeights",
    "GgufWeights",
    "StoredWeights",
    "ShardedWeights",
    "MemoryWeights",
    "PickledWeights",
    "RemoteWeights",
    "ShardedDeltas",
    "Spool",
    "_MadeUp",
}
"""What lies in files or in memory by itself."""


def kinds(of: type) -> Iterator[type]:
    below: list[type] = of.__subclasses__()
    for kind in below:
        yield kind
        yield from kinds(kind)


def test_every_kind_is_here() -> None:
    for module in pkgutil.walk_packages(taskvec.__path__, "taskvec."):
        if module.name.startswith(
            ("taskvec.vectors", "taskvec.weights", "taskvec.edits", "taskvec.coefficients")
        ):
            importlib.import_module(module.name)
    whole = {kind for kind in kinds(Lazy) if kind.__module__.startswith("taskvec.")}
    whole = {kind for kind in whole if not inspect.isabstract(kind) and kind.__name__ not in LEAVES}
    missing = sorted(kind.__name__ for kind in whole - MADE.keys())
    assert not missing, f"{missing} may be made of others: say in MADE how, so that the law below covers them"


@pytest.mark.parametrize("kind", MADE, ids=lambda kind: kind.__name__)
def test_what_holds_of_the_parts_holds_of_the_whole(kind: type) -> None:
    spied = Spied(1.0)
    made = MADE[kind](spied)
    assert type(made) is kind and NAME in made
    assert not made.in_rows(NAME) and not made.by_rows
    assert not made.frozen
    assert FILE in made.files
    assert spied in made.inputs
    assert made.working_bytes(NAME) >= 12345
    made.prepare(torch.float64)
    assert spied.prepared
