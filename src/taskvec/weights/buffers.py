"""Tensors that checkpoints hold although the model computes them, or has them under another name too."""

import re
from collections.abc import Container, Iterable, Mapping

from taskvec.later import torch
from taskvec.names import goes_by_token, is_embedding, is_head
from taskvec.weights.blocks import TensorSpec
from taskvec.weights.configs import config_beside
from taskvec.weights.lazy import Weights
from taskvec.weights.network import network_of

_COMPUTED = re.compile(
    r"(^|\.)((original_)?inv_freq|(cos|sin)_cached|relative_coords_table|relative_position_index|attn_mask"
    r"|causal_mask|position_ids|token_type_ids|_float_tensor|embed_positions\.weights)$"
)
_MASK = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention)\.(masked_)?bias$")

_PAIRS = 1024
"""Of embeddings and heads in a model that are compared at most."""

_SHARED = re.compile(r"(^|\.)shared\.weight$")


def is_computed(name: str, spec: TensorSpec) -> bool:
    """Whether a tensor is a buffer that the model computes: rotary frequencies, positions, attention masks.

    >>> is_computed("h.0.attn.bias", TensorSpec((1, 1, 64, 64), torch.float32))
    True
    """
    is_mask = spec.numel == 1 or (len(spec.shape) == 4 and spec.shape[:2] == (1, 1))
    return _COMPUTED.search(name) is not None or (is_mask and _MASK.search(name) is not None)


def find_twins(weights: Weights, names: Iterable[str], among: Container[str]) -> dict[str, str]:
    """For each of some tensors that is an embedding or a head, one of the other kind with the same numbers.

    Args:
        among: the names that those may have.

    Cost: reads embeddings and heads of the same shape; none of a model that has very many.
    """
    matrices = [name for name in weights if goes_by_token(name) and len(weights.spec(name).shape) > 1]
    asked = {*names}.intersection(matrices)
    held = [name for name in matrices if name in among]
    if len(asked) * len(held) > _PAIRS:
        return {}
    twins = {name: next((n for n in held if _are_twins(weights, name, n)), None) for name in asked}
    return {name: twin for name in matrices if (twin := twins.get(name)) is not None}


def _are_twins(weights: Weights, name: str, other: str) -> bool:
    alike = weights.spec(name) == weights.spec(other) and _may_be_tied(name, other)
    return alike and _are_equal(weights, name, other)


def find_tied(base: Weights, names: Iterable[str], seen: Weights) -> dict[str, str]:
    """For heads of the base among ``names``: the embedding that they are in a model that ties the two, as its
    config.json says."""
    heads = [name for name in names if is_head(name)]
    if len(heads) != 1:
        return {}
    alike = [n for n in seen if is_embedding(n) and seen.spec(n).shape == base.spec(heads[0]).shape]
    return {heads[0]: alike[0]} if len(alike) == 1 and _ties(seen) else {}


def _ties(weights: Weights) -> bool:
    """Whether the config.json beside weights ties the head to the embedding, by itself or by default."""
    content = config_beside(weights.folder)
    for config in (content, content.get("text_config")):
        if isinstance(config, Mapping) and "tie_word_embeddings" in config:
            return config["tie_word_embeddings"] is True
    network = network_of(weights)
    return network is not None and any(map(is_head, network.tied))


def _may_be_tied(name: str, other: str) -> bool:
    """Whether networks have one tensor in both places: an embedding and a head, or a shared embedding."""
    return name != other and (is_head(name) != is_head(other) or any(map(_SHARED.search, (name, other))))


def _are_equal(weights: Weights, name: str, other: str) -> bool:
    pairs = ((weights.read(name, rows), weights.read(other, rows)) for rows in weights.row_blocks(name))
    return all(torch.equal(*pair) for pair in pairs)
