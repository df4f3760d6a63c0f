"""Compact vectors: what each form keeps, what it says it lost, and what it refuses."""

import json
import math
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

import taskvec as tv
from taskvec.errors import (
    CorruptFile,
    InputError,
    KeyMismatch,
    NonFinite,
    OutputExists,
    TaskvecError,
    UnknownName,
)
from taskvec.vectors.lora.lowrank import TILE
from taskvec.vectors.stored.compact import FORMS
from taskvec.vectors.stored.compact.form import Coded, Entries, Parts, part_name
from taskvec.vectors.stored.compact.sparse import PAGE
from taskvec.weights import TensorSpec, open_weights
from taskvec.weights.blocks import rows_of
from taskvec.weights.dtypes import raw_bytes


def gathered(coded: Coded) -> Parts:
    """The parts of a tensor, put together from their pieces."""
    tensors = {part: torch.empty(spec.shape, dtype=spec.dtype) for part, spec in coded.specs.items()}
    for part, first, piece in coded.pieces:
        tensors[part][first : first + len(piece)] = piece
    return Parts(open_weights({part_name("w", part): t for part, t in tensors.items()}), "w", coded.specs)


PARAMETERS: dict[str, dict[str, Any]] = {"sparse": {"density": 0.1}, "low-rank": {"rank": 3}}
few = settings(max_examples=25, deadline=None, derandomize=True)
Array = NDArray[np.float64]

SHAPES = {
    "embed.weight": (300, 7),
    "layer.0.weight": (24, 40),
    "layer.0.bias": (40,),
    "conv": (6, 5, 3, 3),
    "long": (PAGE + 321,),
    "scale": (),
    "one": (1,),
    "none": (0, 3),
}
# Each form twice, with unlike parameters; sparse once for every way to store positions.
FORMS_AND_PARAMETERS: list[tuple[str, dict[str, Any]]] = [
    ("bf16", {}),
    ("sparse", {"density": 0.3}),
    ("sparse", {"density": 0.06}),
    ("sparse", {"density": 0.001}),
    ("low-rank", {"rank": 2}),
    ("low-rank", {"rank": 5, "dtype": torch.bfloat16}),
    ("int8", {}),
    ("int8", {"group": 7}),
    ("1-bit", {}),
    ("1-bit", {"group": 13}),
]
every_form = pytest.mark.parametrize(("form", "parameters"), FORMS_AND_PARAMETERS)


def base(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    floats = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}
    return {**floats, "frozen": torch.ones(3, 2, dtype=dtype), "position_ids": torch.arange(4)}


def vector(dtype: torch.dtype = torch.float32, seed: int = 0) -> tv.TaskVector:
    generator = torch.Generator().manual_seed(seed)
    start = base(dtype)
    moved = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator).to(dtype)
        for name, value in start.items()
        if name in SHAPES
    }
    return tv.TaskVector.between(start, {**start, **moved})


def compressed(whole: tv.TaskVector, path: Path, form: str, **parameters: Any) -> tv.TaskVector:
    return tv.TaskVector.load(whole.save(path, form=form, **parameters))


def kept_of(row: Array, count: int) -> Array:
    """The largest entries, of equal ones the first, by a stable sort."""
    kept = np.zeros_like(row)
    chosen = np.argsort(-np.abs(row), kind="stable")[:count]
    kept[chosen] = row[chosen]
    return kept


