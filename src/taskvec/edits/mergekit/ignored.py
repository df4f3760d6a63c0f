"""What mergekit reads over without a word: keys that have no meaning where they stand."""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from taskvec.config import Config
from taskvec.edits.mergekit.document import Document, Model, Module, Slice, Source
from taskvec.edits.mergekit.known import Ignored, find_misplaced


def drop_ignored(content: object) -> tuple[object, list[Ignored]]:
    """A file without the keys that mergekit ignores, and what was left out.

    Keys that begin with a dot, ``_`` or ``x-`` hold text for the aliases of YAML. An unknown key at the top
    is left out too, unless it looks misspelt. What is unknown otherwise stays, to be refused with the
    nearest name.
    """
    if not isinstance(content, Mapping):
        return content, []
    sieve = _Sieve()
    aliased = {key: value for key, value in content.items() if not str(key).startswith((".", "_", "x-"))}
    return sieve.of_document(aliased), sieve.ignored


class _Sieve:
    """Takes out what does nothing, and keeps a list of it. Other than mappings and lists are passed on."""

    def __init__(self) -> None:
        self.ignored: list[Ignored] = []

    def of_document(self, content: Mapping[str, Any]) -> Any:
        """The whole file."""
        top = self._of_module("", self._without_strange(content), Document)
        modules = top.get("modules")
        if not isinstance(modules, Mapping):
            return top
        inner = {name: self._of_module(f"modules.{name}", held, Module) for name, held in modules.items()}
        return {**top, "modules": inner}

    def _without_strange(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The file without keys that resemble none of mergekit's."""
        fields = Document.model_fields.keys()
        idle = {ignored.key for ignored in find_misplaced("", content, fields)}
        strange = [key for key in content if key not in idle and not _resembles(key, fields)]
        self.ignored += [Ignored(key, "", "is no key of mergekit and does nothing") for key in strange]
        return {key: value for key, value in content.items() if key not in strange}

    def _of_module(self, place: str, module: Any, kind: type[Config]) -> Any:
        """A mapping with models or slices."""
        made = self._keep(place, module, kind)
        made = self._each(place, made, "models", self._of_source(Model))
        return self._each(place, made, "slices", self._of_slice)

    def _of_slice(self, place: str, entry: Any) -> Any:
        return self._each(place, self._keep(place, entry, Slice), "sources", self._of_source(Source))

    def _of_source(self, kind: type[Config]) -> Callable[[str, Any], Any]:
        return lambda place, entry: self._keep(place, entry, kind)

    def _each(self, place: str, entry: Any, key: str, inner: Callable[[str, Any], Any]) -> Any:
        """A mapping, with what is in one of its lists sifted."""
        held = entry.get(key) if isinstance(entry, Mapping) else None
        if not isinstance(held, list):
            return entry
        return {**entry, key: [inner(f"{_dotted(place)}{key}[{n}]", each) for n, each in enumerate(held)]}

    def _keep(self, place: str, entry: Any, kind: type[Config]) -> Any:
        """A mapping without its idle keys, and so the models in it."""
        if not isinstance(entry, Mapping):
            return entry
        misplaced = find_misplaced(place, entry, kind.model_fields.keys())
        self.ignored += misplaced
        keys = {ignored.key for ignored in misplaced}
        kept = {key: value for key, value in entry.items() if key not in keys}
        models = {key: self._of_model(f"{_dotted(place)}{key}", kept[key]) for key in _MODELS if key in kept}
        return {**kept, **models}

    def _of_model(self, place: str, model: Any) -> Any:
        """A model, which may be a mapping that says which architecture it is taken for."""
        if not isinstance(model, Mapping) or "override_architecture" not in model:
            return model
        if model["override_architecture"] is not None:
            self.ignored += find_misplaced(place, ["override_architecture"], ())
        return {key: value for key, value in model.items() if key != "override_architecture"}


_MODELS = ("model", "base_model")


def _resembles(key: object, fields: Iterable[str]) -> bool:
    """Whether a key is one of some, or one of them misspelt."""
    return not isinstance(key, str) or bool(get_close_matches(key.lower(), fields, n=1, cutoff=0.75))


def _dotted(place: str) -> str:
    return f"{place}." if place else ""
