"""What the names of parameters in checkpoints say: layers and depth, embeddings, heads, attention."""

import re
from collections.abc import Container, Iterable
from typing import Literal, NamedTuple

from taskvec.errors import InputError
from taskvec.patterns import Pattern, Stopwatch
from taskvec.reading import shown
from taskvec.registry import nearest

# Layers and depth

BLOCKS = r"(?:^|\.)(?:layers?|h|blocks?|resblocks)\.(\d+)\."
"""What precedes the name of a tensor inside a numbered block; the group is the number."""

_DIGITS = 9
"""Of the longest number of a block."""


class Block(NamedTuple):
    """Where a tensor lies: the stack of blocks, and its number there."""

    stack: str
    number: int


def block_of(name: str) -> Block | None:
    """The block that a tensor is part of, ``None`` for embeddings, final norms and heads.

    >>> block_of("model.layers.3.mlp.up_proj.weight")
    Block(stack='model.layers', number=3)
    """
    match = re.search(BLOCKS, name)
    if match is None or len(match[1]) > _DIGITS:
        return None
    return Block(name[: match.start(1) - 1], int(match[1]))


def renumber(name: str, number: int) -> str:
    """The name of the same tensor in another block of its stack.

    >>> renumber("model.layers.3.mlp.up_proj.weight", 0)
    'model.layers.0.mlp.up_proj.weight'
    """
    match = re.search(BLOCKS, name)
    assert match is not None
    return f"{name[: match.start(1)]}{number}{name[match.end(1) :]}"


def count_blocks(names: Iterable[str]) -> dict[str, int]:
    """The number of blocks of each stack."""
    counts: dict[str, int] = {}
    for block in map(block_of, names):
        if block is not None:
            counts[block.stack] = max(block.number + 1, counts.get(block.stack, 0))
    return counts


def block_depths(names: Iterable[str], blocks: str = BLOCKS, behind: Container[str] = ()) -> dict[str, float]:
    """The depth of each tensor in its stack of blocks, 0 to 1; those that are in none are left out.

    Args:
        behind: names of tensors in blocks behind the last layer, which are left out too.

    Raises: InputError if what ``blocks`` matches in a name is no number.
    """
    places: dict[str, tuple[str, int]] = {}
    last: dict[str, int] = {}
    pattern = Pattern(blocks, "rule 'lines': blocks")
    for name in names:
        match = None if name in behind else pattern.search(name)
        if match is None:
            continue
        digits = match[1] or ""
        if not (digits.isdecimal() and len(digits) <= _DIGITS):
            raise InputError(
                f"rule 'lines': blocks {blocks!r} finds {shown(match[1])} in {shown(name)}, expected the "
                "block's number"
            )
        places[name] = stack, number = name[: match.start()], int(digits)
        last[stack] = max(number, last.get(stack, 0))
    return {name: number / (last[stack] or 1) for name, (stack, number) in places.items()}


_NUMBERED = re.compile(r"(?:.*?\.)?\d+(?=\.)")


def layer_label(name: str) -> str:
    """What norms and cosines of single layers are listed by: the name up to its first number, or its module.

    >>> layer_label("encoder.layer.3.output.dense.weight"), layer_label("embeddings.word_embeddings.weight")
    ('encoder.layer.3', 'embeddings.word_embeddings')
    """
    numbered = _NUMBERED.match(name)
    return numbered[0] if numbered else name.rpartition(".")[0] or name


Grouping = Literal["layer", "tensor", "block"]
"""What goes together: a weight with its bias, every tensor by itself, or a block of many layers."""

_WEIGHT_OR_BIAS = re.compile(r"^(weight|bias|gamma|beta|running_mean|running_var)(?=_|$)|(^|_)(weight|bias)$")


def group_of(name: str, by: Grouping = "layer") -> str:
    """The layer or block that a tensor belongs to; one that is in none is a group by itself.

    >>> group_of("encoder.layer.3.output.dense.bias"), group_of("attn.in_proj_bias"), group_of("visual.proj")
    ('encoder.layer.3.output.dense', 'attn.in_proj', 'visual.proj')
    """
    if by != "layer":
        return name if by == "tensor" else layer_label(name)
    module, _, leaf = name.rpartition(".")
    stem = _WEIGHT_OR_BIAS.sub("", leaf).strip("_")
    return ".".join(filter(None, (module, stem))) or name