def oracle(form: str, parameters: dict[str, Any], tensor: Tensor) -> Array:
    """What a tensor is after coding, from the definition, in float64."""
    x = tensor.double().numpy()
    flat = x.ravel()
    if form == "bf16":
        return tensor.to(torch.bfloat16).double().numpy()
    if form == "sparse":
        return kept_of(flat, max(1, round(parameters["density"] * flat.size))).reshape(x.shape)
    if form == "low-rank":
        u, s, v = np.linalg.svd(x)
        r = parameters["rank"]
        return np.asarray((u[:, :r] * s[:r]) @ v[:r])
    group = parameters.get("group", {"int8": 128, "1-bit": 512}[form])
    made = []
    for start in range(0, flat.size, group):
        piece = flat[start : start + group]
        if form == "int8":
            step = np.abs(piece).max() / 127
            made.append(np.round(piece / step) * step)
        else:
            made.append(np.where(piece >= 0, 1, -1) * np.abs(piece).mean())
    return np.concatenate(made).reshape(x.shape)


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_form_is_its_definition(
    form: str, parameters: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    whole = vector(dtype)
    found = compressed(whole, tmp_path / "v.safetensors", form, **parameters)
    info = found.info.compact
    assert info is not None
    coded = set(info.errors) if form == "bf16" else set(info.coded)
    assert coded and set(found) == set(whole)
    for name in whole:
        assert found[name].shape == whole[name].shape
        if name in coded - {"none"}:
            expected = torch.from_numpy(oracle(form, parameters, whole[name]))
            near = 0.02 if "dtype" in parameters else 1e-5
            assert_close(found[name].double(), expected, rtol=near, atol=near * 0.1)
        elif "dtype" not in parameters:
            assert torch.equal(found[name], whole[name])


@every_form
def test_the_errors_in_the_file_are_those_of_what_it_gives_back(
    form: str, parameters: dict[str, Any], tmp_path: Path
) -> None:
    whole = vector()
    found = compressed(whole, tmp_path / "v.safetensors", form, **parameters)
    info = found.info.compact
    assert info is not None
    lost, sizes = [], []
    for name, error in info.errors.items():
        own = whole[name].double()
        lost.append(float((found[name].double() - own).norm()))
        sizes.append(float(own.norm()))
        assert error == pytest.approx(lost[-1] / sizes[-1], rel=1e-5)
    assert info.error == pytest.approx(math.hypot(*lost) / math.hypot(*sizes), rel=1e-5)


@every_form
@pytest.mark.parametrize("path", ["v.safetensors", "v"])
def test_rows_are_the_rows_of_the_whole_to_the_bit(
    form: str, parameters: dict[str, Any], path: str, tmp_path: Path
) -> None:
    start, whole = base(), vector()
    found = compressed(whole, tmp_path / path, form, max_shard_size=3000, **parameters)
    assert found.by_rows
    cuts = [slice(0, 1), slice(1, 30), slice(TILE - 1, TILE + 2), slice(-3, None), slice(9, 9), slice(None)]
    for name in found:
        tensor = found[name]
        for rows in [*cuts, slice(PAGE - 2, PAGE + 5), slice(None, None, 3), slice(4000, 4001)]:
            if tensor.dim():
                assert torch.equal(found.read(name, rows), rows_of(tensor, rows))
    edited = tv.apply(start, found)
    written = tv.open_weights(tv.save_weights(edited, tmp_path / "edited"))
    assert written.fingerprint() == edited.fingerprint()


@every_form
def test_a_compact_vector_is_calculated_with_like_any_other(
    form: str, parameters: dict[str, Any], tmp_path: Path
) -> None:
    one, two = vector(seed=1), vector(seed=2)
    found = compressed(one, tmp_path / "v.safetensors", form, **parameters)
    again = tv.TaskVector.load(tmp_path / "v.safetensors")
    assert found == again and (found - again).norm() == 0
    mixed = 0.5 * found - two
    for name in mixed:
        assert_close(mixed[name], 0.5 * found[name] - two[name])
    merged = tv.combine("ties", [found, two], keep=0.5)
    assert bool(merged["layer.0.weight"].any())
    dense = tv.TaskVector.load(found.save(tmp_path / "dense.safetensors"))
    assert dense.info.compact is None and dense.info.format == 1
    assert all(torch.equal(dense[name], found[name]) for name in found)
    assert found.info.base == one.info.base


def test_the_ways_to_store_positions_are_chosen_by_size(tmp_path: Path) -> None:
    ways = {}
    for density in (0.3, 0.06, 0.001):
        path = vector().save(tmp_path / f"{density}.safetensors", form="sparse", density=density)
        names = [name for name in tv.open_weights(path) if name.startswith("long#")]
        ways[density] = {name.removeprefix("long#") for name in names} - {"values", "starts"}
    assert ways == {0.3: {"bits"}, 0.06: {"bytes", "counts"}, 0.001: {"words"}}


@few
@given(
    st.integers(1, 3 * PAGE),
    st.sampled_from([0.0005, 0.003, 0.01, 0.08, 0.5, 1.0]),
    st.integers(0, 100),
    st.data(),
)
def test_sparse_parts_hold_any_tensor(count: int, density: float, seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    clustered = torch.rand(count, generator=generator) < torch.linspace(0, 1, count) ** 3
    tensor = torch.randn(count, generator=generator) * clustered
    form = FORMS["sparse"].parse("", {"density": density})
    entries = Entries(TensorSpec((count,), torch.float32), lambda rows: rows_of(tensor, rows))
    parts = gathered(form.encode(entries, torch.float32))
    specs = form.layout((count,), parts.specs)
    assert specs == parts.specs
    expected = kept_of(tensor.double().numpy(), max(1, round(density * count)))
    assert_close(form.decode(parts, (count,)), torch.from_numpy(expected).float(), rtol=0, atol=0)
    first = data.draw(st.integers(0, count))
    last = data.draw(st.integers(first, count))
    rows = form.decode(parts, (count,), slice(first, last))
    assert torch.equal(rows, torch.from_numpy(expected[first:last]).float())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e30])
