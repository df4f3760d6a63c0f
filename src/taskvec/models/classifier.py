"""Classifiers of transformers with their own trained head."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskvec.errors import InputError, and_more
from taskvec.models.backbone import Backbone, Outputs
from taskvec.models.checkpoint import (
    classifies,
    config_file,
    load_network,
    load_tokenizer,
    model_type,
    purpose_of,
    rows_of,
    stored_names,
    transformers,
)
from taskvec.models.heads import Head
from taskvec.models.image import ImageBackbone, prepare
from taskvec.models.loading import locate_model
from taskvec.models.preprocessing import Preprocessing
from taskvec.models.text import Text, TextBackbone, Tokens
from taskvec.models.trained import cut
from taskvec.reading import shown
from taskvec.weights import open_weights

_MEANINGLESS = re.compile(r"(label|class)?[ _-]*\d+")
"""Labels that a config gives where nobody named the classes."""

INSTEAD = (
    "name a checkpoint that has one ('checkpoint' of the task, or --heads-from), or take head: linear-probe"
)


@dataclass(frozen=True)
class TrainedHead:
    """The head that a classifier was trained with, frozen.

    Attributes:
        ref: the checkpoint, for messages.
        layers: features (N, d) to logits (N, C).
        names: checkpoint name -> name in ``layers``, for each of its parameters.
        labels: what the configuration calls the classes; C names.
        missing: parameters that the checkpoint lacks, so that the head would be random.
    """

    ref: str
    layers: nn.Sequential
    names: Mapping[str, str]
    labels: tuple[str, ...]
    missing: tuple[str, ...] = ()
    fresh: frozenset[str] = frozenset()
    """Parameters in the network that belong to the head, since the base checkpoint lacks them."""
    several: bool = False
    """Whether an input may have several labels at once."""

    def head(self, classes: Sequence[str], wordings: Mapping[str, Sequence[str]] | None = None) -> "OwnHead":
        """The head over the classes of a task, in their order.

        Args:
            wordings: other names of a class, one of which may be the checkpoint's.

        Raises: InputError if the checkpoint has no trained head, or one over other classes.
        """
        self.check()
        return OwnHead(self, _places(self, classes, wordings or {}), classes)

    def number(self) -> "OwnHead":
        """The head of a regression, which gives one number.

        Raises: InputError if the checkpoint has no trained head, or one over classes.
        """
        self.check()
        if len(self.labels) != 1:
            raise InputError(
                f"{self.ref}: its head has {_listed(self.labels)}, expected one number; take head: "
                "linear-probe, or kind: classification"
            )
        return OwnHead(self, [0], ["number"])

    def check(self) -> None:
        """Refuse a head that was never trained. Raises: InputError."""
        if self.missing:
            raise InputError(
                f"{self.ref}: has no trained head (the checkpoint lacks {self.missing[0]!r}"
                f"{and_more(self.missing)}); {INSTEAD}"
            )

    def at(self, params: Mapping[str, Tensor]) -> "TrainedHead":
        """The same with other values of some parameters, by checkpoint name."""
        layers = deepcopy(self.layers)
        own = dict(layers.named_parameters())
        with torch.no_grad():
            for stored, inside in self.names.items():
                if stored in params:
                    own[inside].copy_(params[stored])
        return replace(self, layers=layers)


class OwnHead(Head):
    """A trained head with its classes in the order of a task's."""

    def __init__(self, trained: TrainedHead, places: Sequence[int], classes: Sequence[str]) -> None:
        before = deepcopy(trained.layers)
        last: Any = before.pop(-1)
        order = list(places)
        super().__init__(
            last.weight[order],
            None if last.bias is None else last.bias[order],
            normalize=False,
            classes=classes,
            kind="own",
            before=before if len(before) else None,
        )
        self._made_of = (trained, order)

    def at(self, params: Mapping[str, Tensor]) -> "Head":
        """The head of an edited model: an edit moves it like any other weight."""
        trained, order = self._made_of
        if params.keys().isdisjoint(trained.names):
            return self
        return OwnHead(trained.at(params), order, self.classes).to(self.weight.device)


