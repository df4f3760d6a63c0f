"""Selections of parameters, by the names they have in checkpoints."""

from collections.abc import Iterable

from taskvec.errors import InputError
from taskvec.patterns import Pattern
from taskvec.registry import nearest

_ATTENTION = r"(self_attn|encoder_attn|cross_attn|attn|attention|SelfAttention|EncDecAttention)"
_PROJECTION = "|".join(
    (
        rf"{_ATTENTION}\.(q|k|v|o|out|in|qkv|c)_?(proj|attn|lin)?",  # q_proj, c_attn, q_lin, out_proj
        rf"{_ATTENTION}\.(self\.|attention\.)?(query|key|value|output)",  # BERT, RoBERTa, ViT
        r"attention\.output\.dense",
        rf"{_ATTENTION}\.proj",  # beside a fused qkv
    )
)
_WEIGHT = rf"(.*\.)?(({_PROJECTION})\.weight|\w*attn\.in_proj_weight)"
_BIAS = rf"(.*\.)?(({_PROJECTION})\.bias|\w*attn\.in_proj_bias)"
_MLP = "|".join(
    (
        r"(intermediate|layer\.\d+\.output)\.dense",  # BERT, RoBERTa
        r"mlp\.\w+",  # CLIP, ViT, Llama, GPT-2, open_clip
        r"DenseReluDense\.\w+",  # T5
        r"ffn\.lin\d",  # DistilBERT
        r"layers\.\d+\.(fc|linear)\d",  # BART, torch
    )
)

SELECTIONS = {
    "all": r".*",
    "full": r".*",
    "attention": _WEIGHT,
    "attention-with-biases": rf"{_WEIGHT}|{_BIAS}",
    "attention-biases": _BIAS,
    "mlp": rf"(.*\.)?({_MLP})\.(weight|bias)",
}
"""Patterns that whole parameter names must match."""


def matching(names: Iterable[str], selection: str, where: str) -> list[str]:
    """Those of ``names`` that a selection holds.

    Args:
        selection: ``all`` (also called ``full``), ``attention`` (the weights of the query, key, value and
            output projections), ``attention-with-biases``, ``attention-biases``, ``mlp``, or ``re:PATTERN``,
            a regular expression that whole names match.
        where: what the model is called in messages.

    Raises: InputError when nothing is selected, or the selection is unknown.
    Source: the selections compared by Jin et al. 2025, arXiv:2407.07089.
    """
    pattern, known = _pattern(selection), list(names)
    found = [name for name in known if pattern.fullmatch(name)]
    if not found:
        shown = ", ".join(known[-3:]) or "none"
        others = ", ".join(one for one in SELECTIONS if one not in ("all", selection))
        raise InputError(
            f"{where}: selection {selection!r} leaves nothing to train of {len(known)} parameters "
            f"(such as {shown}); choose another: {others} or re:PATTERN"
        )
    return found


def _pattern(selection: str) -> Pattern:
    kind, colon, expression = selection.partition(":")
    if colon and kind == "re":
        return Pattern(expression, "selection")
    if selection not in SELECTIONS:
        raise InputError(
            f"no selection called {selection!r}; {nearest(selection, SELECTIONS)}, or re:PATTERN"
        )
    return Pattern(SELECTIONS[selection], "selection")