def test_sizes_at_the_ends_of_the_range_stay_finite(form: str, size: float, tmp_path: Path) -> None:
    tensor = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).mul(0.3).clamp(-1, 1) * size
    parameters = PARAMETERS.get(form, {})
    whole = tv.TaskVector.from_tensors({"w": tensor}, None)
    found = compressed(whole, tmp_path / "v.safetensors", form, **parameters)
    assert bool(found["w"].isfinite().all())
    info = found.info.compact
    assert info is not None and info.error <= 1.0001


def test_a_density_never_empties_a_tensor(tmp_path: Path) -> None:
    found = compressed(vector(), tmp_path / "v.safetensors", "sparse", density=1e-9)
    assert all(int((found[name] != 0).sum()) == 1 for name in SHAPES if name != "none")


def test_zeros_are_left_out_and_small_tensors_kept_as_they_are(tmp_path: Path) -> None:
    start = {"zero": torch.zeros(30, 30), "half": torch.zeros(2000), "one": torch.tensor(1.0)}
    moved = {**start, "half": torch.cat([torch.zeros(1000), torch.ones(1000)]), "one": torch.tensor(2.0)}
    whole = tv.TaskVector.between(start, moved)
    for form, parameters in (("sparse", {"density": 0.1}), ("int8", {}), ("1-bit", {"group": 100})):
        found = compressed(whole, tmp_path / f"{form}.safetensors", form, **parameters)
        info = found.info
        assert info.compact is not None and set(info.unchanged) == {"zero"}
        assert list(info.compact.coded) == ["half"]
        assert not found["zero"].any() and found["zero"].shape == (30, 30)
        assert not found["half"][:1000].any() and found["one"] == 1
    nothing = 0 * whole
    empty = compressed(nothing, tmp_path / "empty.safetensors", "int8")
    assert set(empty) == set(whole) and empty.norm() == 0


def test_low_rank_is_exact_for_a_matrix_of_that_rank(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(40, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    for matrix in (left @ right.T, (left @ right.T)[:7], (left @ right.T)[:, :7]):
        whole = tv.TaskVector.from_tensors({"w": matrix}, None)
        found = compressed(whole, tmp_path / f"{len(matrix)}{len(matrix.T)}.safetensors", "low-rank", rank=3)
        assert_close(found["w"], matrix)


def test_a_tensor_of_many_axes_that_is_kept_as_it_is_keeps_every_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskvec.weights.blocks.BLOCK", 8)
    deltas = {"conv": torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0))}
    kept = compressed(
        tv.TaskVector.from_tensors(deltas, None), tmp_path / "v.safetensors", "low-rank", rank=1
    )
    assert torch.equal(kept["conv"], deltas["conv"])


