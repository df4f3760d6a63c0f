"""What text to text asks of a language model: the loss of answers, their ranks, the texts that it writes."""

import math
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from statistics import fmean
from typing import Any, ClassVar

import torch
import xxhash
from torch import Tensor
from torch.nn.functional import cross_entropy

from taskvec.models.decoding import Decoding, continuations, ends_of
from taskvec.models.language import LanguageModel
from taskvec.tasks import intervals
from taskvec.tasks.exchanges import Exchanges, Form, check_answered
from taskvec.tasks.metrics import OwnMetric, figure_of, own_interval
from taskvec.tasks.objective import Batch, Objective, Tally
from taskvec.tasks.score import Score, wilson
from taskvec.tasks.source import SplitName
from taskvec.tasks.split import Split
from taskvec.tasks.written import distinct_2, is_empty, matches, scored


@dataclass(frozen=True)
class AnswerScore(Score):
    """Figures of the answers that are given: how likely the model finds them."""

    metric: str
    value: float
    interval: tuple[float, float]
    """95 %: Wilson's of an accuracy, the bootstrap's over examples of a perplexity or loss."""
    accuracy: float | None
    """Share of the prompts whose right answer ranks first; none where answers are not ranked."""
    perplexity: float
    """exp of the loss."""
    loss: float
    """Mean negative log-likelihood of the right answers' tokens, the end of the text included."""
    tokens: int
    examples: int

    @property
    def beside(self) -> dict[str, str]:
        """The perplexity, and of how many tokens."""
        figures = {} if self.metric == "perplexity" else {"perplexity": f"{self.perplexity:.4g}"}
        return {**figures, "tokens": str(self.tokens)}


@dataclass(frozen=True)
class MatchScore(Score):
    """Figures of answers that are written and compared with the right ones."""

    metric: str
    value: float
    interval: tuple[float, float] | None
    """95 %: Wilson's of an exact match, the bootstrap's over examples of a metric of one's own."""
    exact_match: float
    empty: int
    """Texts of white space at most."""
    examples: int

    @property
    def beside(self) -> dict[str, str]:
        """How many texts are empty."""
        return {"exact match": f"{100 * self.exact_match:.1f}", "empty": str(self.empty)}


@dataclass(frozen=True)
class TextScore(Score):
    """Figures of texts that are written and scored by the user's function."""

    metric: str
    value: float
    """The mean score."""
    interval: tuple[float, float]
    """95 %, the bootstrap's over texts."""
    share: float
    """Of texts whose score is at or above the cut."""
    share_interval: tuple[float, float]
    """95 %, Wilson's."""
    cut: float
    distinct_2: float | None
    """Different pairs of words as a share of all pairs; none without a pair."""
    empty: int
    """Texts of white space at most."""
    examples: int

    @property
    def beside(self) -> dict[str, str]:
        """The share of high scores, and what shows that texts degenerate."""
        pairs = "" if self.distinct_2 is None else f"{self.distinct_2:.2f}"
        return {f"≥ {self.cut:g}": f"{100 * self.share:.1f}", "distinct-2": pairs, "empty": str(self.empty)}


@dataclass(frozen=True, eq=False)
class Answering(Objective):
    """The loss of the right answers' tokens, and the rank of the right answer among all.

    Args:
        answers: how many are ranked; 1 where only the right one is read.
        per_token: rank by the mean log-likelihood of an answer's tokens in place of their sum.
        shape: what decides how prompts and answers become tokens.
    """

    metric: str
    form: Form
    answers: int = 1
    per_token: bool = False
    outputs: ClassVar = "tokens"
    guided: ClassVar = True

    def prepare(self, backbone: Any, split: Split) -> Exchanges:
        """Prompts and answers as tokens."""
        form = replace(self.form, model=backbone)
        return Exchanges(form, split.inputs, split.labels, ranked=self.answers > 1)

    def training(self) -> "Answering":
        """With the right answers alone."""
        return replace(self, answers=1)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross entropy of the right answers' tokens."""
        token, _, right, _ = batch.labels.unbind(1)
        wanted = right.bool()
        return cross_entropy(outputs[wanted], token[wanted])

    def logits(self, outputs: Tensor) -> Tensor:
        """Over the vocabulary, at each token of an answer."""
        return outputs

    def tally(self, outputs: Tensor, batch: Batch) -> Tally:
        """Loss and tokens of each right answer; where they are ranked, what each answer costs."""
        costs = cross_entropy(outputs, batch.labels[:, 0], reduction="none").cpu().double()
        _, answer, right, ranked = batch.labels.cpu().unbind(1)
        _, example = torch.unique_consecutive(batch.index.cpu(), return_inverse=True)
        count = int(example.max()) + 1

        def summed(values: Tensor, width: int, column: Tensor) -> Tensor:
            sums = torch.zeros(count, width, dtype=torch.float64)
            return sums.index_put((example, column), values.double(), accumulate=True)

        whole = torch.zeros_like(answer)
        tally = {
            "loss": summed(costs * right, 1, whole).squeeze(1),
            "tokens": summed(right, 1, whole).squeeze(1),
        }
        if self.answers == 1:
            return tally
        unlike = summed(costs * ranked, self.answers, answer)
        if self.per_token:
            unlike = unlike / summed(ranked, self.answers, answer)
        wanted = summed(right, self.answers, answer).argmax(1)
        return {**tally, "costs": unlike, "right": wanted}

    def value(self, tally: Tally) -> float:
        """The metric."""
        if self.metric == "accuracy":
            return int(_hits(tally).sum()) / len(tally["loss"])
        loss = float(tally["loss"].sum() / tally["tokens"].sum())
        return loss if self.metric == "loss" else math.exp(min(loss, 700.0))

    def score(self, tally: Tally) -> AnswerScore:
        """All figures."""
        losses, tokens = tally["loss"].numpy(), tally["tokens"].numpy()
        loss = float(losses.sum() / tokens.sum())
        hits = int(_hits(tally).sum()) if self.answers > 1 else None
        return AnswerScore(
            metric=self.metric,
            value=self.value(tally),
            interval=self._interval(losses, tokens, hits),
            accuracy=None if hits is None else hits / len(losses),
            perplexity=math.exp(min(loss, 700.0)),
            loss=loss,
            tokens=int(tokens.sum()),
            examples=len(losses),
        )

    def _interval(self, losses: Any, tokens: Any, hits: int | None) -> tuple[float, float]:
        if self.metric == "accuracy" and hits is not None:
            return wilson(hits, len(losses))
        low, high = intervals.of_ratio(losses, tokens)
        if self.metric == "loss":
            return low, high
        return math.exp(min(low, 700.0)), math.exp(min(high, 700.0))

    def fingerprint(self) -> str:
        """Of what decides the tokens that are read."""
        return xxhash.xxh3_128(f"{self.form.delimiter}\0{self.form.max_length}".encode()).hexdigest()


