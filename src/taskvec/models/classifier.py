"""Classifiers of transformers with their own trained head."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskvec.errors import InputError, NonFinite, and_more
from taskvec.models.backbone import Backbone, Outputs
from taskvec.models.checkpoint import (
    classifies,
    config_file,
    load_network,
    load_tokenizer,
    model_type,
    purpose_of,
    stored_names,
    transformers,
)
from taskvec.models.image import ImageBackbone, prepare
from taskvec.models.own_head import TrainedHead
from taskvec.models.preprocessing import Preprocessing
from taskvec.models.text import Text, TextBackbone, Tokens, vocabulary_rows
from taskvec.models.trained import cut


class ClassifierBackbone(Backbone):
    """A classifier up to its head, whose features are what the head is given.

    Attributes:
        trained: the head.
    """

    trained: TrainedHead
    outputs: Outputs = "classifier"

    def shares_cut(self, other: "ClassifierBackbone") -> bool:
        """Whether the head begins at the same layer, with as many features."""
        return self.head_places == other.head_places and self.dim == other.dim

    def take_apart(self, run: Callable[[], Any], fresh: Collection[str]) -> None:
        """Separate the network from its head.

        Args:
            run: what the network returns for two inputs.
            fresh: further parameters that belong to the head.

        Raises: InputError for a head that is no chain of layers.
        """
        stored, network = self._checkpoint, self.network
        if stored is not None:
            lacking = {name for name, _ in network.named_parameters() if name not in stored}
            fresh = {*lacking, *fresh}
        held = dict(network.named_parameters())
        try:
            trunk = cut(network, run, fresh)
        except Exception as error:  # whatever a network can raise that does not fit its inputs
            raise self.unfit(error) from error
        if trunk is None:
            raise self._uncut(held)
        self._trunk, self.dim = trunk, trunk.width
        self.head_layers = trunk.head  # a part of this module, to go where it goes
        places = stored or {place: place for place in trunk.names.values()}
        self.trained = TrainedHead(
            self.ref,
            trunk.head,
            {places.get(place, place): inside for inside, place in trunk.names.items()},
            labels_of(network.config, trunk.classes),
            tuple(place for place in trunk.names.values() if place not in places),
            frozenset(trunk.names.values()) & frozenset(fresh),
            getattr(network.config, "problem_type", None) == "multi_label_classification",
        )

    def _uncut(self, held: Mapping[str, Tensor]) -> InputError:
        """What to say of a network whose head is not found, with these parameters."""
        broken = [name for name, value in held.items() if not bool(value.isfinite().all())]
        if broken:
            return NonFinite(
                f"{self.ref}: {broken[0]!r}{and_more(broken)} holds NaN or infinity; take another checkpoint "
                "of the training"
            )
        return InputError(
            f"{self.ref}: the head of {type(self.network).__name__} is no chain of layers that ends with a "
            "linear one; take its encoder with head: linear-probe"
        )

    @property
    def head_places(self) -> list[str]:
        """Names in the network of the head's parameters, in the order of its layers."""
        return list(self._trunk.names.values())

    def head_parameters(self) -> dict[str, Tensor]:
        """Of the trained head, by checkpoint name."""
        own = dict(self.trained.layers.named_parameters())
        return {stored: own[inside].detach() for stored, inside in self.trained.names.items()}


