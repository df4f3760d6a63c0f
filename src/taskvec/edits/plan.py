"""What an edit will read, write and cost."""

import logging
import shutil
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from time import perf_counter

from taskvec.edits.inputs import check_outside
from taskvec.edits.loading import check_loads
from taskvec.edits.merge import Merge
from taskvec.edits.passes import Passes
from taskvec.later import count_threads, torch
from taskvec.reading import local_path
from taskvec.vectors import EditedWeights
from taskvec.weights import Weights
from taskvec.weights.beside import files_beside
from taskvec.weights.output import folders_of, plan_files
from taskvec.weights.staging import check_space, check_target
from taskvec.weights.stored import identity_of

_log = logging.getLogger(__name__)

_SAMPLE_SECONDS = 0.5
_SAMPLE_BYTES = 64 << 20


@dataclass(frozen=True)
class Plan:
    """What is known of an edit before it is made.

    Attributes:
        edited: tensors that are computed.
        copied: tensors that pass through as they are.
        read: bytes of the input files, read in every pass.
        passes: over the inputs, the one that writes included.
        ahead: those of them that come before the first tensor can be made.
        written: bytes of the output, side files included.
        shards: bytes of each file of weights.
        largest: the largest tensor of the output.
        largest_bytes: its bytes.
        memory: bytes that blocks at work take at most, about; torch itself comes on top.
        free: bytes free where the output goes.
        seconds: of reading, and of computing if no pass comes ahead, estimated from a sample; writing comes
            on top.
    """

    edited: int
    copied: int
    read: int
    passes: int
    ahead: int
    written: int
    shards: tuple[int, ...]
    largest: str
    largest_bytes: int
    memory: int
    free: int
    seconds: float


def make_plan(merge: Merge, target: Path, *, memory: float, force: bool = False) -> Plan:
    """The plan of writing a merge to ``target``, which is checked as for writing.

    Args:
        memory: bytes that blocks at work may take.
        force: as for writing.

    Raises: InputError for what would not load; OutputExists; DiskFull.
    Cost: about half a second, for the sample.
    """
    weights, target = merge.weights, local_path(target)
    single = target.suffix == ".safetensors"
    check_outside(target, merge.inputs.values())
    if not single:
        check_loads(merge)
    check_target(target, force=force, inputs=(*weights.files, *merge.like.files))
    shards = plan_files(weights, merge.like, None if single else merge.max_shard_size, {})
    beside = files_beside(None if single else merge.like.folder, folders_of(shards))
    written = sum(shard.size for shard in shards) + beside.size
    check_space(target, written)
    for note in beside.notes:
        _log.warning("%s", note)
    edited = count_edited(weights)
    largest = max(weights, key=lambda name: weights.spec(name).nbytes, default="")
    most = max((weights.working_bytes(name) for name in weights), default=0)
    threads, passes = max(2, count_threads()), merge.passes()
    files = {file for file in weights.files if file.is_file()}
    home = next(parent for parent in target.absolute().parents if parent.exists())
    return Plan(
        edited=edited,
        copied=len(weights) - edited,
        read=sum(identity_of(file).size for file in files),
        passes=passes.all,
        ahead=passes.ahead,
        written=written,
        shards=tuple(shard.size for shard in shards),
        largest=largest,
        largest_bytes=weights.spec(largest).nbytes if largest else 0,
        memory=max(most, min(int(memory), most * threads)),
        free=shutil.disk_usage(home).free,
        seconds=_seconds(merge, passes, threads),
    )


def count_edited(weights: Weights) -> int:
    """How many tensors are computed; all, for weights that do not know."""
    return len(list_edited(weights))


def list_edited(weights: Weights) -> frozenset[str]:
    """The tensors that are computed; all, for weights that do not know."""
    if not isinstance(weights, EditedWeights):
        return frozenset(weights)
    base, vector = weights.base, weights.vector
    changed = {base.tied.get(name, name) for name in vector if vector.terms_at(name)}
    return frozenset(name for name in weights if name in changed or weights.spec(name) != base.spec(name))


def _seconds(merge: Merge, passes: Passes, threads: int) -> float:
    """The time of a sample of the work, scaled to all of it.

    For a rule that measures the whole model first, only reading is sampled: computing would need that.
    """
    weights = merge.weights
    sources, times = ([*merge.inputs.values()], passes.all) if passes.ahead else ([weights], 1)
    sizes = {name: weights.spec(name).nbytes for name in weights if weights.spec(name).nbytes}
    if not sizes:
        return 0.0
    sample, total = _sample(sizes), sum(sizes.values())
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the threads that write do
    try:
        # What is done once for all is not in proportion.
        _read_whole(weights, sources, min(sizes, key=sizes.__getitem__))
        start, done = perf_counter(), 0
        for name in sample:
            _read_whole(weights, sources, name)
            done += sizes[name]
            if perf_counter() - start > _SAMPLE_SECONDS or done > _SAMPLE_BYTES:
                break
        return (perf_counter() - start) * total / done * times / threads
    finally:
        torch.set_num_threads(before)


def _sample(sizes: Mapping[str, int]) -> list[str]:
    """Tensors that stand for equal shares of all bytes, those in the middle first."""
    names = sorted(sizes, key=sizes.__getitem__)
    ends = list(accumulate(sizes[name] for name in names))
    shares = [(32 + 29 * place) % 64 for place in range(64)]
    return list(dict.fromkeys(names[bisect(ends, ends[-1] * share // 64)] for share in shares))


def _read_whole(weights: Weights, sources: Sequence[Weights], name: str) -> None:
    for rows in weights.row_blocks(name):
        for source in sources:
            if name in source:
                source.read(name, rows)