def test_files_are_as_much_smaller_as_the_forms_promise(tmp_path: Path) -> None:
    whole = tv.TaskVector.from_tensors({"w": torch.randn(512, 512)}, None)
    bits = {"bf16": 16.0, "int8": 8 + 32 / 128, "1-bit": 1 + 32 / 512}
    for form, wanted in bits.items():
        path = whole.save(tmp_path / f"{form}.safetensors", form=form)
        stored = tv.open_weights(path)
        assert sum(stored.spec(name).nbytes for name in stored) * 8 / 512**2 == wanted


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    whole, path = vector(), tmp_path / "v.safetensors"
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"form": "sparce", "density": 0.1}, UnknownName, "no form called 'sparce'; did you mean 'sparse'"),
        ({"form": "sparse"}, InputError, "form 'sparse': density: field required"),
        ({"form": "sparse", "density": 0}, InputError, "form 'sparse': density: .*greater than 0"),
        ({"form": "sparse", "density": 1.5}, InputError, "form 'sparse': density: "),
        ({"form": "sparse", "density": math.nan}, InputError, "form 'sparse': density: "),
        ({"form": "sparse", "densty": 0.1}, InputError, "unknown key 'densty'; did you mean 'density'"),
        ({"form": "low-rank", "rank": 0}, InputError, "form 'low-rank': rank: "),
        ({"form": "int8", "group": 0}, InputError, "form 'int8': group: "),
        ({"form": "int8", "dtype": torch.bfloat16}, InputError, "form 'int8': dtype bfloat16 given"),
        ({"form": "sparse", "density": 0.1, "dtype": torch.int8}, InputError, "dtype int8, expected one of"),
        ({"density": 0.1}, TypeError, "unexpected keyword argument 'density'"),
    ]
    for options, kind, message in cases:
        with pytest.raises(kind, match=message):
            whole.save(path, **options)
    for value in (math.nan, math.inf):
        bad = tv.TaskVector.from_tensors({"a": torch.ones(3), "w": torch.tensor([1.0, value])}, None)
        for form in FORMS:
            parameters = PARAMETERS.get(form, {})
            with pytest.raises(NonFinite, match="'w' holds 1 values that are NaN or infinite; nothing was"):
                bad.save(path, form=form, **parameters)
    large = tv.TaskVector.from_tensors({"w": torch.full((900,), 1e6)}, None)
    with pytest.raises(NonFinite, match="'w' is not finite after decoding"):
        large.save(path, form="sparse", density=0.1, dtype=torch.float16)
    clash = tv.TaskVector.from_tensors({"w": torch.ones(900), "w#codes": torch.ones(900)}, None)
    with pytest.raises(InputError, match="'w#codes' is a tensor, expected no such name"):
        clash.save(path, form="int8")
    assert list(tmp_path.iterdir()) == []
    whole.save(path, form="int8")
    with pytest.raises(OutputExists):
        whole.save(path, form="int8")
    with pytest.raises(OutputExists, match="input of this very edit"):
        tv.TaskVector.load(path).save(path, form="1-bit", force=True)


def test_compact_vectors_fit_a_base_or_are_refused(tmp_path: Path) -> None:
    found = compressed(vector(), tmp_path / "v.safetensors", "sparse", density=0.1)
    with pytest.raises(KeyMismatch):
        found.with_base({**base(), "layer.0.weight": torch.zeros(3)})
    with pytest.raises(InputError, match="holds a task vector, expected the weights of a model"):
        tv.apply(tmp_path / "v.safetensors", found)


def header(path: Path) -> dict[str, Any]:
    return dict(json.loads(tv.open_weights(path).metadata["taskvec"]))


def test_readers_of_plain_vectors_refuse_parts_and_read_the_rest(tmp_path: Path) -> None:
    whole = vector()
    assert header(whole.save(tmp_path / "plain.safetensors"))["format"] == 1
    assert header(whole.save(tmp_path / "bf16.safetensors", form="bf16"))["format"] == 1
    assert header(whole.save(tmp_path / "int8.safetensors", form="int8"))["format"] == 2