class TextClassifier(ClassifierBackbone, TextBackbone):
    """A sequence classifier up to its head.

    The feature is the pooled state of BERT, the first token's state of RoBERTa, the last token's of GPT-2,
    the decoder's state at the end of the text of T5.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        *,
        ref: str,
        checkpoint: Mapping[str, str] | None = None,
        fresh: Collection[str] = (),
    ) -> None:
        super().__init__(network, tokenizer, ref=ref, checkpoint=checkpoint)
        # The head finds the last token by the configuration's padding, whatever the tokenizer's is.
        self.padding = _padding_of(network.config.get_text_config(), tokenizer.pad_token_id)
        if getattr(network.config, "summary_type", None) == "last":
            self.padding_side = "left"  # XLNet's head reads the last place, whatever is there
        self._end = network.config.eos_token_id if network.config.is_encoder_decoder else None
        example = self.collate(["one two", "one"])
        self.take_apart(lambda: network(**example), fresh)

    def pool(self, batch: Mapping[str, Tensor]) -> Tensor:
        """What the head is given (N, d)."""
        return self._trunk.features(self.network(**batch))

    def prepare(self, inputs: Sequence[Text], max_length: int | None = None) -> list[Tokens]:
        """Token ids; those of an encoder-decoder end as its head expects."""
        prepared = super().prepare(inputs, max_length)
        if self._end is None:
            return prepared
        most = min(max_length or self._most, self._most)
        ended = [self._ended(tokens, most) for tokens in prepared]
        if len({tokens["input_ids"].count(self._end) for tokens in ended}) > 1:
            raise InputError(
                f"{self.ref}: some texts hold the token {self.tokenizer.convert_ids_to_tokens(self._end)!r}, "
                "and the head looks for it to find their end; take it out of the texts"
            )
        return ended

    def _ended(self, tokens: Tokens, most: int) -> Tokens:
        """With the end of the text, whose state the head reads, where the tokenizer gives none."""
        end = self._end
        if end is None or end in tokens["input_ids"]:
            return tokens
        last = {key: end if key == "input_ids" else row[-1] for key, row in tokens.items()}
        return {key: [*row[: most - 1], last[key]] for key, row in tokens.items()}


class ImageClassifier(ClassifierBackbone, ImageBackbone):
    """An image classifier up to its head; the feature is the pooled state, the class token, or a mean."""

    def __init__(
        self,
        network: Any,
        preprocessing: Preprocessing,
        *,
        ref: str,
        checkpoint: Mapping[str, str] | None = None,
        fresh: Collection[str] = (),
    ) -> None:
        super().__init__(network, preprocessing, self._features, ref=ref, checkpoint=checkpoint)
        [black] = self.example().values()
        pixels = torch.cat([black, 255 - black])
        self.take_apart(lambda: self.run(pixels), fresh)

    def _features(self, out: Any) -> Tensor:
        return self._trunk.features(out)


def _padding_of(config: Any, usual: int) -> int:
    """The number of the padding token, which is stated in the configuration if it was not."""
    if not isinstance(config.pad_token_id, int) or config.pad_token_id < 0:
        config.pad_token_id = usual
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id  # T5's, which small configurations leave out
    return int(config.pad_token_id)


def labels_of(config: Any, count: int) -> tuple[str, ...]:
    """What a configuration calls its classes; ``LABEL_0`` and so on where it does not."""
    stated = config.id2label or {}
    return tuple(str(stated.get(place, f"LABEL_{place}")) for place in range(count))


def load(ref: str, fresh: Collection[str] = ()) -> ClassifierBackbone:
    """The classifier in a checkpoint folder or on the hub, in float32.

    Args:
        fresh: parameters that belong to the head although they are part of the base model.

    Raises: InputError for a model that transformers has no classifier of.
    """
    path = config_file(ref)
    kind = model_type(path)
    if classifies(kind, "SEQUENCE"):
        return _load_text(ref, path.parent, fresh)
    if classifies(kind, "IMAGE"):
        return _load_image(ref, path.parent, fresh)
    raise InputError(
        f"{path}: model_type {kind!r}, {purpose_of(kind)}, has no classifier with a head of its own in "
        "transformers; take head: linear-probe"
    )


def _load_text(ref: str, folder: Path, fresh: Collection[str]) -> TextClassifier:
    network = load_network(transformers().AutoModelForSequenceClassification, ref)
    tokenizer = load_tokenizer(ref, folder, vocabulary_rows(network))
    stored = stored_names(folder, network)
    return TextClassifier(network, tokenizer, ref=ref, checkpoint=stored, fresh=fresh)


def _load_image(ref: str, folder: Path, fresh: Collection[str]) -> ImageClassifier:
    network = load_network(transformers().AutoModelForImageClassification, ref)
    preprocessing, stored = prepare(ref, network), stored_names(folder, network)
    return ImageClassifier(network, preprocessing, ref=ref, checkpoint=stored, fresh=fresh)
