"""Generation: text to text. Answers are ranked, or written and compared, or what is written is scored."""

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from taskvec.code import named_callable, names_code
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.reading import shown
from taskvec.registry import nearest
from taskvec.tasks.metrics import metric_called
from taskvec.tasks.source import Rows, SplitName
from taskvec.tasks.split import Split
from taskvec.tasks.task import Task

if TYPE_CHECKING:
    from taskvec.models.backbone import Backbone
    from taskvec.models.decoding import Decoding
    from taskvec.tasks.answering import Answering

Answer = Annotated[str, Field(pattern=r"\S")]

_RANKED = ("accuracy", "perplexity", "loss")
"""Metrics of the likelihood of given answers."""

_WRITTEN = ("exact_match", "score")
"""Metrics of what the model writes."""


class Sampling(Config):
    """How texts are written."""

    count: PositiveInt = Field(default=100, le=1_000_000)
    """Texts that are scored; the prompts take turns."""
    prompts: tuple[str, ...] | None = Field(default=None, min_length=1)
    """What they begin with, in place of the prompts of the data; ``""`` begins with nothing."""
    max_new_tokens: PositiveInt = Field(default=32, le=100_000)
    temperature: float = Field(default=1.0, ge=0)
    """0 takes the likeliest token, as an exact match always does."""
    top_k: int = Field(default=0, ge=0)
    """Only the so many likeliest tokens; 0 for all."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Only the likeliest tokens that have this probability together."""
    repetition_penalty: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)


