"""Names to ``"module:attribute"``; a module is imported when its name is used."""

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Generic, TypeVar, cast

from taskvec.errors import UnknownName

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a name that is not known: the nearest one, or all of them."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"


class Registry(Mapping[str, T], Generic[T]):
    """A read-only mapping whose values are imported on first use.

    Raises: UnknownName, with the nearest name, for a name that is not there.
    """

    def __init__(self, noun: str, entries: Mapping[str, str]) -> None:
        self._noun = noun
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise UnknownName(f"no {self._noun} called {name!r}; {nearest(name, self._entries)}")
        module, _, attribute = self._entries[name].partition(":")
        return cast("T", getattr(import_module(module), attribute))

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
