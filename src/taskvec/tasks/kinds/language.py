"""Language modelling: the loss of every token in windows over texts, perplexity and bits per byte."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from taskvec.errors import InputError
from taskvec.tasks.intervals import of_ratio
from taskvec.tasks.objective import LOGITS, Batch, Objective, Prepared, Tally
from taskvec.tasks.score import Score
from taskvec.tasks.source import Rows, SplitName
from taskvec.tasks.sources.texts import Text
from taskvec.tasks.split import Split
from taskvec.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.models.backbone import Backbone
    from taskvec.models.language import LanguageModel, Passage, Tokenised

_HIGHEST = 700.0
"""Of a loss whose exponential is a number."""


class Language(Task):
    """Texts whose every token is predicted from those before it in its window."""

    outputs = "tokens"

    kind: Literal["language"] = "language"
    context: int = Field(default=256, ge=2, lt=2**31)
    """Tokens of a window."""
    stride: PositiveInt | None = None
    """Tokens from the beginning of a window to that of the next; ``context`` by default."""
    packed: bool = False
    """Whether texts are joined into one before windows are cut; otherwise no window goes past its text."""
    metric: Literal["perplexity", "bits_per_byte"] = "perplexity"
    """Less is better for both."""

    @field_validator("data", mode="before")
    @classmethod
    def _without_labels(cls, value: object) -> object:
        tables = ("jsonl", "csv", "parquet", "hf")
        if isinstance(value, dict) and value.get("source") in tables:
            return {"label": None, **value}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.stride is not None and self.stride > self.context:
            raise ValueError(
                f"stride: {self.stride} is more than the context of {self.context}, and tokens between two "
                "windows would never be scored"
            )
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        if not isinstance(self.data, Text) or self.data.files or self.data.splits:
            return ()
        return (
            f"{self.name}: the test split is the whole file, training text included; divide it by 'splits' "
            "or 'files' to measure on other text",
        )

    def objective(self, backbone: "Backbone") -> "Modelling":
        return Modelling(self.name, self.context, self.stride or self.context, self.packed, self.metric)

    def examples(self, split: SplitName, rows: Rows) -> "Corpus":
        import torch

        for place, text in enumerate(rows.inputs):
            if not isinstance(text, str):
                raise InputError(f"{rows.where(place)}: expected one text, and no pair or image")
            if not text.strip():
                raise InputError(f"{rows.where(place)}: the text is empty; take it out")
        return Corpus(list(rows.inputs), torch.zeros(len(rows.inputs), dtype=torch.int64))


@dataclass(frozen=True)
class Corpus(Split):
    """Texts of a split, whose examples are windows; how many there are is known once they are tokenised.

    Args:
        most: windows, the first so many; none for all.
    """

    most: int | None = None

    def first(self, limit: int | None) -> "Corpus":
        """The first so many windows."""
        return self if limit is None else replace(self, most=min(limit, self.most or limit))


class Window(NamedTuple):
    """Tokens ``start`` to ``stop`` of a text, read at once; those from ``first`` are scored."""

    text: "Tokenised"
    start: int
    first: int
    stop: int

    @property
    def passage(self) -> "Passage":
        """What the model is given."""
        from taskvec.models.language import Passage

        return Passage(self.text.tokens[self.start : self.first], self.text.tokens[self.first : self.stop])

    @property
    def sizes(self) -> list[int]:
        """UTF-8 bytes that each scored token stands for."""
        return self.text.sizes[self.first : self.stop]


def windows(text: "Tokenised", context: int, stride: int) -> Iterator[Window]:
    """Windows of ``context`` tokens, each beginning ``stride`` tokens behind the one before.

    A token is scored in the first window that has it behind another, which is the one with most before it.
    The first token of a text is in none such and is not scored: with a tokenizer that begins texts with a
    token of its own, this is that one. If the stride is the context, nor is the first token of any window.

    >>> from taskvec.models.language import Tokenised
    >>> [window.passage for window in windows(Tokenised([5, 6, 7, 8, 9], [1] * 5), 4, 2)]
    [Passage(context=[5], target=[6, 7, 8]), Passage(context=[7, 8], target=[9])]
    """
    scored, length = 0, len(text.tokens)
    for start in range(0, length, stride):
        first, stop = max(scored, start + 1), min(start + context, length)
        if first < stop:
            yield Window(text, start, first, stop)
        scored = stop
        if stop == length:
            return


class Windows(Prepared):
    """Windows as batches; labels (R, 2) hold the token that each row should predict, and its bytes."""

    def __init__(self, backbone: "Backbone", made: Sequence[Window]) -> None:
        import torch

        self._backbone, self._windows = backbone, made
        self.rows = torch.tensor([window.stop - window.first for window in made], dtype=torch.int64)
        self.sizes = torch.tensor([window.stop - window.start for window in made], dtype=torch.int64)
        longest = int(self.rows.max()) if made else 1
        self.together = max(1, LOGITS // (longest * backbone.dim))

    def inputs(self, places: "Tensor") -> dict[str, "Tensor"]:
        return self._backbone.stack([self._windows[place].passage for place in places.tolist()])

    def targets(self, places: "Tensor") -> tuple["Tensor", "Tensor"]:
        import torch

        chosen = [self._windows[place] for place in places.tolist()]
        tokens = [token for of in chosen for token in of.text.tokens[of.first : of.stop]]
        sizes = [size for window in chosen for size in window.sizes]
        labels = torch.tensor([tokens, sizes], dtype=torch.int64).T
        return labels, places.repeat_interleave(self.rows[places])


@dataclass(frozen=True)
class Modelling(Objective):
    """The mean cross entropy of the tokens scored in windows over texts, see :func:`windows`.

    Args:
        name: of the task, for messages.
        context, stride: in tokens.
        packed: whether texts are joined into one. Between two, a tokenizer that begins texts with a token has
            it there, and any other its token for the end of a text.
    """

    name: str
    context: int
    stride: int
    packed: bool = False
    metric: str = "perplexity"
    outputs: ClassVar = "tokens"

    def prepare(self, backbone: "Backbone", split: Split) -> Windows:
        """Its windows."""
        return Windows(backbone, self.examples(backbone, split).inputs)

    def examples(self, backbone: "Backbone", split: Split) -> Split:
        """The windows of a split of texts; one of windows as it is.

        Raises: InputError for a model that cannot read so much, or reads in another direction; for a text of
            which no token is scored.
        """
        import torch

        if len(split) and isinstance(split.inputs[0], Window):
            return split
        model = self._fitting(backbone)
        texts = self._tokenised(model, split.inputs)
        made = (window for text in texts for window in windows(text, self.context, self.stride))
        cut = list(islice(made, split.most if isinstance(split, Corpus) else None))
        return Split(cut, torch.zeros(len(cut), dtype=torch.int64))

    def _fitting(self, backbone: "Backbone") -> "LanguageModel":
        model: LanguageModel = backbone  # type: ignore[assignment]  # see ``outputs``
        if model.encodes:
            raise InputError(
                f"{self.name}: kind 'language' is for causal models, and {model.ref} has an encoder; give it "
                "prompts and answers, kind 'generation'"
            )
        if model.positions is not None and self.context > model.positions:
            raise InputError(
                f"{self.name}: context: {self.context} tokens are more than the {model.positions} positions "
                f"of {model.ref}; set a context of {model.positions} or less"
            )
        if model.reads_ahead:
            raise InputError(
                f"{self.name}: {model.ref} predicts a token from those behind it too, so its perplexity "
                "means nothing; take a causal model, such as gpt2 or llama"
            )
        return model

    def _tokenised(self, model: "LanguageModel", texts: Sequence[str]) -> "Iterator[Tokenised]":
        made = map(model.tokenise, texts)
        if self.packed:
            yield _joined(list(made), model.tokenizer.bos_token_id, model.tokenizer.eos_token_id)
            return
        for number, text in enumerate(made, start=1):
            if len(text.tokens) < 2:
                raise InputError(
                    f"{self.name}: text {number} of {len(texts)} has fewer than 2 tokens for {model.ref}, "
                    "and the first is not scored; take it out, or join the texts by 'packed: true'"
                )
            yield text

    def loss(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, batch.labels[:, 0])

    def logits(self, outputs: "Tensor") -> "Tensor":
        return outputs

    def tally(self, outputs: "Tensor", batch: Batch) -> Tally:
        """Of each window: the loss of its tokens, in nats; how many they are; their bytes."""
        import torch

        loss = _nats(outputs, batch.labels[:, 0])
        _, place, tokens = torch.unique_consecutive(batch.index, return_inverse=True, return_counts=True)
        size = batch.labels[:, 1]
        return {
            "nats": loss.new_zeros(len(tokens)).index_add(0, place, loss).cpu(),
            "tokens": tokens.cpu(),
            "bytes": size.new_zeros(len(tokens)).index_add(0, place, size).cpu(),
        }

    def score(self, tally: Tally) -> "LanguageScore":
        """All figures; the interval is a bootstrap over windows, of 1000 draws with seed 0."""
        nats, tokens, size = (tally[key].sum().item() for key in ("nats", "tokens", "bytes"))
        below = tally["tokens" if self.metric == "perplexity" else "bytes"]
        ends = of_ratio(tally["nats"].numpy(), below.double().numpy()) if len(below) > 1 else None
        bits = nats / math.log(2) / size if size else math.inf
        perplexity = _perplexity(nats / tokens)
        return LanguageScore(
            metric=self.metric,
            value=perplexity if self.metric == "perplexity" else bits,
            interval=ends and (self._figure(ends[0]), self._figure(ends[1])),
            perplexity=perplexity,
            bits_per_byte=bits,
            loss=nats / tokens,
            tokens=int(tokens),
            bytes=int(size),
            examples=len(tally["nats"]),
        )

    def value(self, tally: Tally) -> float:
        below = tally["tokens" if self.metric == "perplexity" else "bytes"].sum().item()
        return self._figure(tally["nats"].sum().item() / below) if below else math.inf

    def _figure(self, nats: float) -> float:
        """The metric of so many nats a token, or a byte."""
        return _perplexity(nats) if self.metric == "perplexity" else nats / math.log(2)

    def fingerprint(self) -> str:
        return f"language, context {self.context}, stride {self.stride}{', packed' if self.packed else ''}"


@dataclass(frozen=True)
class LanguageScore(Score):
    """All figures of a language model on texts."""

    metric: str
    value: float
    interval: tuple[float, float] | None
    """95 % of the metric, by a bootstrap over windows; none for a single window."""
    perplexity: float
    """exp of the loss."""
    bits_per_byte: float
    """Bits of loss for each byte of UTF-8 that the scored tokens stand for."""
    loss: float
    """Nats a token: the sum over all tokens scored, divided by their number."""
    tokens: int
    """That were scored, each once."""
    bytes: int
    """Of the text that they stand for."""
    examples: int
    """Windows."""

    @property
    def beside(self) -> dict[str, str]:
        figures = {"perplexity": self.perplexity, "bits per byte": self.bits_per_byte}
        others = {name: f"{value:.4g}" for name, value in figures.items() if value != self.value}
        return {**others, "tokens": str(self.tokens)}


def _nats(logits: "Tensor", tokens: "Tensor") -> "Tensor":
    """Loss (R,) of tokens (R,) by logits (R, V), in float64 after the sum over the vocabulary.

    A uniform model has exactly log V, which a logarithm in float32 would round.
    """
    import torch

    wide = torch.float32 if logits.device.type == "mps" else torch.float64
    highest = logits.amax(1, keepdim=True)
    total = (logits - highest).exp_().sum(1).to(wide).log_()
    return total + (highest - logits.gather(1, tokens[:, None])).squeeze(1).to(wide)


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, _HIGHEST))


def _joined(texts: "Sequence[Tokenised]", begin: int | None, end: int | None) -> "Tokenised":
    """One text of several."""
    from taskvec.models.language import Tokenised

    tokens, sizes = list[int](), list[int]()
    for text in texts:
        if tokens and end is not None and tokens[-1] != end and text.tokens[:1] != [begin]:
            tokens.append(end)
            sizes.append(0)
        tokens += text.tokens
        sizes += text.sizes
    return Tokenised(tokens, sizes)
