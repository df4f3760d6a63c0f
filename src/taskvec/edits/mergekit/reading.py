"""From a mergekit YAML file to a model that can be written."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from taskvec.edits import contradictions
from taskvec.edits.configs import derive_config, read_config_of, retype_modules
from taskvec.edits.inputs import describe_copy, errors_at, find_copies
from taskvec.edits.layers import Joined
from taskvec.edits.merge import Merge
from taskvec.edits.mergekit.document import Document, Parameters, Slice, Tokenizer
from taskvec.edits.mergekit.ignored import drop_ignored
from taskvec.edits.mergekit.intermediate import Intermediate
from taskvec.edits.mergekit.known import Ignored, describe_ignored, find_idle
from taskvec.edits.mergekit.layers import Entry, find_depths, take_layers
from taskvec.edits.mergekit.methods import METHODS
from taskvec.edits.mergekit.modules import has_parts, read_parts
from taskvec.edits.mergekit.references import open_reference, split_reference
from taskvec.edits.mergekit.section import Section
from taskvec.edits.mergekit.templates import choose_template
from taskvec.edits.mergekit.tokenizer import check_same_tokens, find_wanted
from taskvec.edits.mergekit.values import Scope, check_names, idle_filters, parse_scope
from taskvec.edits.passes import count_passes
from taskvec.edits.roles import FILE, list_left
from taskvec.edits.stacking import Place, group_layers, stack_config
from taskvec.edits.tokens import check_in_order, replaces_tokenizer
from taskvec.edits.vocabulary import align
from taskvec.errors import InputError
from taskvec.names import goes_by_token
from taskvec.vectors.checks import Fit
from taskvec.weights import Weights
from taskvec.weights.dtypes import EDITABLE, name_of
from taskvec.weights.matched import named_like
from taskvec.weights.picked import Picked

_ALIKE = Fit()
"""Tensors that not all models have are refused."""

_WIDE_ANYWAY = ("linear", "slerp", "passthrough")
"""Methods that mergekit computes in float32 whatever the dtype."""


Find = Callable[[str], Intermediate | None]
"""The name of another document -> what it makes."""


def read(
    path: Path,
    content: object,
    find: Find = lambda _: None,
    *,
    label: str = "",
    fit: Fit = _ALIKE,
) -> Merge:
    """The merge that a mergekit YAML file describes; reads headers, and some entries of each matrix.

    Args:
        path: of the file; for messages. Models are found from the working directory, as mergekit does.
        content: the plain data in it, or in one of its documents.
        find: another document that is a model here.
        label: what messages call the document.
        fit: what becomes of tensors that not all models have.

    Raises: InputError, one line, for anything that is unknown, missing or at odds.
    """
    where = f"{path}: {label}" if label else str(path)
    if isinstance(content, Mapping) and has_parts(content):
        before = f"{label}: " if label else ""
        return read_parts(
            where, content, lambda part, name: read(path, part, find, label=before + name, fit=fit)
        )
    kept, ignored = drop_ignored(content)
    reading = _Reading(where, Document.parse(where, kept), ignored, find, fit)
    document = reading.document
    sections = reading.sections()
    dtype = document.out_dtype or document.dtype
    weights = [section.merge(dtype) for section in sections]
    like = reading.like
    settings, faults = reading.described()
    config = derive_config(settings, dtype=dtype, tokens=reading.tokens)
    own = {"config.json": config, FILE: reading.template()}
    files = {
        **reading.files,
        **retype_modules(like, dtype),
        **{name: text for name, text in own.items() if text is not None},
    }
    return Merge(
        weights=weights[0] if len(weights) == 1 else Joined(weights),
        record={"recipe": content, "dialect": "mergekit", **_given(fit)},
        like=like,
        notes=tuple(reading.notes(sections)),
        inputs=reading.inputs,
        passes=partial(count_passes, *(section.vector for section in weights)),
        files=files,
        faults=faults,
    )


def _given(fit: Fit) -> dict[str, str]:
    """The options that let tensors differ, as the record keeps them."""
    options = {"on_extra": fit.on_extra, "on_missing": fit.on_missing}
    return {name: value for name, value in options.items() if value != "error"}


class _Reading:
    """A document with its models opened."""

    def __init__(self, where: str, document: Document, ignored: list[Ignored], find: Find, fit: Fit) -> None:
        self.where, self.document, self._find_made, self.fit = where, document, find, fit
        self.method = METHODS[document.merge_method]
        self.models: dict[str, Weights] = {}
        self.tokens: int | None = None
        self.files: Mapping[str, str] = {}
        self._notes: list[str] = []
        self._ignored = ignored
        self._aligned: Weights | None = None
        self._views: Mapping[Hashable, Weights] = {}
        self._module = document.module
        self._shared = (
            self._scope("modules.default.parameters", self._module.parameters),
            self._scope("parameters", document.parameters),
        )

    @property
    def inputs(self) -> dict[str, Weights]:
        """The models on the disk, those of the merges that are models here too."""
        inputs: dict[str, Weights] = {}
        for ref, model in self.models.items():
            made = self._find_made(split_reference(ref)[0])
            inputs |= {ref: model} if made is None else made.merge.inputs
        return inputs

    @property
    def like(self) -> Weights:
        """The model whose config and tokenizer files go with the output."""
        return self.first if self._aligned is None else self._aligned

    @cached_property
    def first(self) -> Weights:
        """The base model, or the first of all."""
        if self.document.base_model is not None:
            return self._open("base_model", self.document.base_model)
        return self._open(*self._module.sources[0])

    def sections(self) -> list[Section]:
        """What the output is made of, in its order."""
        if self.document.vocabulary is not None:
            self._align(self.document.vocabulary)
        if self._module.models:
            sections = [self._whole()]
        else:
            slices = self._module.slices or []
            starts = accumulate((piece.length for piece in slices), initial=0)
            last = len(slices) - 1
            sections = [
                self._slice(number, piece, start, last=number == last)
                for number, (piece, start) in enumerate(zip(slices, starts, strict=False))
            ]
            if self.document.vocabulary is None:
                self._check_tokens(sections)
        with errors_at(self.where):
            self._notes += contradictions.compare_models([self.first, *self.models.values()], like=self.first)
        return sections

    def described(self) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        """The config of the output, and why it does not describe it, if it does not."""
        if not self._module.slices:
            return read_config_of(self.like), ()
        firsts = [piece.sources[0] for piece in self._module.slices]
        held = {first.model: group_layers(self.models[first.model]) for first in firsts}
        places = [
            Place(first.model, self.models[first.model].folder, number, held[first.model].get(number))
            for first in firsts
            for number in range(*first.layer_range)
        ]
        with errors_at(self.where):
            config, faults = stack_config(self.like.folder, places)
        return config, tuple(f"{self.where}: slices: {fault}" for fault in faults)

    def template(self) -> str | None:
        """The chat template to be written, where it is not that of the copied files."""
        if self.document.chat_template is None:
            return None
        folders = [model.folder for model in self.models.values()]
        return choose_template(self.document.chat_template, self.like.folder, folders)

    def notes(self, sections: Sequence[Section]) -> list[str]:
        """Differences from mergekit, filters that do nothing, what is odd about the models."""
        document = self.document
        notes = [f"{document.merge_method}: {note}" for note in self.method.notes]
        held = [section.sources[0] for section in sections]
        codes = {model.spec(name).code for model in held for name in model} & EDITABLE
        computing = {document.dtype} if document.dtype else set(map(name_of, codes))
        narrow = sorted(computing & {"bfloat16", "float16"})
        if narrow and document.merge_method not in _WIDE_ANYWAY:
            notes.append(
                f"arithmetic is in float32, rounded once at the end, where mergekit's is in {narrow[0]}"
            )
        names = sorted({name for section in sections for held in section.names for name in held.values()})
        given = [value for section in sections for value in section.given()]
        notes += [f"filter {part!r} is part of no tensor's name" for part in idle_filters(given, names)]
        notes += [f"{name}: {describe_copy(first)}" for first, name in find_copies(self.inputs)]
        notes += [note for section in sections for note in section.notes()]
        if self.method.base == "start" and all(len(section.sources) == 1 for section in sections):
            notes.append("no model beside the base, which is written with its adapter")
        notes += describe_ignored(self._ignored)
        if not replaces_tokenizer(self.files):
            template, tokens = document.chat_template is None, document.vocabulary is None
            notes += list_left(self.models, self.like, "tokenizer_source", template=template, tokens=tokens)
        return list(dict.fromkeys([*notes, *self._notes]))

    # Forms

    def _whole(self) -> Section:
        """``models``: all layers of every model."""
        document = self.document
        entries = [
            Entry(
                f"models[{place}]",
                held.model,
                self._open(f"models[{place}].model", held.model),
                held.parameters,
            )
            for place, held in enumerate(self._module.models or [])
        ]
        base_model = document.base_model
        if base_model is not None and all(entry.ref != base_model for entry in entries):
            entries.append(Entry("base_model", base_model, self._open("base_model", base_model), None))
        self._check_distinct(entries, "models")
        base = self._base(entries, document.base_model, "base_model")
        if document.vocabulary is None:
            beside = "" if document.base_model else " and base_model"
            advice = f"match the rows by token: add tokenizer_source: union (or base){beside}"
            self._check_order((entry.model for entry in entries), advice)
        sources = [self._view(entry.model) for entry in entries]
        return self._section(
            self.where, entries, sources, [{name: name for name in s} for s in sources], base
        )

    def _slice(self, number: int, piece: Slice, start: int, *, last: bool) -> Section:
        """One of ``slices``: some layers of each source, renumbered from ``start`` on."""
        field = f"slices[{number}]"
        entries = []
        for place, source in enumerate(piece.sources):
            here = f"{field}.sources[{place}]"
            model = self._named(self._view(self._open(f"{here}.model", source.model)))
            entries.append(Entry(here, source.model, model, source.parameters, source.layer_range))
        self._check_distinct(entries, field)
        base = self._base(entries, piece.base_model or self.document.base_model, field)
        inner = self._scope(f"{field}.parameters", piece.parameters)
        names = [take_layers(self.where, entry, start, first=number == 0, last=last) for entry in entries]
        sources = [Picked(entry.model, held) for entry, held in zip(entries, names, strict=True)]
        return self._section(f"{self.where}: {field}", entries, sources, names, base, (inner,), start)

    def _section(
        self,
        where: str,
        entries: Sequence[Entry],
        sources: Sequence[Weights],
        names: Sequence[Mapping[str, str]],
        base: int | None,
        inner: tuple[Scope, ...] = (),
        start: int = 0,
    ) -> Section:
        return Section(
            where,
            self.method,
            tuple(sources),
            tuple(names),
            base,
            find_depths(names[base or 0], start, entries[base or 0]),
            (*inner, *self._shared),
            tuple(self._of_model(entry, place == base) for place, entry in enumerate(entries)),
            self._may_be_base,
            self.fit,
        )

    @cached_property
    def _may_be_base(self) -> bool:
        """Whether the base alone is a merge: one with an adapter, or beside slices with more models."""
        adapter = split_reference(self.document.base_model or "")[1] is not None
        several = any(len(piece.sources) > 1 for piece in self._module.slices or [])
        return self.method.vectors[0] == 1 and self.method.vectors[1] is None and (adapter or several)

    # Pieces

    def _open(self, field: str, ref: str) -> Weights:
        if ref not in self.models:
            self.models[ref] = self._find(field, ref)
        return self.models[ref]

    def _scope(self, field: str, given: Parameters, *, of_model: bool = False) -> Scope:
        """The parameters of a place that are used there."""
        method, known = self.document.merge_method, self.method.parameters
        used = {name for name in known if not of_model or known[name].of == "model"}
        idle = find_idle(field, given or {}, used, known, method)
        self._ignored += idle
        names = {ignored.key for ignored in idle}
        kept = {name: value for name, value in (given or {}).items() if name not in names}
        return parse_scope(f"{self.where}: {field}", kept, known, method=method, inside=of_model)

    def _of_model(self, entry: Entry, is_base: bool) -> Scope:
        if not (is_base and entry.parameters):
            return self._scope(f"{entry.field}.parameters", entry.parameters, of_model=True)
        where = f"{self.where}: {entry.field}.parameters"
        check_names(where, entry.parameters, self.method.parameters, method=self.document.merge_method)
        self._notes.append(
            f"{entry.field}: the parameters of the base model do nothing, it has no task vector; "
            "as in mergekit"
        )
        return {}

    def _base(self, entries: Sequence[Entry], wanted: str | None, field: str) -> int | None:
        """Which of the sources is the base, if the method has one."""
        kind = self.method.base
        if kind == "model" or (kind == "optional" and wanted is None):
            return None
        if wanted is None:
            raise InputError(
                f"{self.where}: base_model is missing, expected one for {self.document.merge_method!r}"
            )
        refs = [entry.ref for entry in entries]
        if refs.count(wanted) != 1:
            times = "several times" if wanted in refs else "not"
            raise InputError(
                f"{self.where}: {field}: the base model {wanted!r} is {times} among the sources, "
                "expected it once, with the layers that it is the base of"
            )
        return refs.index(wanted)

    def _check_distinct(self, entries: Sequence[Entry], field: str) -> None:
        keys = [(entry.model.identity, entry.span) for entry in entries]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise InputError(
                    f"{self.where}: {field}: {entries[place].model.ref!r} is given twice, expected it once; "
                    "add their weights up"
                )

    def _align(self, tokenizer: Tokenizer) -> None:
        """See all models in one vocabulary, their rows matched token by token."""
        base = self.document.base_model
        models = [self.first, *(self._open(*source) for source in self._module.sources)]
        first, *others = {model.identity: model for model in models}.values()
        if self._module.slices:
            with errors_at(self.where):
                check_same_tokens([first, *others])
        field = "tokenizer_source" if self.document.tokenizer_source else "tokenizer.source"
        wanted = find_wanted(tokenizer, field, self._find, based=base is not None)
        with errors_at(self.where):
            seen = align(first, others, wanted)
        self._views = {
            model.identity: view
            for model, view in zip([first, *others], [seen.base, *seen.tuned], strict=True)
        }
        self._aligned, self.tokens, self.files = seen.like, seen.rows, seen.files
        self._notes += seen.notes

    def _view(self, model: Weights) -> Weights:
        return self._views.get(model.identity, model)

    def _named(self, model: Weights) -> Weights:
        """A model in the naming of the first, as slices of both make one stack of layers."""
        seen = named_like(self._view(self.first), model)
        self._notes += seen.notes
        return seen.weights

    def _find(self, field: str, ref: str) -> Weights:
        """A model that may be another than those that are merged."""
        if ref in self.models:
            return self.models[ref]
        made = self._find_made(split_reference(ref)[0])
        with errors_at(f"{self.where}: {field}"):
            return open_reference(ref, made)

    def _check_order(self, models: Iterable[Weights], advice: str) -> None:
        """Refuse models whose rows disagree with the tokenizer of the output."""
        with errors_at(self.where):
            for model in models:
                self._notes += check_in_order(self.like, model, advice)

    def _check_tokens(self, sections: Sequence[Section]) -> None:
        """Refuse slices that give rows of other tokens; those that give layers alone may have any."""
        givers = {
            source.identity: self.models[entry.model]
            for piece, section in zip(self._module.slices or [], sections, strict=True)
            for entry, source in zip(piece.sources, section.sources, strict=True)
            if any(goes_by_token(name) for name in source)
        }
        advice = "bring the models to one vocabulary first, with a recipe that says vocab"
        self._check_order(givers.values(), advice)
