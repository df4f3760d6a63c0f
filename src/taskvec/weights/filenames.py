"""How the files of weights are called, so that the loader that finds a model finds an edit of it too."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.errors import InputError
from taskvec.weights.configs import config_beside
from taskvec.weights.lazy import Site, Weights

_MODEL, _DIFFUSERS = "model", "diffusion_pytorch_model"

_STEMS = {
    "model": _MODEL,
    "pytorch_model": _MODEL,
    "diffusion_pytorch_model": _DIFFUSERS,
    "open_clip_model": "open_clip_model",
    "open_clip_pytorch_model": "open_clip_model",
    "consolidated": "consolidated",
}
"""The names that loaders look for -> what they look for in safetensors."""

_WHOLE = ("open_clip_model", "consolidated")
"""Those that are looked for in one file only."""

_FILE = re.compile(
    r"(?P<stem>.+?)(-\d+-of-\d+)?(?P<suffix>\.safetensors|\.bin|\.pth?|\.ckpt)(\.index(\.(?P<variant>[\w-]+))?\.json)?"
)


@dataclass(frozen=True)
class Naming:
    """The names of the files of weights in one folder.

    Attributes:
        stem: what all begin with.
        variant: such as ``fp16`` in ``model.fp16.safetensors``; empty for none.
        lone: the stem is for one file alone; several are called ``model``.
    """

    stem: str = _MODEL
    variant: str = ""
    lone: bool = False

    @property
    def whole(self) -> bool:
        """Whether the loader takes one file only."""
        return self.stem in _WHOLE

    @property
    def index(self) -> str:
        """The index of several files."""
        stem = _MODEL if self.lone else self.stem
        return f"{stem}.safetensors.index{self._dotted}.json"

    def file(self, number: int, count: int) -> str:
        """File ``number`` of ``count``."""
        if count == 1:
            return f"{self.stem}{self._dotted}.safetensors"
        stem = _MODEL if self.lone else self.stem
        return f"{stem}{self._dotted}-{number:05}-of-{count:05}.safetensors"

    @property
    def _dotted(self) -> str:
        return f".{self.variant}" if self.variant else ""


@dataclass(frozen=True)
class Home:
    """Where tensors are written: those of a prefix, which is left off, in a folder of their own."""

    prefix: str = ""
    folder: str = ""
    naming: Naming = Naming()

    def path(self, file: str) -> str:
        """The place of a file, from the folder of the model."""
        return f"{self.folder}/{file}" if self.folder else file


def homes_of(like: Weights) -> tuple[Home, ...]:
    """Where weights that are written like others go, the main ones first."""
    sites = like.sites or (Site(),)
    return tuple(Home(site.prefix, site.folder, _naming(like.folder, site)) for site in sites)


def home_of(name: str, homes: Sequence[Home]) -> Home:
    """Where a tensor goes: to the home of the longest prefix that it has, or else to the folder itself."""
    fitting = [home for home in homes if name.startswith(home.prefix)]
    return max(fitting, key=lambda home: len(home.prefix), default=Home())


def _naming(folder: Path | None, site: Site) -> Naming:
    found = _FILE.fullmatch(site.file)
    if found is None:
        return Naming()
    stem, _, variant = found["stem"].partition(".")
    if stem in _STEMS:
        return Naming(_STEMS[stem], variant or found["variant"] or "")
    config = _config(folder and folder / site.folder)
    if "model_type" in config:
        return Naming()
    if "_class_name" in config:
        return Naming(_DIFFUSERS)
    odd = not site.chosen and found["suffix"] == ".safetensors"
    return Naming(found["stem"], lone=True) if odd else Naming()


def _config(folder: Path | None) -> dict[str, Any]:
    """The config of a folder, empty if there is none to be read: who needs it says what is wrong."""
    with suppress(InputError):
        return config_beside(folder)
    return {}
