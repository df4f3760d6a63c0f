"""Prompts and answers as the tokens that a language model reads and is scored on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from taskvec.errors import InputError
from taskvec.models.language import LanguageModel, Passage
from taskvec.reading import shown
from taskvec.tasks.objective import LOGITS, Prepared


class Exchange(NamedTuple):
    """A prompt with the answers that are ranked, or the one that is wanted."""

    prompt: str
    answers: tuple[str, ...]


class Row(NamedTuple):
    """What the logits of one row are compared to."""

    token: int
    answer: int
    """The answer it belongs to, counted among those of the prompt."""
    right: bool
    """Whether that is the answer that is wanted."""
    ranked: bool
    """Whether the row counts in ranking: the end of a text does in encoder-decoder models alone."""


@dataclass(frozen=True)
class Form:
    """How a prompt and an answer become tokens.

    A causal model reads one text, the prompt, ``delimiter`` unless white space is there, and the answer; what
    the prompt alone gives is the context. An encoder-decoder model has the prompt in its encoder. Either way
    the answer is followed by the token that ends a text, if the tokenizer has one. A prompt that is too long
    loses its beginning, in an encoder its end.

    Args:
        name: of the task, for messages.
        max_length: tokens that a prompt is cut to.
    """

    model: LanguageModel
    name: str
    delimiter: str = " "
    max_length: int | None = None

    @property
    def end(self) -> list[int]:
        """The token that ends a text; none if the tokenizer has none."""
        token = self.model.tokenizer.eos_token_id
        return [] if token is None else [token]

    def passage(self, prompt: str, answer: str) -> Passage:
        """The prompt as context, the answer and the end as target.

        Raises: InputError for an answer without a token, or longer than the model's context.
        """
        if self.model.encodes:
            context, target = self.model.tokenise(prompt).tokens, self._without_end(answer)
        else:
            context, target = self._parted(prompt, answer)
        if not target:
            raise InputError(f"{self.name}: the answer {shown(answer)} has no token of its own")
        return Passage(
            self._fitted(context, len(target + self.end), f"the answer {shown(answer)}"), target + self.end
        )

    def context(self, prompt: str, room: int) -> list[int]:
        """The prompt alone, with room for so many tokens behind it."""
        tokens = self.model.tokenise(prompt).tokens if self.model.encodes else self._without_end(prompt)
        return self._fitted(tokens, room, "what is written (sampling: max_new_tokens)")

    def _parted(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """The tokens of prompt and answer as one text, parted where it leaves those of the prompt alone."""
        between = self.delimiter if prompt and not prompt[-1].isspace() else ""
        before, whole = self._without_end(prompt), self._without_end(prompt + between + answer)
        pairs = enumerate(zip(before, whole, strict=False))
        same = next((at for at, (one, other) in pairs if one != other), min(len(before), len(whole)))
        return whole[:same], whole[same:]

    def _without_end(self, text: str) -> list[int]:
        tokens = self.model.tokenise(text).tokens
        return tokens[:-1] if tokens[-1:] == self.end else tokens

    def _fitted(self, context: list[int], room: int, what: str) -> list[int]:
        """The context cut to what the model and the task take, never empty."""
        model = self.model
        context = context or self._first()
        most = model.positions
        prompt = "" if model.encodes else ", prompt included"
        if most is not None and room + bool(prompt) > most:
            raise InputError(
                f"{self.name}: {what} takes {room} tokens, and {model.ref} reads {most}{prompt}; "
                "shorten it, or take a model of a longer context"
            )
        bounds = [self.max_length, most if most is None or model.encodes else most - room]
        limit = min((bound for bound in bounds if bound is not None), default=len(context))
        if len(context) <= limit:
            return context
        if model.encodes:
            return [*context[: limit - 1], context[-1]]
        begins = int(context[0] == model.tokenizer.bos_token_id and limit > 1)
        return context[:begins] + context[len(context) - limit + begins :]

    def _first(self) -> list[int]:
        """What an empty text begins with: the token that begins a text, or ends the one before."""
        tokenizer = self.model.tokenizer
        tokens = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
        return [next((token for token in tokens if token is not None), 0)]


class Exchanges(Prepared):
    """Prompts with the wanted answers, or with all answers where they are ranked.

    Labels are (R, 4), int64, a :class:`Row` each.
    """

    def __init__(self, form: Form, exchanges: Sequence[Exchange], right: Tensor, *, ranked: bool) -> None:
        self._model = form.model
        self._passages: list[list[Passage]] = []
        self._rows: list[Tensor] = []
        for exchange, wanted in zip(exchanges, right.tolist(), strict=True):
            check_answered(form.name, exchange)
            answers = range(len(exchange.answers)) if ranked else [wanted]
            passages = [form.passage(exchange.prompt, exchange.answers[answer]) for answer in answers]
            self._passages.append(passages)
            kept = zip(answers, passages, strict=True)
            rows = [row for at, passage in kept for row in _rows(passage, at, at == wanted, form)]
            self._rows.append(torch.tensor(rows))
        self.sizes = torch.tensor([sum(map(form.model.size, passages)) for passages in self._passages])
        self.rows = torch.tensor([len(rows) for rows in self._rows])
        longest = max(map(len, self._rows), default=1)
        self.together = max(1, LOGITS // (longest * form.model.dim))

    def inputs(self, places: Tensor) -> dict[str, Tensor]:
        """All passages of the examples at some places."""
        return self._model.stack([passage for place in places.tolist() for passage in self._passages[place]])

    def targets(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and index of their rows."""
        rows = [torch.zeros(0, 4, dtype=torch.int64), *(self._rows[place] for place in places.tolist())]
        return torch.cat(rows), places.repeat_interleave(self.rows[places])


def check_answered(name: str, exchange: Exchange) -> None:
    """Refuse an exchange without an answer. Raises: InputError."""
    if not exchange.answers:
        raise InputError(
            f"{name}: the data have no labels, expected an answer to each prompt; name the field under "
            "'data' as 'label', or say \"prompt: ''\" to take the texts themselves as answers"
        )


def _rows(passage: Passage, answer: int, right: bool, form: Form) -> list[Row]:
    ends = 0 if form.model.encodes else len(form.end)
    counted = len(passage.target) - ends
    return [Row(token, answer, right, at < counted) for at, token in enumerate(passage.target)]
