"""A model as its users load it: whole, with its heads, and its tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from taskvec.errors import InputError, and_more
from taskvec.models import own
from taskvec.models.checkpoint import (
    config_file,
    load_network,
    load_tokenizer,
    read_config,
    rows_of,
    stored_names,
    transformers,
)
from taskvec.models.gguf import gguf_file
from taskvec.models.loading import locate_model
from taskvec.place import find_device
from taskvec.reading import shown
from taskvec.searching.resident import Loaded


@dataclass(frozen=True)
class Whole:
    """A network, and where its tokenizer lies."""

    network: Any
    ref: str

    @cached_property
    def tokenizer(self) -> Any:
        """That of its folder or GGUF file. Raises: InputError if there is none."""
        path = config_file(self.ref).parent
        return load_tokenizer(self.ref, path, rows_of(self.network.get_input_embeddings()), padded=False)


def load_whole(ref: str, device: str = "cpu") -> Loaded[Whole]:
    """The network of the class that config.json names under ``architectures``, in float32, in eval mode.

    Of a function of the user's own, the module that it wraps.

    Raises: InputError for one that transformers does not have, or makes of other tensors than the files hold.
    """
    if own.is_own(ref):
        made = own.load(ref)
        return _loaded(made.network, ref, {name: name for name in made.network.state_dict()}, device)
    place = locate_model(ref)
    path = config_file(place)
    packed = gguf_file(place) is not None
    network = load_network(transformers().AutoModelForCausalLM if packed else _architecture(path), place)
    return _loaded(network, place, stored_names(path.parent, network), device)


def _architecture(path: Path) -> Any:
    listed = read_config(path).get("architectures")
    library = transformers()
    if not isinstance(listed, list) or not listed:
        return library.AutoModel
    kind = getattr(library, str(listed[0]), None)
    if not isinstance(kind, type) or not issubclass(kind, library.PreTrainedModel):
        raise InputError(f"{path}: architectures: {shown(listed[0])}, expected a model class of transformers")
    return kind


def _loaded(network: nn.Module, ref: str, names: Mapping[str, str], device: str) -> Loaded[Whole]:
    """The network on its device, with its tensors by their names in the checkpoint."""
    network = network.to(find_device(device)).eval()
    held: dict[str, Tensor] = {
        name: value.detach()
        for name, value in network.state_dict(keep_vars=True).items()
        if value.is_floating_point()
    }
    known = {value.data_ptr() for name, value in held.items() if name in names}
    lacking = [name for name, value in held.items() if value.data_ptr() not in known]
    if lacking:
        raise InputError(
            f"{ref}: the checkpoint has no {lacking[0]!r}{and_more(lacking)}, which the model needs; ask for "
            "weights in place of model, or take --score-command"
        )
    return Loaded(Whole(network, ref), {names[name]: held[name] for name in held if name in names})
