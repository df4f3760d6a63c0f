"""What is written: the files of an output, planned, and what completes them once all tensors are there."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from taskvec._version import __version__
from taskvec.errors import CorruptFile, InputError
from taskvec.later import version
from taskvec.reading import copy_regular, local_path, read_mapping
from taskvec.urls import is_url, local_place, said
from taskvec.weights.beside import Beside, files_beside
from taskvec.weights.change import Change
from taskvec.weights.filenames import homes_of
from taskvec.weights.journal import Finished, spell
from taskvec.weights.lazy import Weights
from taskvec.weights.opening import WeightsLike, open_weights
from taskvec.weights.plan import Shard, plan_shards
from taskvec.weights.remote.file import RemoteIdentity
from taskvec.weights.staging import MANIFEST, SUFFIX, files_in
from taskvec.weights.stored import FileIdentity, identity_of
from taskvec.weights.tally import folded
from taskvec.writing import flush, remove, write_json

Text = str | Callable[[], str]

Manifest = Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None


def url_of(path: str | Path) -> str | None:
    """The URL of an output that does not go to a disk of this machine; none for one that does."""
    return path if isinstance(path, str) and is_url(path) and local_place(path) is None else None


@dataclass(frozen=True)
class Output:
    """A file or folder of weights to be.

    Attributes:
        source: what is written.
        target: where; for a place elsewhere, good for its name alone.
        shards: its files of weights.
        texts: name -> text of more files; or a function that gives it once all has been read.
        beside: the files that are copied.
        inputs: the files that are read.
        manifest: what the manifest says of how the weights were made.
    """

    source: Weights
    target: Path
    shards: Sequence[Shard]
    texts: Mapping[str, Text]
    beside: Beside
    inputs: Sequence[Path]
    manifest: Manifest

    @classmethod
    def of(
        cls,
        weights: WeightsLike,
        path: str | Path,
        like: Weights | None,
        max_shard_size: float,
        metadata: Mapping[str, str],
        manifest: Manifest,
        extra_files: Mapping[str, Text],
    ) -> "Output":
        """The output that ``save_weights`` writes with these arguments."""
        source = open_weights(weights)
        like = like or source
        url = url_of(path)
        target = local_path(path) if url is None else Path(said(url))
        single = target.suffix == SUFFIX
        shards = plan_files(source, like, None if single else max_shard_size, metadata)
        texts: dict[str, Text] = {} if single else {**like.makes, **like.texts, **extra_files}
        beside = _beside(None if single else like.folder, texts, shards)
        inputs = tuple(dict.fromkeys((*source.files, *like.files)))
        return cls(source, target, shards, texts, beside, inputs, manifest)

    @property
    def single(self) -> bool:
        """Whether it is a file."""
        return self.target.suffix == SUFFIX

    @property
    def size(self) -> int:
        """Bytes, without texts."""
        return sum(shard.size for shard in self.shards) + self.beside.size

    @property
    def names(self) -> list[str]:
        """The places of all files that a folder may get but the manifest, which comes last."""
        shards = [shard.file for shard in self.shards]
        beside = [place.as_posix() for _, place in self.beside.copied]
        return list(dict.fromkeys([*shards, *indexes_of(self.shards), *beside, *self.texts]))

    def states(self) -> dict[Path, FileIdentity | RemoteIdentity]:
        """The states that the inputs are in."""
        return {file: identity_of(file) for file in self.inputs}

    def check_unchanged(self, states: Mapping[Path, FileIdentity | RemoteIdentity]) -> None:
        """Refuse what was made of inputs that changed meanwhile.

        Raises: CorruptFile.
        """
        for file, state in states.items():
            if identity_of(file) != state:
                raise CorruptFile(f"{file}: was written to while it was read; run again")

    def complete(self, work: Path, finished: Sequence[Finished]) -> None:
        """Put beside the shards in ``work`` all else that there will be; the manifest last.

        Args:
            finished: what is known of the shards, and perhaps of the inputs.
        """
        digests: dict[str, bytes] = {}
        changes: dict[str, Change] = {}
        for known in finished:
            digests |= known.digests()
            changes |= known.moved()
            self._know_inputs(known.digests_of_inputs())
        # In the order of the output, so that sums are the same to the last bit.
        names = [name for shard in self.shards for name in shard.places]
        self.source.keep_outcome(digests, {name: changes[name] for name in names if name in changes})
        if self.single:
            return
        self._write_beside(work)
        _write_indexes(work, self.shards)
        facts = {
            "created_by": f"taskvec {__version__}",
            "fingerprint": folded(digests),
            "files": sorted({*files_in(work), *(shard.file for shard in self.shards)}),
        }
        more = self.manifest() if callable(self.manifest) else self.manifest or {}
        _write(work / MANIFEST, {**facts, **more})

    def complete_parts(self, work: Path, finished: Sequence[Finished]) -> None:
        """As ``complete``, where another process may have been at it and was killed."""
        planned = {work / shard.file for shard in self.shards}
        for file in work.rglob("*"):
            if file not in planned and (file.is_symlink() or not file.is_dir()):
                remove(file)
        self.complete(work, finished)

    def input_digests(self) -> list[dict[str, bytes]]:
        """What is known of the tensors of each input, if its fingerprint is wanted."""
        return [
            {} if weights.tally is None else weights.tally.digests(weights) for weights in self.source.inputs
        ]

    def _know_inputs(self, known: Sequence[Mapping[str, bytes]]) -> None:
        for weights, digests in zip(self.source.inputs, known, strict=False):
            if weights.tally is not None:
                weights.tally.know(digests)

    def _write_beside(self, work: Path) -> None:
        """Put files and texts into a folder."""
        for file, place in self.beside.copied:
            (work / place).parent.mkdir(parents=True, exist_ok=True)
            copy_regular(file, work / place)
            flush(work / place)
        for name, text in self.texts.items():
            if (content := text() if callable(text) else text) != "":
                _write(work / name, content)

    def facts(self, about: Mapping[str, Any], **more: object) -> dict[str, Any]:
        """What decides the output, in words that are the same on all machines that write parts of it.

        Raises: InputError for weights that other processes cannot have, and for a single file.
        """
        if self.single:
            raise InputError(f"{self.target}: one file, which has no parts; name a folder")
        made_of = spell(self.source.identity, anywhere=True)
        if not self.source.frozen or made_of != spell(self.source.identity, anywhere=True):
            raise InputError(
                f"{self.source.ref}: weights of this process alone, which others cannot write parts of; save "
                "them first, or write them without parts"
            )
        texts = {name: text for name, text in self.texts.items() if isinstance(text, str)}
        return {
            "taskvec": __version__,
            "torch": version(),
            **about,
            **more,
            "inputs": {
                f"{number} {name}": f"{size} bytes, {' '.join(map(str, more))}"
                for number, (name, size, *more) in enumerate(file.anywhere for file in self.states().values())
            },
            "shards": {shard.file: [shard.size, _digest(shard.header)] for shard in self.shards},
            "side files": [[str(place), file.stat().st_size] for file, place in self.beside.copied],
            "texts": {name: _digest(text) for name, text in texts.items()},
            "edit": _digest(made_of),
        }

    def is_written(self, about: Mapping[str, Any]) -> bool:
        """Whether the target is this output already, complete, and no input has changed since."""
        try:
            manifest = read_mapping(self.target / MANIFEST)
            written = (self.target / MANIFEST).stat().st_mtime_ns
        except (InputError, OSError):
            return False
        said = json.loads(json.dumps(about, default=str))
        return (
            manifest.get("created_by") == f"taskvec {__version__}"
            and all(manifest.get(key) == value for key, value in said.items())
            and all(_begins(self.target / shard.file, shard) for shard in self.shards)
            and all(state.mtime < written for state in self.states().values())
        )


def _digest(content: bytes | str) -> str:
    return xxhash.xxh3_128_hexdigest(content.encode() if isinstance(content, str) else content)


def _begins(path: Path, shard: Shard) -> bool:
    """Whether a file has the size and the header of a shard."""
    try:
        with path.open("rb") as file:
            return path.stat().st_size == shard.size and file.read(len(shard.header)) == shard.header
    except OSError:
        return False


def plan_files(
    source: Weights, like: Weights, max_size: float | None, metadata: Mapping[str, str]
) -> list[Shard]:
    """The files of weights written like others: in one file if there is no ``max_size``, else in a folder."""
    if max_size is None:
        return plan_shards(source, None, metadata)
    return plan_shards(source, max_size, metadata, homes_of(like))


def _beside(folder: Path | None, texts: Mapping[str, Text], shards: Sequence[Shard]) -> Beside:
    """What lies beside the weights and is copied; texts win over files of their names.

    Raises: InputError for a file that would lie where something is written.
    """
    # On some disks names that differ by case are one.
    given = {name.casefold() for name in texts}
    found = files_beside(folder, folders_of(shards))
    copied = [(file, place) for file, place in found.copied if str(place).casefold() not in given]
    written = {MANIFEST, *(shard.index for shard in shards), *(shard.file for shard in shards)}
    ours = given | {name.casefold() for name in written}
    for file, place in copied:
        for part in (place, *place.parents):
            if str(part).casefold() in ours:
                raise InputError(f"{file}: would lie where {part} is written; rename it")
    return found._replace(copied=copied)


def folders_of(shards: Sequence[Shard]) -> set[str]:
    """The folders, inside that of the model, that files of weights are written into."""
    return {str(Path(shard.file).parent) for shard in shards}


def indexes_of(shards: Sequence[Shard]) -> dict[str, list[Shard]]:
    """The indexes to be, each with the shards that it lists; a single shard has none."""
    listed: dict[str, list[Shard]] = {}
    for shard in shards:
        listed.setdefault(shard.index, []).append(shard)
    return {index: group for index, group in listed.items() if len(group) > 1}


def _write_indexes(folder: Path, shards: Sequence[Shard]) -> None:
    """The index of each folder that holds several shards."""
    for index, group in indexes_of(shards).items():
        content = {
            "metadata": {"total_size": sum(shard.data_size for shard in group)},
            "weight_map": {
                name.removeprefix(shard.prefix): Path(shard.file).name
                for shard in group
                for name in shard.places
            },
        }
        _write(folder / index, content)


def _write(path: Path, content: str | Mapping[str, Any]) -> None:
    """A text, or a JSON document, that is on the disk."""
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        write_json(path, content)
    flush(path)