class Generation(Task):
    """Prompts with answers, for causal and encoder-decoder language models."""

    outputs = "tokens"

    kind: Literal["generation"] = "generation"
    prompt: str = "{}"
    """``{}`` stands for the text, two for a pair of texts. Without any, all prompts are the same, and the
    texts of data without labels are the answers."""
    delimiter: str = " "
    """Between prompt and answer, in the one text that a causal model reads."""
    answers: tuple[Answer, ...] | dict[int | str, Answer | None] | None = None
    """The answers there are: in the order of the labels' numbers, or by label, where none drops its rows.
    Without them, each label is its answer."""
    metric: str = ""
    """By default ``accuracy`` if answers are listed, ``score`` if it is named, else ``exact_match``."""
    per_token: bool = False
    """Rank by the mean log-likelihood of an answer's tokens in place of their sum."""
    score: str | None = None
    """``module:function`` or ``file.py:function``: of a list of texts, a number for each."""
    cut: float = 0.8
    """The share of texts whose score is at or above it is told."""
    sampling: Sampling = Sampling()
    max_length: PositiveInt | None = None
    """Tokens that a prompt is cut to."""
    epochs: PositiveInt | None = None
    """Epochs of the usual fine-tuning recipe, where one is established."""

    @model_validator(mode="before")
    @classmethod
    def _metric_by_what_is_given(cls, values: object) -> object:
        if not isinstance(values, dict) or "metric" in values:
            return values
        usual = "score" if values.get("score") else "accuracy" if values.get("answers") else "exact_match"
        return {**values, "metric": usual}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = (*_RANKED, *_WRITTEN)
        if self.metric not in known and not names_code(self.metric):
            raise ValueError(f"metric: no metric called {self.metric!r}; {nearest(self.metric, known)}")
        if self.metric == "accuracy" and len(self.candidates) < 2:
            raise ValueError("metric: accuracy ranks answers; list two or more under 'answers'")
        if (self.metric == "score") != (self.score is not None):
            raise ValueError("score: 'metric: score' and 'score: module:function' belong together")
        if self.score is not None and not names_code(self.score):
            raise ValueError(f"score: {self.score!r} is not of the form module:function or file.py:function")
        if self.answers is not None and not self.candidates:
            raise ValueError("answers: lists none")
        if self.prompt.count("{}") > 2:
            raise ValueError(f"prompt: {self.prompt!r} has '{{}}' more than twice")
        return self

    @property
    def candidates(self) -> tuple[str, ...]:
        """The different answers there are; none if each label is its own."""
        given = self.answers.values() if isinstance(self.answers, dict) else self.answers or ()
        return tuple(dict.fromkeys(answer for answer in given if answer is not None))

    def examples(self, split: SplitName, rows: Rows) -> Split:
        import torch

        from taskvec.tasks.exchanges import Exchange

        exchanges: list[Exchange] = []
        right: list[int] = []
        for row, label in enumerate(rows.labels):
            answers, place = self._answers(rows.inputs[row] if self._unlabelled else label, rows, row)
            if place is not None:
                exchanges.append(Exchange(self._prompt(rows.inputs[row], rows, row), answers))
                right.append(place)
        if not exchanges:
            raise InputError(f"{self.name}: the {split} split is empty after dropping labels")
        return Split(exchanges, torch.tensor(right))

    @property
    def _unlabelled(self) -> bool:
        return getattr(self.data, "label", None) is None

    def _answers(self, given: object, rows: Rows, row: int) -> tuple[tuple[str, ...], int | None]:
        """The answers to a prompt and the place of the right one among them; none to drop the row."""
        if self._unlabelled and "{}" in self.prompt:
            return (), 0
        if self.answers is None:
            if isinstance(given, tuple) or not str(given).strip():
                raise InputError(f"{rows.where(row)}: the answer is {shown(given)}, expected a text")
            return (str(given),), 0
        label = self._answer(given, rows, row)
        return self.candidates, None if label is None else self.candidates.index(label)

    def _answer(self, label: object, rows: Rows, row: int) -> str | None:
        """The answer of a label."""
        if isinstance(self.answers, dict) and isinstance(label, int | str) and label in self.answers:
            return self.answers[label]
        if isinstance(self.answers, tuple) and isinstance(label, int) and 0 <= label < len(self.answers):
            return self.answers[label]
        if isinstance(self.answers, tuple) and label in self.answers:
            return str(label)
        known = ", ".join(map(repr, self.answers or ()))
        raise InputError(f"{rows.where(row)}: label {shown(label)}, expected one of 'answers' ({known})")

    def _prompt(self, given: object, rows: Rows, row: int) -> str:
        texts = given if isinstance(given, tuple) else (given,)
        pieces = self.prompt.split("{}")
        if len(pieces) not in (1, len(texts) + 1):
            raise InputError(
                f"{rows.where(row)}: {len(texts)} texts, and the prompt {self.prompt!r} has '{{}}' "
                f"{len(pieces) - 1} times; expected one for each text"
            )
        return pieces[0] + "".join(str(text) + piece for text, piece in zip(texts, pieces[1:], strict=False))

    def objective(self, backbone: "Backbone") -> "Answering":
        from taskvec.models.language import LanguageModel
        from taskvec.tasks.answering import Answering, Matching, Scoring
        from taskvec.tasks.exchanges import Form

        if not isinstance(backbone, LanguageModel):
            raise InputError(f"{self.name}: {backbone.ref} is no language model, which kind generation needs")
        if backbone.reads_ahead:
            raise InputError(
                f"{self.name}: {backbone.ref} predicts a token from those behind it too, and cannot write; "
                "take a causal or encoder-decoder model, such as gpt2 or t5"
            )
        form = Form(backbone, self.name, self.delimiter, self.max_length)
        if self.metric in _RANKED:
            return Answering(self.metric, form, max(1, len(self.candidates)), self.per_token)
        if self.score is None:
            where, named = f"{self.name}: metric", names_code(self.metric)
            own = metric_called(self.metric, where, self.data.folder) if named else None
            return Matching(self.metric, form, decoding=self._decoding(greedy=True), own=own)
        return Scoring(
            self.metric,
            form,
            decoding=self._decoding(),
            function=named_callable(self.score, f"{self.name}: score", self.data.folder),
            where=f"{self.name}: score {self.score}",
            cut=self.cut,
            **self.sampling.model_dump(include={"count", "prompts", "seed"}),
        )

    def _decoding(self, *, greedy: bool = False) -> "Decoding":
        from taskvec.models.decoding import Decoding

        how = self.sampling
        if greedy:
            return Decoding(how.max_new_tokens, repetition_penalty=how.repetition_penalty)
        return Decoding(how.max_new_tokens, how.temperature, how.top_k, how.top_p, how.repetition_penalty)
