"""Causal and encoder-decoder language models of transformers: GPT-2, Llama, Qwen, T5, BART and their kin."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from taskvec.errors import InputError
from taskvec.models.backbone import Backbone, Outputs, evaluating
from taskvec.models.checkpoint import (
    Build,
    config_file,
    has_encoder,
    load_network,
    load_tokenizer,
    rows_of,
    stored_names,
    transformers,
)
from taskvec.models.decoding import NextLogits
from taskvec.reading import shown


class Passage(NamedTuple):
    """Token ids that a language model reads, and those behind them that it is scored on.

    A causal model reads both as one sequence, so the context has a token at least; an encoder-decoder model
    has the context in its encoder, and the target in its decoder.
    """

    context: list[int]
    target: list[int]


class Tokenised(NamedTuple):
    """A text as token ids, those that the tokenizer puts around it included.

    ``sizes`` holds the UTF-8 bytes that each token stands for; all together are those of the text.
    """

    tokens: list[int]
    sizes: list[int]


class LanguageModel(Backbone):
    """A language model whose outputs are the logits of the tokens that are scored, a row each.

    Rows come passage by passage, each target in its order. Logits are computed for these rows only.

    Attributes:
        encodes: whether the context goes through an encoder.
        positions: most tokens of a sequence; none if the model sets no bound.
    """

    modality = "text"
    outputs: Outputs = "tokens"

    def __init__(
        self, network: nn.Module, tokenizer: Any, *, ref: Any, checkpoint: Mapping[str, str] | None = None
    ) -> None:
        config: Any = network.config
        super().__init__(
            network,
            ref=ref,
            dim=int(config.get_text_config(decoder=True).vocab_size),
            logit_scale=1.0,
            checkpoint=checkpoint,
        )
        self.tokenizer = tokenizer
        self.encodes = bool(config.is_encoder_decoder)
        self.positions = _positions(config)

    def forward(self, **batch: Tensor) -> Tensor:
        """Logits (R, V) at ``scored`` (R,), places in the flattened (N * L) positions of the decoder."""
        scored = batch["scored"]
        read = {key: value for key, value in batch.items() if key != "scored"}
        try:
            with _only_at(scored, self.network.get_output_embeddings()) as met:  # type: ignore[operator]
                logits: Tensor = self.network(**read, use_cache=False).logits
        except IndexError as error:
            raise InputError(
                f"{self.ref}: its tokenizer gives numbers that an embedding of the model lacks ({error}); "
                "take the tokenizer that belongs to the weights"
            ) from None
        rows = logits.flatten(0, -2)
        return rows if met else rows[scored]

    def stack(self, prepared: Sequence[Passage]) -> dict[str, Tensor]:
        """Token ids and masks (N, longest), int64, padded on the right, and ``scored`` (R,)."""
        targets = [len(passage.target) for passage in prepared]
        if not self.encodes:
            first = [len(passage.context) - 1 for passage in prepared]
            batch = _padded([passage.context + passage.target for passage in prepared], "")
            return {**batch, "scored": _places(first, targets, batch["input_ids"].shape[1])}
        read = _padded([[self.start, *passage.target[:-1]] for passage in prepared], "decoder_")
        return {
            **_padded([passage.context for passage in prepared], ""),
            **read,
            "scored": _places([0] * len(targets), targets, read["decoder_input_ids"].shape[1]),
        }

    def size(self, prepared: Passage) -> int:
        """Tokens."""
        return len(prepared.context) + len(prepared.target)

    def tokenise(self, text: str) -> Tokenised:
        """A text of any length.

        Raises: InputError for a token that the model has no embedding of.
        """
        encoded = self.tokenizer(text, return_offsets_mapping=self.tokenizer.is_fast, verbose=False)
        tokens = list(encoded["input_ids"])
        if tokens and max(tokens) >= self.dim:
            self._refuse_token(max(tokens))
        return Tokenised(tokens, _sizes(text, len(tokens), encoded.get("offset_mapping")))

    def embed_text(self, texts: Sequence[str]) -> NoReturn:
        """A language model has logits in place of features. Raises: InputError."""
        raise InputError(
            f"{self.ref}: is loaded as a language model, which gives logits of tokens; zero-shot heads need "
            "features of texts, load_backbone(ref, outputs='features')"
        )

    def example(self) -> dict[str, Tensor]:
        """Three tokens, two of which are scored."""
        last = min(self.dim, 5) - 1
        return self.stack([Passage([last], [last - 1, last])])

    @cached_property
    def reads_ahead(self) -> bool:
        """Whether the logits of a token depend on tokens behind it, as those of no causal model do."""
        first, *others = range(min(self.dim, 5))  # different ones: attention over equal ones sees no number
        short, long = (Passage([first], others[:count]) for count in (1, 3))
        with torch.no_grad(), evaluating(self):
            rows = [self(**{k: v.to(self.device) for k, v in self.stack([p]).items()}) for p in (short, long)]
        return bool((rows[0][0] - rows[1][0]).abs().max() > 1e-3 * (1 + rows[0].abs().max()))

    @property
    def writer(self) -> nn.Module | NextLogits:
        """What ``continuations`` takes to write texts."""
        return self.network

    @property
    def start(self) -> int:
        """The token that the decoder begins with."""
        for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
            for settings in (self.network.config, getattr(self.network, "generation_config", None)):
                if isinstance(start := getattr(settings, name, None), int):
                    return start
        raise InputError(
            f"{self.ref}: config.json gives no 'decoder_start_token_id', which its decoder needs"
        )

    def _refuse_token(self, largest: int) -> NoReturn:
        token = self.tokenizer.convert_ids_to_tokens(largest)
        raise InputError(
            f"{self.ref}: its tokenizer gives {shown(token)} the number {largest}, and the model knows "
            f"{self.dim} tokens; take the tokenizer that belongs to the weights"
        )


@contextmanager
def _only_at(places: Tensor, layer: nn.Module | None) -> Iterator[list[bool]]:
    """An output layer over tokens that computes some positions only; whether it was met is in the list.

    Of (N, L, d) the layer sees (1, R, d): most models would give every position its V logits, which is what
    fills memory, and whatever they do to logits they do to each alone.
    """
    met: list[bool] = []

    def choose(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if args[0].dim() != 3:  # ProphetNet has a stream for each token ahead
            return args
        met.append(True)
        return (args[0].flatten(0, -2)[places].unsqueeze(0), *args[1:])

    if layer is None:
        yield met
        return
    handle = layer.register_forward_pre_hook(choose)
    try:
        yield met
    finally:
        handle.remove()


def _padded(sequences: Sequence[Sequence[int]], prefix: str) -> dict[str, Tensor]:
    """Token ids and mask, padded on the right; the mask is what keeps the padding from being read."""
    ids = [torch.tensor(sequence, dtype=torch.int64) for sequence in sequences]
    return {
        f"{prefix}input_ids": pad_sequence(ids, batch_first=True),
        f"{prefix}attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }


def _places(first: Sequence[int], counts: Sequence[int], length: int) -> Tensor:
    """Places in the flattened (N * length) positions of ``counts`` positions from ``first`` in each row."""
    spans = zip(range(0, length * len(counts), length), first, counts, strict=True)
    return torch.cat([torch.arange(start + at, start + at + count) for start, at, count in spans])


def _positions(config: Any) -> int | None:
    """Most tokens of a sequence; none for models of relative positions, which have no table of them."""
    text = config.get_text_config(decoder=True)
    bound = getattr(text, "max_position_embeddings", None)
    relative = hasattr(text, "relative_attention_num_buckets") or getattr(text, "alibi", False)
    return bound if isinstance(bound, int) and bound > 0 and not relative else None


def _sizes(text: str, count: int, offsets: Sequence[tuple[int, int]] | None) -> list[int]:
    """Bytes of UTF-8 that each token stands for.

    What a tokenizer drops, such as white space, counts for the token behind it. Of a tokenizer that does not
    say where its tokens come from, each stands for an equal share.
    """
    reached = [0, *accumulate((end for _, end in offsets or ()), max)]
    if not reached[-1]:
        total = len(text.encode())
        shares = [total * place // max(count, 1) for place in range(count + 1)]
        return [stop - start for start, stop in pairwise(shares)]
    reached[-1] = len(text)
    return [len(text[start:stop].encode()) for start, stop in pairwise(reached)]


def load(ref: str, build: Build = load_network) -> LanguageModel:
    """The language model in a checkpoint folder or on the hub, in float32."""
    package = transformers()
    file = config_file(ref)
    kind = package.AutoModelForSeq2SeqLM if has_encoder(file) else package.AutoModelForCausalLM
    network = build(kind, ref)
    tokenizer = load_tokenizer(ref, file.parent, rows_of(network.get_input_embeddings()), padded=False)
    return LanguageModel(network, tokenizer, ref=ref, checkpoint=stored_names(file.parent, network))
