"""Tensors that checkpoints hold although the model computes them, or has them under another name too."""

import re
from collections.abc import Container, Mapping

import torch

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

_SHARED = re.compile(r"(^|\.)shared\.weight$")


def is_computed(name: str, spec: TensorSpec) -> bool:
    """Whether a tensor is a buffer that the model computes: rotary frequencies, positions, attention masks.

    >>> is_computed("h.0.attn.bias", TensorSpec((1, 1, 64, 64), torch.float32))
    True
    """
    is_mask = spec.numel == 1 or (len(spec.shape) == 4 and spec.shape[:2] == (1, 1))
    return _COMPUTED.search(name) is not None or (is_mask and _MASK.search(name) is not None)


def twin_of(weights: Weights, name: str, among: Container[str]) -> str | None:
    """A matrix of the same model, an embedding or a head as ``name`` is, that holds the same numbers.

    Args:
        among: the names that it may have.

    Cost: reads both.
    """
    spec = weights.spec(name)
    if not goes_by_token(name) or len(spec.shape) < 2:
        return None
    for other in weights:
        alike = other in among and weights.spec(other) == spec and _may_be_tied(name, other)
        if alike and _are_equal(weights, name, other):
            return other
    return None


def tied_head(base: Weights, name: str, seen: Weights) -> str | None:
    """The embedding that a head of the base is in a model that ties the two, as its config.json says."""
    if not is_head(name):
        return None
    alike = [n for n in seen if is_embedding(n) and seen.spec(n).shape == base.spec(name).shape]
    return alike[0] if len(alike) == 1 and _ties(seen) else None


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
    if not goes_by_token(other) or other == name:
        return False
    return is_head(name) != is_head(other) or any(map(_SHARED.search, (name, other)))


def _are_equal(weights: Weights, name: str, other: str) -> bool:
    pairs = ((weights.read(name, rows), weights.read(other, rows)) for rows in weights.row_blocks(name))
    return all(torch.equal(*pair) for pair in pairs)
