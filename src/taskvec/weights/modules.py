"""The modules of a sentence-transformers model: its weights lie in folders that ``modules.json`` names."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from taskvec.errors import CorruptFile, InputError
from taskvec.reading import inside, read_json
from taskvec.weights.lazy import Weights
from taskvec.weights.picked import Picked

if TYPE_CHECKING:
    from torch import Tensor

LISTED = "modules.json"


def module_folders(folder: Path) -> list[Path]:
    """The folders of the modules of a model, without the model's own; none for other models.

    Raises: InputError for a module that leads out of the folder; CorruptFile for a list that is none.
    """
    modules = folder / LISTED
    if not modules.is_file():
        return []
    listed = _listed_modules(modules)
    routed = (inner for module in (folder, *listed) for inner in _routed(module))
    return list(dict.fromkeys([*listed, *routed]))


def _listed_modules(modules: Path) -> list[Path]:
    match read_json(modules):
        case [*entries] if all(isinstance(entry, dict) for entry in entries):
            paths = [entry.get("path") for entry in entries]
            if all(isinstance(path, str) for path in paths):
                # The path of the first module usually is empty: the folder itself.
                return [inside(modules.parent, path, modules) for path in paths if Path(path).parts]
    raise CorruptFile(f"{modules}: expected a list of modules, each with a 'path'; save the model again")


def _routed(module: Path) -> list[Path]:
    """The modules inside one that chooses among them by the kind of input."""
    for name in ("router_config.json", "config.json"):  # the latter before sentence-transformers 5
        file = module / name
        if file.is_file():
            match read_json(file):
                case {"types": dict() as types, "structure": dict()}:
                    return [inside(module, place, file) for place in types if Path(place).parts]
    return []


def holds_weights(folder: Path) -> bool:
    """Whether weights lie in a folder itself."""
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin"))


class Modular(Weights):
    """A model and its modules as one: tensors of the module ``2_Dense`` are called ``2_Dense.…``.

    Args:
        modules: place in the folder -> weights; the model's own, if it has any, are at ``""``.
    """

    def __init__(self, ref: str, folder: Path, modules: Mapping[str, Weights]) -> None:
        self._owner: dict[str, Weights] = {}
        views = {place: _prefixed(weights, prefix_of(place)) for place, weights in modules.items()}
        for place, view in views.items():
            for name in view:
                if self._owner.setdefault(name, view) is not view:
                    raise InputError(f"{ref}: {name} lies in two modules; rename the folder {place}")
        super().__init__(
            ref,
            {name: view.spec(name) for name, view in self._owner.items()},
            ("modular", *(view.identity for view in views.values())),
            parts=list(views.values()),
            tied={alias: kept for view in views.values() for alias, kept in view.tied.items()},
            folder=folder,
        )
        self.sites = tuple(
            site._replace(prefix=prefix_of(place), folder=place)
            for place, weights in modules.items()
            for site in weights.sites
        )

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        return self._owner[name].read(name, rows)

    def _read_array(self, name: str, rows: slice | None) -> NDArray[Any]:
        return self._owner[name].read_array(name, rows)

    def own_bytes(self, name: str) -> int:
        """None: what was read is passed on."""
        return 0


def _prefixed(weights: Weights, prefix: str) -> Weights:
    tied = {f"{prefix}{alias}": f"{prefix}{kept}" for alias, kept in weights.tied.items()}
    return Picked(weights, {f"{prefix}{name}": name for name in weights}, tied=tied) if prefix else weights


def prefix_of(place: str) -> str:
    """What the names of a module's tensors begin with.

    >>> prefix_of("2_Dense"), prefix_of("")
    ('2_Dense.', '')
    """
    return f"{place.replace('/', '.')}." if place else ""
