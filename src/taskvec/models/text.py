"""Text encoders of transformers' AutoModel: BERT, RoBERTa, MiniLM and their kin."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from taskvec.errors import InputError
from taskvec.models.backbone import Backbone, evaluating, in_batches
from taskvec.models.checkpoint import (
    Build,
    config_file,
    encodes_text,
    load_network,
    load_tokenizer,
    model_type,
    rows_of,
    stored_names,
    transformers,
)
from taskvec.reading import shown

Text = str | tuple[str, str]
Tokens = dict[str, list[int]]

_LOGIT_SCALE = 20.0
"""Of zero-shot heads: the inverse temperature 1 / 0.05 that sentence encoders are trained with."""

LONGEST = 512
"""Tokens of a text when the caller sets no limit."""


class TextBackbone(Backbone):
    """A transformer whose feature is the mean of its last hidden states over the tokens of the text."""

    modality = "text"
    padding_side: Literal["left", "right"] = "right"

    def __init__(
        self, network: nn.Module, tokenizer: Any, *, ref: str, checkpoint: Mapping[str, str] | None = None
    ):
        super().__init__(
            network,
            ref=ref,
            dim=width_of(network),
            logit_scale=_LOGIT_SCALE,
            checkpoint=checkpoint,
        )
        self.tokenizer = tokenizer
        self.padding: int = tokenizer.pad_token_id
        self._rows = vocabulary_rows(network)
        longest = {
            "tokenizer_config.json: model_max_length": tokenizer.model_max_length,
            "config.json: max_position_embeddings": getattr(
                network.config, "max_position_embeddings", LONGEST
            ),
        }
        for place, value in longest.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
                raise InputError(f"{ref}/{place} is {shown(value)}, expected a number of tokens")
        self._most = int(min(value for value in (LONGEST, *longest.values()) if value >= 1))

    def forward(self, **batch: Tensor) -> Tensor:
        """Features (N, d)."""
        try:
            return self.pool(batch)
        except IndexError as error:  # of a token, its place or its kind
            raise InputError(
                f"{self.ref}: its tokenizer gives numbers that an embedding of the model lacks ({error}); "
                "take the tokenizer that belongs to the weights"
            ) from None

    def pool(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Masked mean (N, d) of the last hidden states."""
        hidden: Tensor = self.hidden(batch)
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Last hidden states (N, L, d)."""
        return self.network(**batch).last_hidden_state  # type: ignore[no-any-return]

    def prepare(self, inputs: Sequence[Text], max_length: int | None = None) -> list[Tokens]:
        """Token ids of texts or of pairs of texts."""
        if not inputs:
            return []
        pairs = [text for text in inputs if isinstance(text, tuple)]
        texts = [list(column) for column in zip(*pairs, strict=True)] if pairs else [list(inputs)]
        limit = min(max_length or LONGEST, self._most)
        table = self.tokenizer(*texts, truncation=True, max_length=limit)
        self._check_known(table["input_ids"])
        rows = [{key: table[key][row] for key in table} for row in range(len(inputs))]
        return [tokens if tokens["input_ids"] else self._nothing(tokens) for tokens in rows]

    def _nothing(self, tokens: Tokens) -> Tokens:
        """An empty text, where the tokenizer puts nothing around it: the padding, read as a token."""
        return {key: [{"input_ids": self.padding, "attention_mask": 1}.get(key, 0)] for key in tokens}

    def _check_known(self, numbers: Sequence[Sequence[int]]) -> None:
        """Refuse tokens that were added to the tokenizer and not to the model."""
        largest = max((max(row) for row in numbers if row), default=0)
        if largest >= self._rows:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise InputError(
                f"{self.ref}: its tokenizer gives {token!r} the number {largest}, and the model's embedding "
                f"has {self._rows} rows; take the tokenizer that belongs to the weights"
            )

    def stack(self, prepared: Sequence[Tokens]) -> dict[str, Tensor]:
        """Token ids and masks (N, longest), int64, padded on the right, or on ``padding_side``."""
        return {
            key: pad_sequence(
                [torch.tensor(tokens[key]) for tokens in prepared],
                batch_first=True,
                padding_side=self.padding_side,
                padding_value=self.padding if key == "input_ids" else 0,
            )
            for key in prepared[0]
        }

    def size(self, prepared: Tokens) -> int:
        """Tokens."""
        return len(prepared["input_ids"])

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Features (P, d) of the texts, in batches of 64."""
        with evaluating(self):
            return in_batches(self._texts, texts)

    def _texts(self, texts: Sequence[str]) -> Tensor:
        return self(**{key: value.to(self.device) for key, value in self.collate(texts).items()})  # type: ignore[no-any-return]

    def example(self) -> dict[str, Tensor]:
        """One short text."""
        return self.collate(["one two"])


class SourceBackbone(TextBackbone):
    """The encoder of an encoder-decoder such as T5: the mean of its last hidden states."""

    def hidden(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Last hidden states (N, L, d) of the encoder."""
        network: Any = self.network
        encoded = network.get_encoder()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return encoded.last_hidden_state  # type: ignore[no-any-return]


def width_of(network: Any) -> int:
    """The size of a hidden state, which a model of several parts states in that of texts; 0 if none does."""
    config = network.config
    width = getattr(config, "hidden_size", None) or getattr(config.get_text_config(), "hidden_size", 0)
    return width if isinstance(width, int) else 0


def vocabulary_rows(network: Any) -> int:
    """Tokens that the network has embeddings of; no bound for one that reads characters."""
    try:
        return rows_of(network.get_input_embeddings())
    except NotImplementedError:
        return rows_of(None)


def load(ref: str, build: Build = load_network) -> TextBackbone:
    """The text encoder in a checkpoint folder or on the hub, in float32."""
    package = transformers()
    path = config_file(ref)
    folder = path.parent
    network = build(package.AutoModel, ref)
    if not width_of(network):
        raise InputError(f"{ref}: config.json gives no 'hidden_size', the size of a feature")
    tokenizer = load_tokenizer(ref, folder, vocabulary_rows(network))
    made = SourceBackbone if encodes_text(model_type(path)) else TextBackbone
    return made(network, tokenizer, ref=ref, checkpoint=stored_names(folder, network))