def _places(trained: TrainedHead, classes: Sequence[str], wordings: Mapping[str, Sequence[str]]) -> list[int]:
    """The row of the head for each class: by name, or in order where the labels say nothing.

    Raises: InputError.
    """
    labels = [_plain(label) for label in trained.labels]
    if len(labels) == 1 or trained.several:
        gives = "several labels at once" if trained.several else "one number"
        other = "" if trained.several else ", or kind: regression for a number"
        raise InputError(
            f"{trained.ref}: its head gives {gives}, expected one of {_listed(classes)}; take head: "
            f"linear-probe{other}"
        )
    if len(labels) != len(classes):
        raise InputError(
            f"{trained.ref}: its head has {_listed(trained.labels)}, and the task {_listed(classes)}; list "
            "the classes as the head has them, and those that make up the task under 'keep'"
        )
    places: list[int] = []
    for name in classes:
        known = {_plain(word) for word in (name, *wordings.get(name, ()))}
        found = [place for place, label in enumerate(labels) if label in known]
        if len(found) != 1 or found[0] in places:
            if all(_MEANINGLESS.fullmatch(label) for label in labels):
                return list(range(len(classes)))
            raise InputError(
                f"{trained.ref}: its head has {_listed(trained.labels)}, expected {_listed(classes)} as in "
                f"the task; give the head's name of {name!r} under 'wordings'"
            )
        places += found
    return places


def _plain(label: str) -> str:
    """A label as it is compared: ``Not_Entailment`` and ``not entailment`` are the same."""
    return re.sub(r"[\s_-]+", " ", label).strip().casefold()


def _listed(names: Sequence[str]) -> str:
    words = "class" if len(names) == 1 else "classes"
    return f"the {words} {shown(list(names))}" if len(names) <= 8 else f"{len(names)} {words}"


def trained_head(backbone: Backbone, lender: str | None = None) -> TrainedHead:
    """The trained head of a classifier, or of another checkpoint of the same architecture, for its features.

    Args:
        lender: what ``load_backbone`` takes.

    Raises: InputError if the model was not loaded as a classifier, or the lender's head does not fit it.
    """
    if not isinstance(backbone, ClassifierBackbone):
        raise InputError(
            f"{backbone.ref}: head: own needs a classifier of transformers; load it with "
            "load_backbone(ref, 'classifier')"
        )
    if lender is None:
        return backbone.trained
    other = load(locate_model(lender), backbone.trained.fresh)
    other.trained.check()
    if type(other.network) is not type(backbone.network) or not other.shares_cut(backbone):
        raise InputError(
            f"{other.ref}: a {type(other.network).__name__} with features of {other.dim}, and its head "
            f"cannot read those of {backbone.ref}, a {type(backbone.network).__name__} with {backbone.dim}; "
            "take the head of a model that was tuned from it"
        )
    return replace(other.trained, names={})  # no edit of the backbone reaches it


class ClassifierBackbone(Backbone):
    """A classifier up to its head, whose features are what the head is given.

    Attributes:
        trained: the head.
    """

    trained: TrainedHead
    outputs: Outputs = "classifier"

    def shares_cut(self, other: "ClassifierBackbone") -> bool:
        """Whether the head begins at the same layer, with as many features."""
        names = [list(backbone._trunk.names.values()) for backbone in (self, other)]
        return names[0] == names[1] and self.dim == other.dim

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
        try:
            trunk = cut(network, run, fresh)
        except Exception as error:  # whatever a network can raise that does not fit its inputs
            raise self.unfit(error) from error
        if trunk is None:
            raise InputError(
                f"{self.ref}: the head of {type(network).__name__} is no chain of layers that ends with a "
                "linear one; take its encoder with head: linear-probe"
            )
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


def fingerprint_of(lender: str) -> str:
    """Digest of the weights of a checkpoint that lends its head."""
    return open_weights(locate_model(lender)).fingerprint()


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
    tokenizer = load_tokenizer(ref, folder, rows_of(network.get_input_embeddings()))
    stored = stored_names(folder, network)
    return TextClassifier(network, tokenizer, ref=ref, checkpoint=stored, fresh=fresh)


def _load_image(ref: str, folder: Path, fresh: Collection[str]) -> ImageClassifier:
    network = load_network(transformers().AutoModelForImageClassification, ref)
    preprocessing, stored = prepare(ref, network), stored_names(folder, network)
    return ImageClassifier(network, preprocessing, ref=ref, checkpoint=stored, fresh=fresh)
