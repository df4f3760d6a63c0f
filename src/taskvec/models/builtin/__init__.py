"""The model that comes with the package: a small CLIP-like dual encoder for the built-in world."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskvec.models.builtin.backbone import BuiltinBackbone, load, load_builtin, random_initialised

_NAMES = ("BuiltinBackbone", "load", "load_builtin", "random_initialised")

__all__ = ["BuiltinBackbone", "load", "load_builtin", "random_initialised"]


def __getattr__(name: str) -> Any:
    # Finding the package (to list known models) must not cost an import of torch.
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.backbone"), name)
