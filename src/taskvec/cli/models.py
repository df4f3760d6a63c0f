"""``taskvec models``: the models known by name, or one in full."""

from typing import Annotated

from cyclopts import Parameter

from taskvec.cli._common import Json
from taskvec.cli._listing import print_entries, print_entry
from taskvec.models.known import GIVES, MODELS, KnownModel, known_model

Kinds = Annotated[bool, Parameter(name="--kinds", negative=())]


def models(name: str | None = None, /, *, kinds: Kinds = False, json: Json = False) -> None:
    """List the models known by name, or show one. Any folder or hub id in the transformers layout works too.

    Args:
        name: A model.
        kinds: List the kinds of model that there are, and what each gives to tasks.
    """
    if kinds:
        print_entries(GIVES.items(), json, _kind, ["kind", "gives"], list)
    elif name is not None:
        print_entry(_record(known_model(name)), json)
    else:
        columns = ["model", "modality", "parameters", "hub", "what"]
        print_entries(MODELS.values(), json, _record, columns, _row)


def _kind(entry: tuple[str, str]) -> dict[str, object]:
    return {"kind": entry[0], "gives": entry[1]}


def _record(model: KnownModel) -> dict[str, object]:
    return model.model_dump(mode="json", exclude={"package", "gguf", "install"}) | {"reference": model.ref()}


def _row(model: KnownModel) -> list[object]:
    return [model.name, model.modality, f"{model.parameters:,}", model.hub or "", model.about]
