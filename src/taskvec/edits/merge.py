"""A merge: what recipes of any dialect are turned into before a model is written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from taskvec.edits.passes import Passes
from taskvec.urls import without_secrets
from taskvec.vectors import TaskVector
from taskvec.weights import Weights


@dataclass(frozen=True)
class Merge:
    """A model to be written, with its record and notes.

    Args:
        weights: the edited model; lazy, nothing is computed before a tensor is read.
        record: provenance for the manifest.
        like: the model whose config and tokenizer files go with the output.
        notes: for the user: what was assumed, where another tool's result differs.
        max_shard_size: bytes of a shard of the output.
        inputs: what is read, by the names of the recipe; their fingerprints complete the record.
        vectors: by the names of the recipe; their provenance completes it too, once the base has been read.
        passes: finds how often the inputs are read; more than once for rules that look at a tensor, or at
            the whole model, first.
        allow_nonfinite: write NaN and infinities.
        files: name -> text of side files written in place of those of ``like``, such as a config.json; an
            empty text leaves one out.
        faults: why the result, in a folder, would not load as it is.
        allow_unloadable: write such a result too.
    """

    weights: Weights
    record: Mapping[str, Any]
    like: Weights
    notes: tuple[str, ...] = ()
    max_shard_size: float = 5e9
    inputs: Mapping[str, Weights] = field(default_factory=dict)
    vectors: Mapping[str, TaskVector] = field(default_factory=dict)
    passes: Callable[[], Passes] = Passes
    allow_nonfinite: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    allow_unloadable: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "record", without_secrets(self.record))
