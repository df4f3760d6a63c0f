"""Devices by name, and what is said of those that are not there or are full."""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch

import taskvec as tv
from taskvec.errors import InputError, OutOfMemory
from taskvec.place import autocast, devices, enough_memory, find_device

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], None]:
    """A machine with so many CUDA devices, and with or without Apple's."""

    def pretend(cuda: int, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "mps", "name", "found"),
    [
        (0, False, "auto", "cpu"),
        (0, True, "auto", "cpu"),
        (2, False, "auto", "cuda"),
        (2, False, "cpu", "cpu"),
        (2, False, "cuda:1", "cuda:1"),
        (0, True, "mps", "mps"),
    ],
)
def test_a_name_is_a_device(
    machine: Callable[[int, bool], None], cuda: int, mps: bool, name: str, found: str
) -> None:
    machine(cuda, mps)
    assert find_device(name) == torch.device(found)


@pytest.mark.parametrize(
    ("cuda", "name", "there"),
    [(0, "cuda", "cpu"), (0, "mps", "cpu"), (2, "cuda:3", "cpu, cuda:0, cuda:1"), (0, "cuda:3", "cpu")],
)
def test_those_that_are_there_are_named(
    machine: Callable[[int, bool], None], cuda: int, name: str, there: str
) -> None:
    machine(cuda, False)
    with pytest.raises(InputError, match=f"^device {name}: not there; this machine has {there}( |$)"):
        tv.load_backbone("builtin", device=name)
    assert devices() == there.split(", ")


@pytest.mark.parametrize("name", ["gpu", "cuda:-1", "cuda:", "", "CPU", "cuda:0\n", "meta"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"expected auto, cpu, cuda, cuda:N \(a number from 0\) or mps"):
        find_device(name)


def test_float32_leaves_products_alone() -> None:
    assert isinstance(autocast("float32", CPU), nullcontext)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with autocast(precision, CPU):  # type: ignore[arg-type]
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    ],
)
def test_full_memory_is_one_line_with_a_way_out(error: RuntimeError) -> None:
    message = "^device cpu: out of memory in a step of 8 examples; take fewer$"
    with (
        pytest.raises(OutOfMemory, match=message) as raised,
        enough_memory(CPU, "a step of 8 examples", "take fewer"),
    ):
        raise error
    assert raised.value.exit_code == 1


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^shapes"), enough_memory(CPU, "a step", "take fewer"):
        raise RuntimeError("shapes do not match")


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_a_training_says_how_to_need_less(evaluator: tv.Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    part, backbone = evaluator.part("pets"), evaluator.backbone
    assert backbone.names
    monkeypatch.setattr(type(backbone), "forward", full)
    settings = tv.TrainSettings(batch_size=32, steps=2)
    expected = (
        r"^device cpu: out of memory in a training step of 32 examples; raise accumulation \(now 1\), which "
        r"computes the same step in smaller pieces, .*lower batch_size \(now 32\)$"
    )
    with pytest.raises(OutOfMemory, match=expected):
        tv.finetune(backbone, part, settings=settings)


def test_an_evaluation_says_how_to_need_less(
    evaluator: tv.Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluator.objective("pets") and evaluator.pretrained
    monkeypatch.setattr(type(evaluator.backbone), "forward", full)
    with pytest.raises(OutOfMemory, match=r"out of memory in a pass of 64 examples; lower the batch size"):
        evaluator.score(evaluator.pretrained, "pets", "test")


def test_a_model_that_is_too_large_is_not_called_broken(
    evaluator: tv.Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = deepcopy(evaluator.backbone)
    backbone.__dict__.pop("names", None)
    monkeypatch.setattr(type(backbone), "forward", full)
    with pytest.raises(
        OutOfMemory, match=r"^device cpu: out of memory in a pass over the smallest input; take"
    ):
        backbone.encoder_parameters()