def grouped(names: Iterable[str], by: Grouping = "layer") -> dict[str, list[str]]:
    """The tensors of each layer or block, in the order of the names."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(group_of(name, by), []).append(name)
    return groups


# Embeddings and heads

_EMBEDDINGS = (
    r"embed_tokens|tokens_embed|word_embeddings?|token_embedding|tok_embeddings|embeddings|embed_in"
    r"|shared|wte"
)
_HEADS = (
    r"lm_head|lm_head\.decoder|lm_head\.out_proj|generator_lm_head|predictions|predictions\.decoder|lm_loss"
    r"|predictions\.dense|embed_out|output_projection|pred_layer\.proj|vocab_projector|embedding_decoder"
)
_EMBEDDING = re.compile(rf"(^|\.)({_EMBEDDINGS})\.weight$")
_HEAD = re.compile(rf"(^|\.)({_HEADS})\.weight$|^(head|output)\.weight$")
_BY_TOKEN = re.compile(
    rf"(^|\.)({_EMBEDDINGS}|{_HEADS})\.(weight|bias)$|^(head|output)\.(weight|bias)$|final_logits_bias$"
)
_LOOKUP = re.compile(r"emb|wte|wpe|shared|relative_attention_bias")

CLASSIFIERS = ("classifier", "score")
"""What transformers calls the head of a classifier, of which a model has one."""


def is_embedding(name: str) -> bool:
    """Whether a matrix has the embedding of a token in each row."""
    return _EMBEDDING.search(name) is not None


def is_head(name: str) -> bool:
    """Whether a matrix belongs to an output layer over the tokens."""
    return _HEAD.search(name) is not None


def goes_by_token(name: str) -> bool:
    """Whether a tensor of this name has an entry for each token."""
    return _BY_TOKEN.search(name) is not None


def is_lookup(name: str) -> bool:
    """Whether a module or a tensor in it is a table to look up rows in, of tokens or anything else."""
    return _LOOKUP.search(name) is not None


def comes_before_blocks(name: str) -> bool:
    """Whether a tensor outside the blocks comes before them: embeddings do, norms and heads do not."""
    return is_lookup(name) and "embed_out" not in name


# Selections

_PROJECTION = "|".join(
    (
        r"(q|k|v|o|out|in|qkv|kv|c)_?(proj|attn|lin)?(\.linear)?",  # q_proj, c_attn, q_lin
        r"(q|kv|o)_[ab]_proj(_with_mqa)?",  # of low rank: DeepSeek
        r"in_proj_(qkvz?|z|a|b|ba)",  # linear attention: Qwen3-Next
        r"(to_|w|W)(q|k|v|o|kv|qkv|out|query|key)|final",  # ModernBERT, MPT, SwiftFormer
        r"((self|attention|attn)\.)?(projection_)?(query|key|value|output|in)(_proj)?",  # BERT
        r"multihead_attn\.out_proj|output(_query)?\.dense",
        r"proj|projection|projection_layer|dense|post(\.linear)?|query_key_value",  # beside a fused qkv
    )
)
_INSIDE_ATTENTION = (
    r"(?=.*[aA]tt(n|ention))(.*\.)?\w*[aA]tt(n|ention)(_text|_(token|image)_to_(token|image))?\."
)
_WEIGHT = rf"{_INSIDE_ATTENTION}(({_PROJECTION})\.weight|in_proj_weight)|(.*\.)?rel_attn\.[qkvo]"
_BIAS = rf"{_INSIDE_ATTENTION}(({_PROJECTION})\.bias|in_proj_bias)"
_INSIDE = r"(\.(?!\w*([nN]orm|_ln\b))\w+)+"
_MLP = "|".join(
    (
        r"(intermediate|(layers?|blocks)\.\d+\.output)(_query)?\.dense",  # BERT, RoBERTa, Swin v2
        r"mlp\.\w+",  # CLIP, ViT, Llama, GPT-2, open_clip
        rf"(?!\w*position_bias)\w*(mlp|mlp_block|ffn|feed_forward\d?|moe){_INSIDE}",  # DistilBERT, experts
        r"DenseReluDense\.\w+",  # T5
        r"layers\.\d+\.(fc|linear)\d",  # BART, torch
        r"albert_layers\.\d+\.ffn(_output)?",
        r"layers\.\d+\.(intermediate|output)\.conv1d",  # SqueezeBERT
        r"mixer\.(shared_experts\.)?(up|down)_proj",  # Nemotron-H
        r"ff\.layer_\d",  # XLNet
    )
)
_EXPERTS = r"(mlp|feed_forward|\w*moe|mixer)\.(shared_)?experts\.(gate_up|gate|up|down)_proj(_bias)?"
"""Of many experts in one tensor."""
_TABLES = (
    rf"({_EMBEDDINGS}|wpe|embed_positions|positions_embed|position_embeddings?|token_type_embeddings?)\.weight"
    r"|position_embeddings?|positional_embedding"
)
_OUTPUT = rf"({_HEADS})\.(weight|bias)|final_logits_bias"
_EMBED = rf"(.*\.)?({_TABLES})"
_TOP = rf"(.*\.)?({_OUTPUT})|(head|output)\.(weight|bias)"

SELECTIONS = {
    "all": r".*",
    "full": r".*",
    "attention": _WEIGHT,
    "attention-with-biases": rf"{_WEIGHT}|{_BIAS}",
    "attention-biases": _BIAS,
    "mlp": rf"(.*\.)?(({_MLP})\.(weight|bias)|{_EXPERTS})",
    "embeddings": _EMBED,
    "head": _TOP,
    "body": rf"(?!({_EMBED}|{_TOP})$).*",
}
"""Patterns that whole parameter names must match."""

_PATIENCE = 60.0
"""Seconds that one of these may take: a mixture can have a hundred thousand tensors."""


def select_names(names: Iterable[str], selection: str, where: str) -> list[str]:
    """Those of ``names`` that a selection holds.

    Args:
        selection: ``all`` (also called ``full``), ``attention`` (the weights of the query, key, value and
            output projections), ``attention-with-biases``, ``attention-biases``, ``mlp``, ``embeddings`` (of
            tokens, their places and types), ``head`` (the output layer over the tokens), ``body`` (all but
            these two), or ``re:PATTERN``, a regular expression that whole names match.
        where: what the model is called in messages.

    Raises: InputError when nothing is selected, or the selection is unknown.
    Source: the selections compared by Jin et al. 2025, arXiv:2407.07089.
    """
    pattern, known = _pattern(selection), list(names)
    selected = [name for name in known if pattern.fullmatch(name)]
    if not selected:
        examples = ", ".join(known[-3:]) or "none"
        others = ", ".join(name for name in SELECTIONS if name != "all" and _holds_any(name, known))
        tied = "; an output layer that shares the embeddings goes by their name" * (selection == "head")
        raise InputError(
            f"{where}: selection {selection!r} leaves nothing to train of {len(known)} parameters "
            f"(such as {examples}){tied}; choose another: {others} or re:PATTERN"
        )
    return selected


def _holds_any(selection: str, names: Iterable[str]) -> bool:
    pattern = _pattern(selection)
    return any(pattern.fullmatch(name) for name in names)


def check_selection(selection: str) -> None:
    """Refuse what is no selection. Raises: InputError."""
    if selection not in SELECTIONS:
        _pattern(selection)


def _pattern(selection: str) -> Pattern:
    kind, colon, expression = selection.partition(":")
    if colon and kind == "re":
        return Pattern(expression, "selection")
    if selection not in SELECTIONS:
        raise InputError(
            f"no selection called {selection!r}; {nearest(selection, SELECTIONS)}, or re:PATTERN"
        )
    return Pattern(SELECTIONS[selection], "selection", Stopwatch(_PATIENCE))
