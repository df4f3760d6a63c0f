"""Several merges in one file, as mergekit-multi runs them: each may name another as a model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskvec.edits.merge import Merge
from taskvec.edits.mergekit.intermediate import Intermediate
from taskvec.edits.mergekit.reading import read
from taskvec.errors import InputError, and_more
from taskvec.vectors.checks import Fit

_Content = Mapping[str, Any]
_DEEPEST = 20
"""How long a chain of documents may be; each is computed inside the one that names it."""


def read_several(path: Path, documents: Sequence[object], fit: Fit) -> Merge:
    """The merge of the document without a name, or of the last; the others are models that it may name.

    Raises: InputError, one line, for a document that does not fit, or is made of itself.
    """
    contents = [_mapping(path, number, content) for number, content in enumerate(documents, start=1)]
    unnamed = [content for content in contents if content.get("name") is None]
    if len(unnamed) > 1:
        raise InputError(
            f"{path}: {len(unnamed)} documents without a name, expected one; give the others a name"
        )
    final = unnamed[0] if unnamed else contents[-1]
    named = _Named(path, [content for content in contents if content.get("name") is not None], fit)
    made = named.read(final)
    notes = dict.fromkeys([*named.notes, *made.notes, *named.note_unused(final)])
    record = {**made.record, "recipe": contents}
    return replace(made, notes=tuple(notes), record=record, faults=(*named.faults, *made.faults))


def _mapping(path: Path, number: int, content: object) -> _Content:
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: document {number} is no mapping, expected one with merge_method")
    return content


class _Named:
    """The documents that have a name, each merged when it is first asked for."""

    def __init__(self, path: Path, contents: Sequence[_Content], fit: Fit) -> None:
        self.notes: list[str] = []
        self.faults: list[str] = []
        self._path, self._fit = path, fit
        self._contents: dict[str, _Content] = {}
        self._made: dict[str, Intermediate] = {}
        self._begun: set[str] = set()
        for content in contents:
            name = str(content["name"])
            if name in self._contents:
                raise InputError(f"{path}: two documents are named {name!r}, expected a name for each")
            self._contents[name] = content

    def read(self, content: _Content) -> Merge:
        """The merge of a document."""
        name = str(content.get("name") or "")
        return read(self._path, content, self.find, label=name, fit=self._fit)

    def note_unused(self, final: _Content) -> Iterator[str]:
        """A note if there are documents that none is made of."""
        unused = [
            name for name, held in self._contents.items() if held is not final and name not in self._made
        ]
        if unused:
            yield f"document {unused[0]!r} is no model of the last one, and is not made{and_more(unused)}"

    def find(self, name: str) -> Intermediate | None:
        """What a document of that name makes, if there is one."""
        content = self._contents.get(name)
        if content is not None and name not in self._made:
            if name in self._begun:
                raise InputError(f"{self._path}: {name}: is made of itself, expected models made before it")
            self._begun.add(name)
            if len(self._begun) - len(self._made) > _DEEPEST:
                raise InputError(f"{self._path}: {name}: more than {_DEEPEST} documents made of each other")
            merge = self.read(content)
            self.notes += [f"{name}: {note}" for note in merge.notes]
            self.faults += merge.faults
            self._made[name] = Intermediate(name, merge)
        return self._made.get(name)