def _hits(tally: Tally) -> Tensor:
    return tally["costs"].argmin(1) == tally["right"]


@dataclass(frozen=True, eq=False)
class Writing(Answering, ABC):
    """The loss of answers for training; figures of the texts that a model writes behind the prompts."""

    decoding: Decoding = field(default_factory=lambda: Decoding(32))
    writes: ClassVar = True

    def texts(self, model: LanguageModel, prompts: Sequence[str], seed: int = 0) -> list[str]:
        """What the model writes behind each prompt, without the prompt."""
        form = replace(self.form, model=model)
        written = continuations(
            model.writer,
            [form.context(prompt, self.decoding.tokens) for prompt in prompts],
            self.decoding,
            end=[*form.end, *ends_of(model.network)],
            start=model.start if model.encodes else None,
            seed=seed,
        )
        return [model.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written]


@dataclass(frozen=True, eq=False)
class Matching(Writing):
    """Texts by the likeliest tokens, compared with the right answers.

    Args:
        own: of the right answers and the texts, lists of equal length, to a number; none for an exact match.
    """

    own: OwnMetric | None = None

    def measure(self, backbone: Any, split: Split, name: SplitName = "test") -> MatchScore:
        """Write to every prompt, and compare."""
        asked = list(zip(split.inputs, split.labels.tolist(), strict=True))
        check_answered(self.form.name, split.inputs[0])
        answers = [exchange.answers[right] for exchange, right in asked]
        texts = self.texts(backbone, [exchange.prompt for exchange, _ in asked])
        hits = sum(map(matches, texts, answers))
        value: float = hits / len(texts)
        interval: intervals.Interval | None = wilson(hits, len(texts))
        if self.own is not None:
            value = figure_of(self.metric, self.own, answers, texts)
            interval = own_interval(self.own, answers, texts)
        return MatchScore(
            self.metric, value, interval, hits / len(texts), sum(map(is_empty, texts)), len(texts)
        )


@dataclass(frozen=True, eq=False)
class Scoring(Writing):
    """Texts that are drawn, and a score of each by the user's function.

    Args:
        where: what messages call the function.
        prompts: what the texts begin with, in turns; none for the prompts of the split.
        cut: scores at or above it are counted.
    """

    function: Callable[[list[str]], Any] = list
    where: str = "score"
    count: int = 100
    prompts: tuple[str, ...] | None = None
    seed: int = 0
    cut: float = 0.8

    def measure(self, backbone: Any, split: Split, name: SplitName = "test") -> TextScore:
        """Write the texts, and have them scored."""
        prompts = self.prompts or [exchange.prompt for exchange in split.inputs]
        # Not the texts on which a coefficient was chosen.
        seed = self.seed ^ (("test", "validation", "train").index(name) << 60)
        texts = self.texts(backbone, list(islice(cycle(prompts), self.count)), seed)
        scores = scored(self.function, texts, self.where)
        above = sum(score >= self.cut for score in scores)
        return TextScore(
            metric=self.metric,
            value=fmean(scores),
            interval=intervals.of_mean(scores),
            share=above / len(texts),
            share_interval=wilson(above, len(texts)),
            cut=self.cut,
            distinct_2=distinct_2(texts),
            empty=sum(map(is_empty, texts)),
            examples=len(texts),
        )
