"""Where a model computes and how precisely: devices by name, autocast, a device whose memory is full.

Reading this file imports nothing heavy, so that options and settings may use it.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator

from taskvec.errors import InputError, OutOfMemory
from taskvec.group import Group, current
from taskvec.reading import shown

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bf16", "fp16"]
"""Of matrix products; weights, gradients and optimizer stay in float32."""

_NAME = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


def device_name(name: str) -> str:
    """A name that a device may have on some machine.

    Raises: InputError.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"device {shown(name)}: expected auto, cpu, cuda, cuda:N (a number from 0) or mps")
    return name


DeviceName = Annotated[str, AfterValidator(device_name)]
"""A field of settings that names a device."""


def find_device(name: "str | torch.device") -> "torch.device":
    """The device of that name; ``auto`` is the first CUDA device, or the CPU where there is none.

    Raises: InputError, with those that are there, for one that is not.
    """
    import torch

    if isinstance(name, torch.device):
        return name
    there, group = devices(), current()
    if not group.alone and device_name(name) != "cpu":
        return _device_of(group, name, there)
    if device_name(name) == "auto":
        return torch.device("cuda" if "cuda:0" in there else "cpu")
    if (name if name != "cuda" else "cuda:0") not in there:
        built = torch.version.cuda is None and name.startswith("cuda")
        why = f" (torch {torch.__version__} is built without CUDA; pytorch.org has builds with it)"
        raise InputError(f"device {name}: not there; this machine has {', '.join(there)}{why * built}")
    return torch.device(name)


def _device_of(group: Group, name: str, there: Sequence[str]) -> "torch.device":
    """A device of its own for a process of a group; all compute on the CPU where there is no other."""
    import torch

    if name == "auto" and "cuda:0" not in there:
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise InputError(
            f"device {name}: is one, and torchrun gives every process a device of its own; take cuda, or cpu"
        )
    if (own := f"cuda:{group.place}") not in there:
        raise InputError(
            f"device {own}: not there; this machine has {', '.join(there)}: start a process for each device "
            "(--nproc-per-node), or take --device cpu"
        )
    return torch.device(own)


def devices() -> list[str]:
    """Names of the devices of this machine, the CPU first."""
    import torch

    cuda = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def describe_device(device: "torch.device") -> str:
    """What records call a device: ``cpu``, or the name of the chip behind ``cuda:0``."""
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def autocast(precision: Precision, device: "torch.device") -> AbstractContextManager[object]:
    """Matrix products in bfloat16 or float16 on a device, or as they are for ``"float32"``."""
    import torch

    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


@contextmanager
def enough_memory(device: "torch.device", at_once: str, remedy: str) -> Iterator[None]:
    """Say in one line that the memory of a device is full.

    Args:
        at_once: how much was computed, such as ``training steps of 128 examples``.
        remedy: what to try.

    Raises: OutOfMemory in place of what torch raises.
    """
    try:
        yield
    except RuntimeError as error:
        if not _memory_is_full(error):
            raise
        raise OutOfMemory(f"device {device}: out of memory in {at_once}; {remedy}") from None


def _memory_is_full(error: RuntimeError) -> bool:
    """Whether an error is about memory: torch has a type for that on CUDA alone."""
    import torch

    said = str(error)
    signs = ("MPS backend out of memory", "DefaultCPUAllocator: can't allocate")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in said for sign in signs)
