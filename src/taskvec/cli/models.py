"""``taskvec models``: the models known by name, or one in full."""

from taskvec.cli._common import Json
from taskvec.cli._listing import print_entries, print_entry
from taskvec.models.known import MODELS, KnownModel, known_model


def models(name: str | None = None, /, *, json: Json = False) -> None:
    """List the models known by name, or show one. Any folder or hub id in the transformers layout works too.

    Args:
        name: A model.
    """
    if name is not None:
        print_entry(_record(known_model(name)), json)
    else:
        columns = ["model", "modality", "parameters", "hub", "what"]
        print_entries(MODELS.values(), json, _record, columns, _row)


def _record(model: KnownModel) -> dict[str, object]:
    return model.model_dump(mode="json", exclude={"package", "gguf", "install"}) | {"reference": model.ref()}


def _row(model: KnownModel) -> list[object]:
    return [model.name, model.modality, f"{model.parameters:,}", model.hub or "", model.about]
