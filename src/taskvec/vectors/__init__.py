"""Directions in weight space: task vectors, their algebra, geometry and files."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskvec.vectors.combining import combine
    from taskvec.vectors.edited import EditedWeights
    from taskvec.vectors.expression import parse_expression
    from taskvec.vectors.geometry import gram
    from taskvec.vectors.info import BaseInfo, VectorInfo
    from taskvec.vectors.lora.writing import Extraction, save_adapter
    from taskvec.vectors.vector import TaskVector, apply, similarity

_HOME = {
    "BaseInfo": "info",
    "EditedWeights": "edited",
    "Extraction": "lora.writing",
    "TaskVector": "vector",
    "VectorInfo": "info",
    "apply": "vector",
    "combine": "combining",
    "gram": "geometry",
    "parse_expression": "expression",
    "save_adapter": "lora.writing",
    "similarity": "vector",
}
"""The file of each name; imported when the name is used, as whoever reads a header needs one of them."""

__all__ = [
    "BaseInfo",
    "EditedWeights",
    "Extraction",
    "TaskVector",
    "VectorInfo",
    "apply",
    "combine",
    "gram",
    "parse_expression",
    "save_adapter",
    "similarity",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
