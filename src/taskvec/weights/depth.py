"""How many layers a model has: by its config.json, as blocks for further tokens are stored behind them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from taskvec.names import block_of, count_blocks
from taskvec.weights.configs import config_beside

DEPTHS = frozenset(
    {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "encoder_layers"}
    | {"decoder_layers", "depth"}
)
"""Settings that say how many layers a stack has."""

PREDICTING = "num_nextn_predict_layers"
"""How many blocks behind the last layer predict further tokens."""

_APART = re.compile(r"(^|\.)mtp(\.|$)")
"""What stacks of such blocks alone are called."""

_PREDICTS = re.compile(r"\.(eh_proj|enorm|hnorm|shared_head)\.")
"""Modules that only a block that predicts further tokens has."""


def flatten(config: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Settings of a config and of those inside it, by dotted names."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def count_layers(names: Iterable[str], folder: Path | None) -> dict[str, int]:
    """The number of layers of each stack of blocks; blocks from there on are not among its layers.

    The config.json in the folder decides where it can be told which stack it speaks of.

    Raises: CorruptFile.
    """
    names, config = list(names), config_beside(folder)
    counts = {stack: 0 if _APART.search(stack) else number for stack, number in count_blocks(names).items()}
    stated = _stated(config, *DEPTHS)
    unstated = [stack for stack, number in counts.items() if number and number not in stated]
    for stack in unstated:
        behind = (counts[stack] - more for more in _stated(config, PREDICTING))
        known = next((number for number in behind if number in stated), None)
        fewer = [number for number in stated if number < counts[stack] and number not in counts.values()]
        if known is not None or (fewer and len(unstated) == 1):
            counts[stack] = known or max(fewer)
        elif not stated:
            counts[stack] = min([counts[stack], *_predicting(names, stack)])
    return counts


def names_behind(names: Iterable[str], folder: Path | None) -> frozenset[str]:
    """The tensors of blocks that are stored behind the last layer.

    Raises: CorruptFile.
    """
    names = list(names)
    counts = count_layers(names, folder)
    blocks = ((name, block_of(name)) for name in names)
    return frozenset(name for name, block in blocks if block and block.number >= counts[block.stack])


def _stated(config: Mapping[str, Any], *keys: str) -> set[int]:
    """The positive numbers that a config, or one inside it, has under the keys."""
    settings = flatten(config)
    return {value for key, value in settings if key.rpartition(".")[2] in keys and type(value) is int} - {0}


def _predicting(names: Iterable[str], stack: str) -> set[int]:
    """The numbers of the blocks of a stack that predict further tokens."""
    blocks = (block_of(name) for name in names if _PREDICTS.search(name))
    return {block.number for block in blocks if block and block.stack == stack and block.number}
