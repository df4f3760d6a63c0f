"""Recipes of any dialect: opened, and written as models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec.arguments import checked
from taskvec.config import read_documents
from taskvec.edits import recipe
from taskvec.edits.card import render_card
from taskvec.edits.inputs import check_outside
from taskvec.edits.loading import check_loads
from taskvec.edits.merge import Merge
from taskvec.edits.named import Known, none_known
from taskvec.edits.outcome import summarize_change
from taskvec.errors import InputError
from taskvec.progress import Watch, unwatched
from taskvec.urls import said
from taskvec.vectors.checks import Fit
from taskvec.vectors.stored.files import summary
from taskvec.weights import save_weights
from taskvec.weights.parts import Part, Progress
from taskvec.weights.staging import SUFFIX
from taskvec.weights.writer import write_part


@checked
def open_recipe(path: str | Path, *, known: Known = none_known, **instead: object) -> Merge:
    """The model that a recipe file describes, ours or mergekit's.

    Args:
        known: the path or hub id that a short name in a recipe of ours stands for.
        **instead: fields in place of the recipe's, such as ``scale``; ``None`` for its own.

    Raises: InputError, one line, for whatever does not fit.
    Cost: reads headers, configs and tokenizers, and a few thousand entries of each matrix.
    """
    place = Path(path)
    documents = read_documents(place)
    if not any(isinstance(content, dict) and "merge_method" in content for content in documents):
        return recipe.read(place, _one_recipe(place, documents), known=known, **instead)
    from taskvec.edits import mergekit

    fit = _fit(instead)
    for name, value in instead.items():
        if value is not None and name not in Fit._fields:
            raise InputError(f"{path}: a recipe of mergekit, which has no {name}; leave it out (--{name})")
    if len(documents) == 1:
        return mergekit.read(place, documents[0], fit=fit)
    return mergekit.read_several(place, documents, fit)


def _fit(instead: Mapping[str, object]) -> Fit:
    """What becomes of tensors that not all models of a mergekit file have; it has no key for that."""
    given = instead.get("on_extra"), instead.get("on_missing")
    return Fit("drop" if given[0] == "drop" else "error", "zero" if given[1] == "zero" else "error")


def _one_recipe(path: Path, documents: Sequence[object]) -> object:
    """The content of a recipe of ours.

    Raises: InputError for several documents, and for files of mergekit's other tools.
    """
    from taskvec.edits.mergekit import describe_other

    content = documents[0]
    other = describe_other(content) if isinstance(content, dict) else None
    if other is not None:
        raise InputError(f"{path}: {other}")
    if len(documents) > 1:
        raise InputError(f"{path}: {len(documents)} documents, expected one recipe; write a file for each")
    return content


@checked
def save_merge(
    merge: Merge,
    path: str | Path,
    *,
    force: bool = False,
    memory: float = 512e6,
    processes: int = 1,
    resume: bool = False,
    watch: Watch = unwatched,
) -> Path:
    """Write a merged model, with a manifest and a model card.

    Args:
        path: a folder, or a ``.safetensors`` file, which holds the weights alone; or the URL of one.
        force, memory, processes, resume, watch: as for ``save_weights``.

    Returns: the path written.
    Raises: InputError for a folder that would not load; OutputExists; DiskFull; NonFinite.
    Cost: one read of the inputs, or more where a rule prepares; their fingerprints come with it.
    """
    arguments = _prepare(merge, path)
    arguments |= {"force": force, "memory": memory, "processes": processes, "watch": watch}
    return save_weights(merge.weights, path, resume=resume, **arguments)


@checked
def save_part(
    merge: Merge,
    path: str | Path,
    part: str | Part,
    *,
    force: bool = False,
    memory: float = 512e6,
    processes: int = 1,
    watch: Watch = unwatched,
) -> Progress:
    """Write one of several parts of a merged model, while other processes write others.

    The model, manifest and card included, has the bytes that ``save_merge`` writes. A part that was
    interrupted is gone on with by writing it again.

    Args:
        path: a folder on a disk that all of them see.
        part: which one, such as ``"3/8"``.
        force, memory, processes, watch: as for ``save_weights``.

    Returns: how far the model is; whoever comes last completes it.
    Raises: as ``save_merge``; InputError for parts of another recipe, other inputs, options or versions.
    Cost: reading what the part is made of; a pass that a rule takes over the whole model is taken by each
        part.
    """
    arguments = _prepare(merge, path)
    arguments |= {"force": force, "memory": memory, "processes": processes, "watch": watch}
    chosen = Part.parse(part, "part") if isinstance(part, str) else part
    return write_part(merge.weights, path, chosen, about=merge.record, **arguments)


def _prepare(merge: Merge, path: str | Path) -> dict[str, Any]:
    """The arguments that a merge is written with."""
    check_outside(path, merge.inputs.values())
    name = Path(said(str(path))).name
    if Path(name).suffix != SUFFIX:
        check_loads(merge)
    for weights in merge.inputs.values():
        weights.fingerprint_while_reading()
    return {
        "max_shard_size": merge.max_shard_size,
        "like": merge.like,
        "manifest": lambda: _manifest(merge),
        "extra_files": {**merge.files, "README.md": lambda: render_card(merge, name)},
        "allow_nonfinite": merge.allow_nonfinite,
    }


def _manifest(merge: Merge) -> dict[str, Any]:
    vectors = {name: {"path": vector.ref, **summary(vector.info)} for name, vector in merge.vectors.items()}
    inputs = {
        said(name): {"ref": weights.ref, "fingerprint": weights.fingerprint()}
        for name, weights in merge.inputs.items()
    }
    change = summarize_change(merge.weights.changes)
    return {**merge.record, **({"vectors": vectors} if vectors else {}), "inputs": inputs, "change": change}