@every_form
def test_damaged_files_are_refused_by_name(form: str, parameters: dict[str, Any], tmp_path: Path) -> None:
    path = vector().save(tmp_path / "v.safetensors", form=form, **parameters)
    whole, said = load_file(path), header(path)

    def damaged(
        tensors: dict[str, Tensor], content: dict[str, Any], message: str, kind: Any = CorruptFile
    ) -> None:
        save_file(tensors, tmp_path / "damaged.safetensors", metadata={"taskvec": json.dumps(content)})
        with pytest.raises(kind, match=message):
            tv.TaskVector.load(tmp_path / "damaged.safetensors")

    for gone in whole:
        damaged({n: t for n, t in whole.items() if n != gone}, said, "missing")
        short = {**whole, gone: torch.zeros(2, 2, 2, dtype=whole[gone].dtype)}
        if "#" in gone:
            damaged(short, said, "expected .* for a tensor of shape")
    damaged({**whole, "junk": torch.ones(1)}, said, "'junk' found, expected only what the header lists")
    compact = said["compact"]
    unknown = {**said, "compact": {**compact, "form": "4-bit"}}
    damaged(whole, unknown, "form '4-bit', expected one of", InputError)
    damaged(whole, {**said, "compact": {**compact, "errors": 3}}, "'taskvec' in the header: compact.errors: ")
    damaged(whole, {**said, "format": 3}, "format 3, expected 1 to 2; a later taskvec", InputError)
    odd = {**said, "compact": {**compact, "settings": {"colour": "red"}}}
    damaged(whole, odd, "unknown key 'colour'|field required", InputError)
    if compact["coded"]:
        name = next(iter(compact["coded"]))
        shape = {**compact["coded"], name: [990, 999]}
        damaged(whole, {**said, "compact": {**compact, "coded": shape}}, "expected|missing")
        negative = {**compact["coded"], name: [-1, -2]}
        damaged(
            whole,
            {**said, "compact": {**compact, "coded": negative}},
            "'taskvec' in the header: compact.coded",
        )
    content = path.read_bytes()
    for length in (0, 7, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.safetensors").write_bytes(content[:length])
        with pytest.raises(CorruptFile):
            tv.TaskVector.load(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("density", [0.3, 0.06, 0.001])
def test_positions_that_cannot_be_are_refused_when_read(density: float, tmp_path: Path) -> None:
    path = vector().save(tmp_path / "v.safetensors", form="sparse", density=density)
    whole, said = load_file(path), tv.open_weights(path).metadata
    for part in ("starts", "bits", "bytes", "counts", "words"):
        place = f"long#{part}"
        if place not in whole:
            continue
        backwards = torch.from_numpy(whole[place].numpy()[::-1].copy())
        for wrong in (torch.zeros_like(whole[place]), backwards):
            changed = tv.save_weights(
                {**whole, place: wrong}, tmp_path / "w.safetensors", metadata=said, force=True
            )
            with pytest.raises(CorruptFile, match="'long': "):
                tv.TaskVector.load(changed)["long"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    large = tv.TaskVector.from_tensors({"a": torch.ones(9000), "b": torch.ones(90000)}, None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000, before[1])
    )  # no file may be longer: the kernel refuses
    try:
        with pytest.raises(TaskvecError, match=r"could not be written \(file too large\); nothing was left"):
            large.save(tmp_path / "v.safetensors", form="int8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_provenance_is_kept_and_the_manifest_is_short(tmp_path: Path) -> None:
    whole = vector()
    found = compressed(whole, tmp_path / "v", "sparse", density=0.1, task="sst2")
    assert found.info.task == "sst2" and found.info.base == whole.info.base
    manifest = json.loads((tmp_path / "v" / "taskvec.json").read_text())
    assert manifest["compact"]["settings"] == {"density": 0.1}
    assert "errors" not in manifest["compact"] and manifest["compact"]["error"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("bf16", {}),
        ("int8", {"group": 7}),
        ("1-bit", {"group": 300}),
        ("sparse", {"density": 0.3}),
        ("sparse", {"density": 1.0}),
        ("sparse", {"density": 0.001}),
        ("low-rank", {"rank": 2}),
    ],
)
def test_tensors_encoded_in_small_blocks_give_the_same_bytes(
    form: str, options: dict[str, Any], dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"wide": (30, 700), "long": (70_001,), "cube": (3, 40, 50), "row": (1, 900), "one": ()}
    deltas = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    deltas |= {"equal": deltas["wide"].round(), "rare": torch.eye(200, dtype=dtype)}
    vector = tv.TaskVector.from_tensors(deltas, deltas)
    whole = open_weights(vector.save(tmp_path / "whole.safetensors", form=form, **options))
    monkeypatch.setattr("taskvec.weights.blocks.BLOCK", 500)
    cut = open_weights(vector.save(tmp_path / "cut.safetensors", form=form, **options))
    assert list(whole) == list(cut)
    for name in whole:
        assert raw_bytes(whole[name]) == raw_bytes(cut[name]), name
