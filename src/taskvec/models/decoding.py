"""Texts that a language model writes: the likeliest tokens, or drawn ones that a seed fixes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from taskvec.errors import Diverged

NextLogits = Callable[[Tensor], Tensor]
"""Token ids (n, length) to the logits (n, V) of the token that follows, both on the CPU."""

TOGETHER = 32
"""Texts that are written at once. Always, and not what memory allows, so that no text depends on it."""


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen.

    Args:
        tokens: that are written at most.
        temperature: 0 takes the likeliest token.
        top_k: only the so many likeliest tokens; 0 for all.
        top_p: only the likeliest tokens that have this probability together.
        repetition_penalty: logits of tokens that stand in the text are divided by it, negative ones
            multiplied. Source: Keskar et al. 2019 (arXiv:1909.05858).
    """

    tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0


@torch.no_grad()
def continuations(
    network: nn.Module | NextLogits,
    contexts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    end: Sequence[int],
    start: int | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """The tokens that follow each context, up to the first of the ``end`` tokens and without it.

    Args:
        network: a causal or encoder-decoder model of transformers, at whatever values it holds, in eval mode;
            or a function that gives the logits of the next token.
        contexts: token ids, one or more each; of an encoder-decoder model what the encoder reads.
        start: the token that the decoder of an encoder-decoder model begins with.
        seed: decides what is drawn. Text i takes the i-th row of uniform numbers, a number a token, so it
            is the same whatever other texts are written and whatever was drawn before.

    Only contexts of one length go through the network together: nothing is padded on the left.
    Raises: Diverged when the model's outputs are no longer finite.
    """
    drawn = decoding.temperature > 0
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(
        len(contexts) if drawn else 0, decoding.tokens, generator=generator, dtype=torch.float64
    )
    written: list[list[int]] = [[] for _ in contexts]
    for places in _together(contexts):
        ids = torch.tensor([contexts[place] for place in places])
        uniform = draws[places] if drawn else None
        if isinstance(network, nn.Module):
            rows = _written(network, ids, decoding, end, start, uniform)
        else:
            rows = _step_by_step(network, ids, decoding, end, uniform)
        for place, row in zip(places, rows, strict=True):
            written[place] = row
    return written


def _together(contexts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Places of contexts of one length, in their order."""
    by_length = sorted(range(len(contexts)), key=lambda place: len(contexts[place]))
    for _, group in groupby(by_length, key=lambda place: len(contexts[place])):
        alike = list(group)
        yield from (alike[start : start + TOGETHER] for start in range(0, len(alike), TOGETHER))


def _written(
    network: Any, ids: Tensor, decoding: Decoding, end: Sequence[int], start: int | None, draws: Tensor | None
) -> list[list[int]]:
    """New tokens after contexts (n, length)."""
    from transformers import LogitsProcessorList

    both = bool(network.config.is_encoder_decoder)
    before = 1 if both else ids.shape[1]  # the decoder's start token, or the context
    ids = ids.to(next(network.parameters()).device)
    with _settings(network, decoding, end, start) as settings:
        full = network.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            logits_processor=LogitsProcessorList([_Choice(decoding, draws, before)]),
        )
    return [_until(row, end) for row in full[:, before:].tolist()]


def _step_by_step(
    logits: NextLogits, ids: Tensor, decoding: Decoding, end: Sequence[int], draws: Tensor | None
) -> list[list[int]]:
    """The same by a function that reads the whole text for every token."""
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    before, ends, going = ids.shape[1], torch.tensor(list(end)), torch.ones(len(ids), dtype=torch.bool)
    penalty: list[Any] = [RepetitionPenaltyLogitsProcessor(float(decoding.repetition_penalty))]
    steps: Any = LogitsProcessorList([*penalty, _Choice(decoding, draws, before)])
    while ids.shape[1] < before + decoding.tokens and going.any():
        chosen = steps(ids, logits(ids)).argmax(-1)
        ids = torch.cat([ids, chosen[:, None]], 1)
        going &= ~torch.isin(chosen, ends)
    return [_until(row, end) for row in ids[:, before:].tolist()]


def _until(row: Sequence[int], end: Sequence[int]) -> list[int]:
    """The tokens before the first one that ends a text."""
    stop = next((at for at, token in enumerate(row) if token in end), len(row))
    return list(row[:stop])


@contextmanager
def _settings(network: Any, decoding: Decoding, end: Sequence[int], start: int | None) -> Iterator[Any]:
    """What ``generate`` goes by: these settings alone, whatever the checkpoint's own file says."""
    from transformers import GenerationConfig

    make: Any = GenerationConfig
    own = network.generation_config
    settings = make(
        max_new_tokens=decoding.tokens,
        do_sample=False,  # drawing is ours, see _Choice
        num_beams=1,
        repetition_penalty=decoding.repetition_penalty,
        eos_token_id=list(end) or None,
        pad_token_id=end[0] if end else 0,
        decoder_start_token_id=start,
    )
    network.generation_config = settings
    try:
        yield settings
    finally:
        network.generation_config = own


def ends_of(network: Any) -> list[int]:
    """The tokens that end a text by the checkpoint's own settings."""
    stated = getattr(getattr(network, "generation_config", None), "eos_token_id", None)
    return [] if stated is None else [stated] if isinstance(stated, int) else list(stated)


class _Choice:
    """The next token: the likeliest, or where the distribution function passes a uniform number."""

    def __init__(self, decoding: Decoding, draws: Tensor | None, before: int) -> None:
        self._draws, self._before = draws, before
        self._warps = _warps(decoding) if draws is not None else []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if bool(scores.isnan().any()):
            raise Diverged("the model's outputs are not finite; the coefficient is too large")
        if self._draws is None:
            return scores
        for warp in self._warps:
            scores = warp(input_ids, scores)
        step = input_ids.shape[1] - self._before
        chosen = inverted(scores, self._draws[:, step].to(scores.device))
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def _warps(decoding: Decoding) -> list[Any]:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warps: list[Any] = [TemperatureLogitsWarper(float(decoding.temperature))]
    if decoding.top_k:
        warps.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p < 1:
        warps.append(TopPLogitsWarper(decoding.top_p))
    return warps


def inverted(logits: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (n,) at which the distribution function of softmax(logits), (n, V), passes uniform numbers (n,).

    In float64, where the device has it. A token of no probability is never chosen.
    """
    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    below = logits.to(wide).softmax(-1).cumsum(-1)
    wanted = uniform.to(wide)[:, None] * below[:, -1:]
    return torch.searchsorted(below, wanted, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
