"""What a mergekit YAML file may hold. Keys that are not here are refused."""

from typing import Annotated, Any, Self, cast

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from taskvec.config import Config
from taskvec.edits.mergekit.methods import METHODS
from taskvec.edits.mergekit.templates import is_text
from taskvec.edits.vocabulary import Vocab
from taskvec.reading import exists
from taskvec.registry import nearest

_VOCABULARIES = ("base", "union")
_DTYPES = ("float32", "float16", "bfloat16", "float64")


def _reference(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("expected a folder or a hub id (org/name@revision), with + an adapter")
    if value.count("+") > 1 and not exists(value):
        raise ValueError("more than one +, expected a model and one adapter")
    return value


def _dtype(value: object) -> object:
    name = str(value).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(nearest(name, _DTYPES))
    return name


_Reference = Annotated[str, BeforeValidator(_reference)]
Dtype = Annotated[str, BeforeValidator(_dtype)]
Parameters = dict[str, Any] | None


class Model(Config):
    """One of the models that are merged."""

    model: _Reference
    parameters: Parameters = None


class Source(Config):
    """Some layers of a model, from the first number up to but without the second."""

    model: _Reference
    layer_range: tuple[int, int]
    parameters: Parameters = None

    @field_validator("layer_range")
    @classmethod
    def _in_order(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= value[0] < value[1]:
            raise ValueError("expected [first, end] with 0 <= first < end")
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

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if bool(self.models) == bool(self.slices):
            raise ValueError(_forms(self.models))
        return self


class Tokenizer(Config):
    """Which tokenizer the output gets."""

    source: Annotated[str, AfterValidator(lambda source: _vocabulary(source))] = "union"


class Document(Config):
    """The whole file."""

    name: str | None = None
    """What the result is called; it changes nothing."""
    merge_method: str
    models: list[Model] | None = None
    slices: list[Slice] | None = None
    modules: dict[str, Module] | None = None
    base_model: _Reference | None = None
    parameters: Parameters = None
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: str | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None

    @field_validator("merge_method")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METHODS:
            raise ValueError(f"no such method; {nearest(value, METHODS)}")
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
    def _text_or_auto(cls, value: str | None) -> str | None:
        if value and value != "auto" and not is_text(value):
            raise ValueError("templates by name are not included, expected auto or the template itself")
        return value or None

    @field_validator("tokenizer_source")
    @classmethod
    def _known_vocabulary(cls, value: str | None) -> str | None:
        return None if value is None else _vocabulary(value)

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.modules and (self.models or self.slices):
            raise ValueError("modules beside models or slices, expected one of them")
        if not self.modules and bool(self.models) == bool(self.slices):
            raise ValueError(_forms(self.models))
        return self

    @model_validator(mode="after")
    def _tokens_of_a_base(self) -> Self:
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise ValueError("both tokenizer_source and tokenizer, expected one of them")
        if self.vocab is not None and self.base_model is None:
            raise ValueError("tokens are matched with those of a base_model, which is missing")
        return self

    @property
    def module(self) -> Module:
        """What the output is merged from, whether it stands in ``modules`` or at the top."""
        if self.modules:
            return self.modules["default"]
        return Module.model_construct(models=self.models, slices=self.slices, parameters=None)

    @property
    def vocab(self) -> Vocab | None:
        """Which vocabulary the output gets; ``None`` leaves rows where they are."""
        source = self.tokenizer.source if self.tokenizer is not None else self.tokenizer_source
        return cast(Vocab | None, source)


def _vocabulary(source: str) -> str:
    if source not in _VOCABULARIES:
        raise ValueError(f"expected one of {', '.join(_VOCABULARIES)}; a model's own is not supported")
    return source


def _forms(models: object) -> str:
    return f"{'both' if models else 'neither'} models and slices, expected one of them"
