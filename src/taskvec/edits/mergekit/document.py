"""What a mergekit YAML file may hold. Keys that are not here are refused."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from taskvec.config import Config
from taskvec.edits.mergekit.methods import LACKING, METHODS
from taskvec.edits.mergekit.references import parse_reference
from taskvec.edits.mergekit.templates import NAMED, is_text
from taskvec.registry import nearest

_DTYPES = ("float32", "float16", "bfloat16", "float64")


def _dtype(value: object) -> object:
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(nearest(name.lower(), _DTYPES))
    return name


_Reference = Annotated[str, BeforeValidator(parse_reference)]
Dtype = Annotated[str, BeforeValidator(_dtype)]
Parameters = dict[str, Any] | None


class Model(Config):
    """One of the models that are merged."""

    model: _Reference
    parameters: Parameters = None

    @model_validator(mode="before")
    @classmethod
    def _of_name(cls, value: object) -> object:
        return {"model": value} if isinstance(value, str) else value


_RANGE = "expected [first, end] with 0 <= first < end"


class Source(Config):
    """Some layers of a model, from the first number up to but without the second."""

    model: _Reference
    layer_range: tuple[int, int]
    parameters: Parameters = None

    @field_validator("layer_range", mode="before")
    @classmethod
    def _two(cls, value: object) -> object:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError(_RANGE)
        return value

    @field_validator("layer_range")
    @classmethod
    def _in_order(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] < value[1]:
            raise ValueError(_RANGE)
        return value


class Slice(Config):
    """Layers of the output, and what they are merged from."""

    sources: list[Source] = Field(min_length=1)
    base_model: _Reference | None = None
    parameters: Parameters = None

    @property
    def length(self) -> int:
        """The number of layers."""
        first, end = self.sources[0].layer_range
        return end - first

    @model_validator(mode="before")
    @classmethod
    def _has_sources(cls, value: object) -> object:
        if isinstance(value, Mapping) and "model" in value and "sources" not in value:
            raise ValueError("a model outside of sources, expected sources: [{model: …, layer_range: …}]")
        return value

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        lengths = [source.layer_range[1] - source.layer_range[0] for source in self.sources]
        if len(set(lengths)) > 1:
            raise ValueError(
                f"sources of {', '.join(map(str, lengths))} layers, expected the same number of all"
            )
        return self


class Module(Config):
    """The models that the output is merged from: whole, or in slices."""

    models: list[Model] | None = None
    slices: list[Slice] | None = None
    parameters: Parameters = None

    @property
    def sources(self) -> list[tuple[str, str]]:
        """Where each model is named, and by which reference."""
        if self.models:
            return [(f"models[{place}].model", entry.model) for place, entry in enumerate(self.models)]
        return [
            (f"slices[{number}].sources[{place}].model", source.model)
            for number, piece in enumerate(self.slices or [])
            for place, source in enumerate(piece.sources)
        ]

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if bool(self.models) == bool(self.slices):
            raise ValueError(_forms(self.models))
        return self


class ModelToken(Config):
    """The row of a token of a model."""

    kind: Literal["model_token"]
    model: _Reference
    token: str | None = None
    token_id: NonNegativeInt | None = None

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if (self.token is None) == (self.token_id is None):
            found = "neither" if self.token is None else "both"
            raise ValueError(f"{found} token and token_id, expected one of them")
        return self


class Zero(Config):
    """A row of zeros."""

    kind: Literal["zero"]


def _kind(source: object) -> str:
    kind = source.get("kind", "model") if isinstance(source, Mapping) else getattr(source, "kind", "model")
    return str(kind)


class Row(Config):
    """The row that a token gets; of a model, that of the same token."""

    source: (
        Annotated[
            Annotated[ModelToken, Tag("model_token")]
            | Annotated[Zero, Tag("zero")]
            | Annotated[_Reference, Tag("model")],
            Discriminator(
                _kind,
                custom_error_type="kind",
                custom_error_message="unknown kind, expected model_token or zero; or a model, without kind",
            ),
        ]
        | None
    ) = None
    force: bool = False

    @model_validator(mode="after")
    def _something_to_force(self) -> Self:
        if self.force and self.source is None:
            raise ValueError("force without a source, expected the model whose row it is")
        return self


class Tokenizer(Config):
    """Which tokenizer the output gets: that of the base, of all, or of a model."""

    source: _Reference = "union"
    tokens: dict[str, Row] | None = None
    pad_to_multiple_of: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_source(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError(f"expected a mapping; write tokenizer_source: {value}")
        return value


class Document(Config):
    """The whole file."""

    name: str | None = None
    """What other documents of the file call the result."""
    merge_method: str
    models: list[Model] | None = None
    slices: list[Slice] | None = None
    modules: dict[str, Module] | None = None
    base_model: _Reference | None = None
    parameters: Parameters = None
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: _Reference | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None

    @field_validator("merge_method")
    @classmethod
    def _known(cls, value: str) -> str:
        if value in LACKING:
            raise ValueError(f"a method of mergekit that taskvec lacks; known: {', '.join(sorted(METHODS))}")
        if value not in METHODS:
            raise ValueError(f"no such method; {nearest(value.lower(), METHODS)}")
        return value

    @field_validator("modules")
    @classmethod
    def _one_module(cls, value: dict[str, Module] | None) -> dict[str, Module] | None:
        if value and list(value) != ["default"]:
            raise ValueError(
                "only default is supported; to merge parts of a model apart, use models with filters"
            )
        return value

    @field_validator("chat_template")
    @classmethod
    def _known_template(cls, value: str | None) -> str | None:
        if value and value not in ("auto", *NAMED) and not is_text(value):
            raise ValueError(
                f"no template of that name, expected auto, one of {', '.join(NAMED)}, or its text"
            )
        return value or None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.modules and (self.models or self.slices):
            raise ValueError("modules beside models or slices, expected one of them")
        if not self.modules and bool(self.models) == bool(self.slices):
            raise ValueError(_forms(self.models))
        return self

    @model_validator(mode="after")
    def _one_tokenizer(self) -> Self:
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise ValueError("both tokenizer_source and tokenizer, expected one of them")
        return self

    @property
    def module(self) -> Module:
        """What the output is merged from, whether it stands in ``modules`` or at the top."""
        if self.modules:
            return self.modules["default"]
        return Module.model_construct(models=self.models, slices=self.slices, parameters=None)

    @property
    def vocabulary(self) -> Tokenizer | None:
        """What the file says of the tokenizer; ``None`` leaves rows where they are."""
        if self.tokenizer_source is None:
            return self.tokenizer
        return Tokenizer.model_construct(source=self.tokenizer_source)


def _forms(models: object) -> str:
    return f"{'both' if models else 'neither'} models and slices, expected one of them"
