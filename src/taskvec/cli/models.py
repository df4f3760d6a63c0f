"""``taskvec models``: the models known by name, or one in full."""

from taskvec.cli._common import Json, print_json
from taskvec.cli._listing import print_lines, show
from taskvec.models.known import MODELS, KnownModel, known_model


def models(name: str | None = None, /, *, json: Json = False) -> None:
    """List the models known by name, or show one. Any folder or hub id in the transformers layout works too.

    Args:
        name: A model.
    """
    if name is not None:
        show(_shown(known_model(name)), json)
    elif json:
        print_json([_shown(model) for model in MODELS.values()])
    else:
        rows = [
            [model.name, model.modality, f"{model.parameters:,}", model.hub or "", model.about]
            for model in MODELS.values()
        ]
        print_lines(["model", "modality", "parameters", "hub", "what"], rows)


def _shown(model: KnownModel) -> dict[str, object]:
    return model.model_dump(mode="json", exclude={"package"}) | {"reference": model.ref()}
