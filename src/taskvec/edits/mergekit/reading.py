"""From a mergekit YAML file to a model that can be written."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from taskvec.edits import contradictions
from taskvec.edits.configs import config_of
from taskvec.edits.inputs import check_sound, copies, said_of_copy, told
from taskvec.edits.layers import Joined, Picked
from taskvec.edits.merge import Merge
from taskvec.edits.mergekit.document import Document, Slice
from taskvec.edits.mergekit.methods import METHODS
from taskvec.edits.mergekit.part import Part
from taskvec.edits.mergekit.settings import Scope, idle_filters, parse_scope
from taskvec.edits.mergekit.templates import FILE, chosen
from taskvec.edits.passes import passes
from taskvec.edits.tokens import check_in_order, tokens_of
from taskvec.edits.vocabulary import Vocab, align
from taskvec.errors import InputError
from taskvec.names import block_of, comes_before_blocks, count_blocks, goes_by_token, renumber
from taskvec.reading import exists
from taskvec.vectors import TaskVector, apply
from taskvec.weights import Weights, open_weights
from taskvec.weights.dtypes import EDITABLE, short

_WIDE_ANYWAY = ("linear", "slerp", "passthrough")
"""Methods that mergekit computes in float32 whatever the dtype."""


def read(path: Path, content: object) -> Merge:
    """The merge that a mergekit YAML file describes; reads headers, and some entries of each matrix.

    Args:
        path: of the file; for messages. Models are found from the working directory, as mergekit does.
        content: the plain data in it.

    Raises: InputError, one line, for anything that is unknown, missing or at odds.
    """
    document = Document.parse(str(path), content)
    reading = _Reading(str(path), document)
    parts = reading.parts()
    dtype = _torch_dtype(document.out_dtype or document.dtype)
    weights = [part.merged(reading.method, dtype) for part in parts]
    like = reading.like
    config = config_of(like.folder, layers=reading.described(), dtype=dtype, tokens=reading.tokens)
    files = {**reading.files, "config.json": config, FILE: reading.template()}
    return Merge(
        weights=weights[0] if len(weights) == 1 else Joined(weights),
        record={"recipe": content, "dialect": "mergekit"},
        like=like,
        notes=tuple(reading.notes(parts)),
        inputs=dict(reading.models),
        passes=partial(passes, *(one.vector for one in weights)),
        files={name: text for name, text in files.items() if text is not None},
    )


class _Reading:
    """A document with its models opened."""

    def __init__(self, where: str, document: Document) -> None:
        self.where, self.document = where, document
        self.method = METHODS[document.merge_method]
        self.models: dict[str, Weights] = {}
        self._said: list[str] = []
        self._aligned: Weights | None = None
        self.tokens: int | None = None
        self.files: Mapping[str, str] = {}
        self.module = document.module
        self.shared = (
            self._scope("modules.default.parameters", self.module.parameters),
            self._scope("parameters", document.parameters),
        )

    @property
    def like(self) -> Weights:
        """The model whose config and tokenizer files go with the output."""
        return self.first if self._aligned is None else self._aligned

    @cached_property
    def first(self) -> Weights:
        """The base model, or the first of all."""
        document = self.document
        if document.base_model is not None:
            return self._open("base_model", document.base_model)
        if self.module.models:
            return self._open("models[0].model", self.module.models[0].model)
        assert self.module.slices
        return self._open("slices[0].sources[0].model", self.module.slices[0].sources[0].model)

    def parts(self) -> list[Part]:
        """What the output is made of, in its order."""
        if self.module.models:
            parts = [self._whole()]
        else:
            slices = self.module.slices or []
            starts = [0]
            for piece in slices:
                starts.append(starts[-1] + _length(piece))
            parts = [
                self._slice(number, piece, starts[number], last=number == len(slices) - 1)
                for number, piece in enumerate(slices)
            ]
            self._check_tokens(parts)
        with told(self.where):
            self._said += contradictions.of_models([self.first, *self.models.values()], like=self.first)
        return parts

    def described(self) -> list[tuple[Path | None, int]] | None:
        """The model folder and layer that each layer of the output is described by."""
        if not self.module.slices:
            return None
        firsts = (piece.sources[0] for piece in self.module.slices)
        return [
            (self.models[first.model].folder, number)
            for first in firsts
            for number in range(*first.layer_range)
        ]

    def template(self) -> str | None:
        """The chat template to be written, where it is not that of the copied files."""
        if self.document.chat_template is None:
            return None
        folders = [model.folder for model in self.models.values()]
        return chosen(self.document.chat_template, self.like.folder, folders)

    def notes(self, parts: Sequence[Part]) -> list[str]:
        """What is to be said: differences from mergekit, filters that do nothing."""
        document = self.document
        said = [f"{document.merge_method}: {note}" for note in self.method.notes]
        dtypes = {part.sources[0].spec(name).dtype for part in parts for name in part.sources[0]} & EDITABLE
        computing = {document.dtype} if document.dtype else {short(dtype) for dtype in dtypes}
        narrow = sorted(computing & {"bfloat16", "float16"})
        if narrow and document.merge_method not in _WIDE_ANYWAY:
            said.append(
                f"arithmetic is in float32, rounded once at the end, where mergekit's is in {narrow[0]}"
            )
        names = sorted({name for part in parts for own in part.own_names for name in own.values()})
        scopes = [scope for part in parts for own in (part.shared, *part.own) for scope in own]
        said += [f"filter {part!r} is part of no tensor's name" for part in idle_filters(scopes, names)]
        said += [f"{name}: {said_of_copy(first)}" for first, name in copies(self.models)]
        said += [note for part in parts for note in part.distances()]
        return list(dict.fromkeys([*said, *self._said]))

    # Forms

    def _whole(self) -> Part:
        """``models``: all layers of every model."""
        document = self.document
        entries = [(entry.model, entry.parameters) for entry in self.module.models or []]
        if document.base_model is not None and all(ref != document.base_model for ref, _ in entries):
            entries.append((document.base_model, None))
        fields = [f"models[{number}]" for number in range(len(entries))]
        sources = [self._open(f"{field}.model", ref) for field, (ref, _) in zip(fields, entries, strict=True)]
        self._check_distinct(sources, [source.identity for source in sources], "models")
        refs = [ref for ref, _ in entries]
        base = self._base(refs, document.base_model, "base_model")
        if document.vocab is not None:
            sources = self._in_one_vocabulary(sources, refs.index(document.base_model or ""), document.vocab)
        else:
            beside = "" if document.base_model else " and base_model"
            self._check_order(
                sources, f"match the rows by token: add tokenizer_source: union (or base){beside}"
            )
        own = tuple(
            (self._own(field, given, place == base), *self.shared)
            for place, (field, (_, given)) in enumerate(zip(fields, entries, strict=True))
        )
        number = count_blocks(sources[0])
        layers = ((name, block_of(name)) for name in sources[0])
        return Part(
            self.where,
            tuple(sources),
            tuple({name: name for name in source} for source in sources),
            base,
            {name: _depth(layer.number, number[layer.stack]) if layer else 0.0 for name, layer in layers},
            self.shared,
            own,
        )

    def _slice(self, number: int, piece: Slice, start: int, *, last: bool) -> Part:
        """One of ``slices``: some layers of each source, renumbered from ``start`` on."""
        field = f"slices[{number}]"
        refs = [source.model for source in piece.sources]
        places = [f"{field}.sources[{place}]" for place in range(len(refs))]
        models = [self._open(f"{place}.model", ref) for place, ref in zip(places, refs, strict=True)]
        ranges = [source.layer_range for source in piece.sources]
        self._check_distinct(models, [(m.identity, r) for m, r in zip(models, ranges, strict=True)], field)
        wanted = piece.base_model or self.document.base_model
        base = self._base(refs, wanted, field)
        inner = self._scope(f"{field}.parameters", piece.parameters)
        names = tuple(
            self._names(place, model, span, start, first=number == 0, last=last)
            for place, model, span in zip(places, models, ranges, strict=True)
        )
        length = _length(piece)
        layers = ((name, block_of(name)) for name in names[0])
        own = tuple(
            (self._own(place, source.parameters, at == base), inner, *self.shared)
            for at, (place, source) in enumerate(zip(places, piece.sources, strict=True))
        )
        return Part(
            f"{self.where}: {field}",
            tuple(Picked(model, own_names) for model, own_names in zip(models, names, strict=True)),
            names,
            base,
            {name: _depth(layer.number - start, length) if layer else 0.0 for name, layer in layers},
            (inner, *self.shared),
            own,
        )

    def _names(
        self, field: str, model: Weights, span: tuple[int, int], start: int, *, first: bool, last: bool
    ) -> dict[str, str]:
        """Name in the output -> name in the model, of the tensors that a slice takes from it."""
        stacks = count_blocks(model)
        if len(stacks) != 1:
            found = ", ".join(stacks) or "none"
            raise InputError(
                f"{self.where}: {field}: slices are of models with one stack of layers, found {found}"
            )
        [number] = stacks.values()
        if span[1] > number:
            raise InputError(
                f"{self.where}: {field}.layer_range: {list(span)}, expected layers up to {number}, "
                f"as {model.ref} has"
            )
        names: dict[str, str] = {}
        for name in model:
            layer = block_of(name)
            if layer is None:
                if first if comes_before_blocks(name) else last:
                    names[name] = name
            elif span[0] <= layer.number < span[1]:
                names[renumber(name, start + layer.number - span[0])] = name
        return names

    # Pieces

    def _open(self, field: str, ref: str) -> Weights:
        if ref not in self.models:
            with told(f"{self.where}: {field}"):
                self.models[ref] = _opened(ref)
        return self.models[ref]

    def _scope(self, field: str, given: Mapping[str, Any] | None) -> Scope:
        return parse_scope(
            f"{self.where}: {field}",
            given,
            self.method.parameters,
            of_model=False,
            method=self.document.merge_method,
        )

    def _own(self, field: str, given: Mapping[str, Any] | None, is_base: bool) -> Scope:
        scope = parse_scope(
            f"{self.where}: {field}.parameters",
            given,
            self.method.parameters,
            of_model=True,
            method=self.document.merge_method,
        )
        if scope and is_base:
            self._said.append(
                f"{field}: the parameters of the base model do nothing, it has no task vector; as in mergekit"
            )
        return scope

    def _base(self, refs: Sequence[str], wanted: str | None, field: str) -> int | None:
        """Which of the sources is the base, as far as the method has one."""
        kind = self.method.base
        if kind == "model" or (kind == "optional" and wanted is None):
            return None
        if wanted is None:
            raise InputError(
                f"{self.where}: base_model is missing, expected one for {self.document.merge_method!r}"
            )
        if refs.count(wanted) != 1:
            found = "several times" if wanted in refs else "not"
            raise InputError(
                f"{self.where}: {field}: the base model {wanted!r} is {found} among the sources, "
                "expected it once, with the layers that it is the base of"
            )
        return refs.index(wanted)

    def _check_distinct(self, models: Sequence[Weights], keys: Sequence[object], field: str) -> None:
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise InputError(
                    f"{self.where}: {field}: {models[place].ref!r} is given twice, expected it once; "
                    "add their weights up"
                )

    def _in_one_vocabulary(self, sources: Sequence[Weights], base: int, vocab: Vocab) -> list[Weights]:
        """The models with their rows matched token by token, as views."""
        others = [source for place, source in enumerate(sources) if place != base]
        with told(self.where):
            seen = align(sources[base], others, vocab)
        self._aligned, self.tokens, self.files = seen.base, seen.facts["rows"], seen.files
        self._said += seen.facts["notes"]
        return [*seen.tuned[:base], seen.base, *seen.tuned[base:]]

    def _check_order(self, models: Iterable[Weights], advice: str) -> None:
        """Refuse models whose rows are of other tokens than the tokenizer that goes with the output says."""
        with told(self.where):
            for model in models:
                self._said += check_in_order(self.like, model, advice)

    def _check_tokens(self, parts: Sequence[Part]) -> None:
        """Refuse slices of models whose tokenizers differ, as rows are moved in whole models only.

        Those that give layers alone may have any, unless the vocabulary is to be changed.
        """
        if self.document.vocab is None:
            givers = {
                source.identity: self.models[entry.model]
                for piece, part in zip(self.module.slices or [], parts, strict=True)
                for entry, source in zip(piece.sources, part.sources, strict=True)
                if any(goes_by_token(name) for name in source)
            }
            advice = "bring the models to one vocabulary first, with a recipe that says vocab"
            self._check_order(givers.values(), advice)
            return
        base = tokens_of(self.like.folder)
        for ref, model in self.models.items():
            own = tokens_of(model.folder)
            if base is not None and own is not None and own != base:
                differing = sorted(own.items() ^ base.items(), key=str)[0][0]
                raise InputError(
                    f"{self.where}: {ref}: its tokenizer differs from that of {self.like.ref}, "
                    f"first in {differing!r}, expected the same for slices"
                )


def _opened(ref: str) -> Weights:
    """A model, or a model with an adapter (``model+adapter``) applied to it."""
    model, plus, adapter = ref.partition("+")
    if not plus or exists(ref):
        return check_sound(open_weights(ref))
    weights = check_sound(open_weights(model))
    return apply(weights, TaskVector.load(adapter).with_base(weights))


def _length(piece: Slice) -> int:
    first, end = piece.sources[0].layer_range
    return end - first


def _depth(number: int, layers: int) -> float:
    """0 for the first layer, 1 for the last; a single layer counts as the last."""
    return number / (layers - 1) if layers > 1 else 1.0


def _torch_dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else getattr(torch, name)
