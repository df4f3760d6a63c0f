"""The weights, vectors and statistics that a recipe names, opened."""

from collections.abc import Callable, Hashable, Mapping
from pathlib import Path

from taskvec.edits.inputs import check_sound
from taskvec.errors import InputError
from taskvec.reading import exists, local_path
from taskvec.urls import is_url
from taskvec.vectors.opening import with_task
from taskvec.weights import Weights, hub, open_weights
from taskvec.weights.opening import with_part

Known = Callable[[str], str | Weights | None]

Held = tuple[Weights, str | None]
"""The file of a vector; of masked vectors also the task."""


def none_known(_: str) -> None:
    """No short names of models."""


class Named:
    """What a recipe may name: paths, URLs, hub ids and short names.

    Args:
        where: the file of the recipe; none for one that was made of options.
        folder: that paths are relative to.
        known: the path or hub id that a short name stands for, or its weights, where no file has that name.
    """

    def __init__(self, where: str, folder: Path, known: Known) -> None:
        self._where, self._folder, self._known = where, folder, known

    def open_vector(self, name: str, ref: str) -> Held:
        """The file of a vector; of masked vectors also the task."""
        task = with_task(ref if is_url(ref) else self._folder / local_path(ref))[1]
        return self.open(f"vectors: {name}", ref.removesuffix(f"#{task}")), task

    def open(self, field: str, ref: str) -> Weights:
        """What a field of the recipe names.

        Raises: InputError if it is not there.
        """
        if is_url(ref):
            return check_sound(open_weights(ref))
        path = self._folder / local_path(ref)
        if exists(with_part(path)[0]):
            return check_sound(open_weights(path))
        if (known := self._known(ref)) is not None:
            return open_weights(known)
        # A path into a folder that exists is a slip of the pen, not a wish to download.
        if exists(ref) or not hub.is_reference(ref) or exists(self._folder / Path(ref).parts[0]):
            missing = f"{path}: no such file or folder"
            raise InputError(
                f"{field}: {missing}; paths are relative to the recipe" if self._where else missing
            )
        return check_sound(open_weights(ref))


def check_distinct(vectors: Mapping[str, Held], models: Mapping[str, Weights]) -> None:
    """Refuse the same vector or model under two names.

    Raises: InputError.
    """
    keys: dict[str, Hashable] = {name: (held.identity, task) for name, (held, task) in vectors.items()}
    keys |= {name: (model.identity, None) for name, model in models.items()}
    seen: dict[Hashable, str] = {}
    for name, key in keys.items():
        earlier = seen.setdefault(key, name)
        if earlier != name:
            raise InputError(f"{earlier!r} and {name!r} are the same vector or model; give it once")
