"""Directions in weight space: task vectors, their algebra, geometry and files."""

from taskvec.vectors.combining import combine
from taskvec.vectors.edited import EditedWeights
from taskvec.vectors.expression import parse_expression
from taskvec.vectors.geometry import gram
from taskvec.vectors.info import BaseInfo, VectorInfo
from taskvec.vectors.lora.writing import Extraction, save_adapter
from taskvec.vectors.vector import TaskVector, apply, similarity

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
