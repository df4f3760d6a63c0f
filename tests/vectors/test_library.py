"""A keyed library: what is nearest is taken, sums are those of vectors, and files come back as they were."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import IA3Config
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

import taskvec as tv
from adapters import bert, llama, save_adapter_of, save_base, save_trained
from taskvec.errors import (
    BaseMismatch,
    CorruptFile,
    InputError,
    KeyMismatch,
    NonFinite,
    OutputExists,
    TaskvecError,
    UnknownName,
)

NAMES = ("sst2", "math-7b", "été", "a.b")


def base() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {"w": torch.randn(6, 4, generator=draw), "b": torch.zeros(4), "steps": torch.arange(3)}


def vector(seed: int, start: dict[str, Tensor] | None = None) -> tv.TaskVector:
    draw, start = torch.Generator().manual_seed(seed), start or base()
    moved = {n: v + torch.randn(v.shape, generator=draw) for n, v in start.items() if n != "steps"}
    return tv.TaskVector.between(start, {**start, **moved})


def library(count: int = 4, dim: int = 5, seed: int = 3) -> tv.Library:
    draw = torch.Generator().manual_seed(seed)
    vectors = {name: vector(place) for place, name in enumerate(NAMES[:count])}
    return tv.Library(vectors, torch.randn(count, dim, generator=draw))


keys_and_queries = st.integers(0, 10_000)


@given(keys_and_queries, st.integers(1, 4), st.floats(0.01, 5))
def test_weights_are_the_softmax_of_the_nearest_cosines(seed: int, k: int, temperature: float) -> None:
    made = library(seed=seed)
    queries = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed + 1))
    weights = made.select(queries, k, temperature=temperature)
    for query, row in zip(queries.tolist(), weights.tolist(), strict=True):
        keys = [made.keys[name][0].tolist() for name in made.names]
        near = [
            math.fsum(map(math.prod, zip(query, key, strict=True))) / (math.hypot(*query) * math.hypot(*key))
            for key in keys
        ]
        chosen = sorted(range(4), key=lambda place: -near[place])[:k]
        parts = {place: math.exp(near[place] / temperature) for place in chosen}
        expected = [parts.get(place, 0.0) / sum(parts.values()) for place in range(4)]
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert sum(weight > 0 for weight in row) <= k
    assert torch.equal(made.select(queries[2], k, temperature=temperature), weights[2])


@given(keys_and_queries, st.floats(1e-3, 1e3))
def test_a_key_is_answered_with_its_entry_alone(seed: int, length: float) -> None:
    made = library(seed=seed)
    for place, name in enumerate(made.names):
        weights = made.select(length * made.keys[name][0])
        assert weights.tolist() == [float(place == other) for other in range(4)]
        assert made.vector(weights) == made.vectors[name]


def test_of_equals_the_first_is_taken() -> None:
    key = torch.tensor([1.0, 2.0])
    same = tv.Library({name: vector(place) for place, name in enumerate("abc")}, key.expand(3, 2))
    assert same.select(torch.tensor([3.0, 0.5])).tolist() == [1.0, 0.0, 0.0]
    assert same.select(torch.tensor([3.0, 0.5]), 2).tolist() == [0.5, 0.5, 0.0]
    assert same.select(torch.zeros(4, 2)).tolist() == [[1.0, 0.0, 0.0]] * 4
    turned = tv.Library({name: vector(1) for name in "ab"}, torch.tensor([[0.0, -1.0], [2.0, 0.0]]))
    assert turned.select(torch.zeros(2)).tolist() == [1.0, 0.0]


def test_a_vector_may_have_several_keys() -> None:
    keys = {"a": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "b": torch.tensor([-1.0, 0.0])}
    made = tv.Library({"a": vector(0), "b": vector(1)}, keys)
    queries = torch.tensor([[0.1, 2.0], [3.0, 0.2], [-1.0, 0.1]])
    assert made.select(queries).argmax(1).tolist() == [0, 0, 1]
    assert_close(made.similarities(queries)[0, 0], torch.tensor(2 / math.hypot(0.1, 2.0)).double())


def test_the_weighted_sum_is_a_vector() -> None:
    made = library()
    weights = [0.5, 0.0, -0.25, 2.0]
    total = made.vector(weights)
    for name in ("w", "b"):
        parts = [w * v[name].double() for w, v in zip(weights, made.vectors.values(), strict=True)]
        assert_close(total[name].double(), torch.stack(parts).sum(0), atol=1e-6, rtol=1e-6)
    assert made.vector(dict(zip(NAMES, weights, strict=True))) == total == made.vector(torch.tensor(weights))
    assert not made.vector({}).terms and set(made.vector({})) == {"w", "b"}
    assert torch.equal(
        tv.apply(base(), made.vector([0.0, 1.0, 0.0, 0.0]))["w"], (vector(1)["w"] + base()["w"])
    )


def test_more_are_added_and_nothing_moves() -> None:
    before = library(3)
    after = before.add("a.b", vector(3), torch.ones(5))
    assert (before.names, after.names) == (NAMES[:3], NAMES)
    assert after.select(torch.ones(5)).tolist() == [0.0, 0.0, 0.0, 1.0]
    for name in before.names:
        assert torch.equal(before.keys[name], after.keys[name])
    with pytest.raises(InputError, match="holds 'sst2' already; choose another name"):
        after.add("sst2", vector(9), torch.ones(5))
    with pytest.raises(InputError, match=r"key of 'sst2' has 5 numbers and that of 'new' 4"):
        after.add("new", vector(9), torch.ones(4))


@pytest.mark.parametrize(
    "options",
    [{}, {"dtype": torch.bfloat16}, {"form": "sparse", "density": 0.3}, {"form": "low-rank", "rank": 1}],
)
def test_a_library_comes_back_from_its_folder(tmp_path: Path, options: dict[str, Any]) -> None:
    made = library()
    assert made.save(tmp_path / "lib", **options) == tmp_path / "lib"
    back = tv.Library.load(tmp_path / "lib")
    assert back.names == made.names and back.base.same_as(made.base) and back.dim == 5
    queries = torch.randn(20, 5)
    assert torch.equal(back.select(queries, 2), made.select(queries, 2))
    for name in NAMES:
        alone = tv.TaskVector.load(tmp_path / "lib" / "vectors" / f"{name}.safetensors")
        written = tv.TaskVector.load(made.vectors[name].save(tmp_path / f"{name}-1.safetensors", **options))
        for tensor in written:
            assert torch.equal(back.vectors[name][tensor], written[tensor])
            assert torch.equal(alone[tensor], written[tensor])
    assert tv.apply(base(), back.vector([0.5, 0.5, 0.0, 0.0])).fingerprint()


def test_keys_keep_their_precision_and_number(tmp_path: Path) -> None:
    keys = {"a": torch.randn(3, 4, dtype=torch.float64), "b": torch.randn(4)}
    made = tv.Library({"a": vector(0), "b": vector(1)}, keys)
    back = tv.Library.load(made.save(tmp_path / "lib"))
    assert torch.equal(back.keys["a"], keys["a"]) and torch.equal(back.keys["b"], keys["b"][None])


def test_an_output_is_replaced_only_by_force(tmp_path: Path) -> None:
    library(2).save(tmp_path / "lib")
    with pytest.raises(OutputExists, match="--force"):
        library(3).save(tmp_path / "lib")
    assert tv.Library.load(library(3).save(tmp_path / "lib", force=True)).names == NAMES[:3]
    with pytest.raises(OutputExists, match="is an input of this very edit"):
        tv.Library.load(tmp_path / "lib").save(tmp_path / "lib", force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExists):
        library(2).save(tmp_path / "mine", force=True)
    with pytest.raises(InputError, match="a name of a file, expected a folder"):
        library(2).save(tmp_path / "lib.safetensors")


def test_nothing_is_left_behind_when_a_vector_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        library(2).save(tmp_path / "lib", densty=0.1)
    broken = base() | {"w": torch.full((6, 4), math.nan)}
    spoiled = tv.TaskVector.between(base(), broken)
    with pytest.raises(TaskvecError):
        tv.Library({"a": vector(0), "b": spoiled}, torch.eye(2)).save(tmp_path / "lib")
    assert list(tmp_path.iterdir()) == []


def llama_ia3() -> Any:
    return IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])


def bert_ia3() -> Any:
    return IA3Config(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"])


@pytest.mark.parametrize(("network", "settings"), [(llama, llama_ia3), (bert, bert_ia3)])
def test_modulators_enter_as_they_are(
    tmp_path: Path, network: Callable[[], Any], settings: Callable[[], Any]
) -> None:
    start = save_base(network, tmp_path / "base")
    projection = ["q_proj"] if network is llama else ["query"]
    folders = {
        "scales": save_trained(network, start, tmp_path / "ia3", settings()),
        "factors": save_adapter_of(start, network, tmp_path / "lora", 2, target_modules=projection, r=2),
    }
    loose = {name: tv.TaskVector.load(folder) for name, folder in folders.items()}
    unbound = tv.Library(loose, torch.eye(2))
    with pytest.raises(BaseMismatch, match="with_base"):
        unbound.save(tmp_path / "lib")
    bound = {name: each.with_base(start) for name, each in loose.items()}
    back = tv.Library.load(tv.Library(bound, torch.eye(2)).save(tmp_path / "lib"))
    for place, name in enumerate(folders):
        chosen = back.vector(back.select(torch.eye(2)[place]))
        edited, expected = tv.apply(start, chosen), tv.apply(start, bound[name])
        for tensor in expected:
            assert_close(edited[tensor], expected[tensor], rtol=1e-12, atol=1e-12)


REFUSED: dict[str, tuple[Callable[[], object], type[InputError], str]] = {
    "nothing": (lambda: tv.Library({}, {}), InputError, "no vectors, expected one or more"),
    "path": (
        lambda: tv.Library({"../x": vector(0)}, torch.ones(1, 2)),
        InputError,
        r"a vector is called '\.\./x'",
    ),
    "one file": (
        lambda: tv.Library({"A": vector(0), "a": vector(1)}, torch.eye(2)),
        InputError,
        "'A' and 'a', which some disks take for one file; rename one",
    ),
    "other names": (
        lambda: tv.Library({"a": vector(0)}, {"b": torch.ones(2)}),
        InputError,
        "keys of b, expected one for each of a",
    ),
    "shape": (
        lambda: tv.Library({"a": vector(0)}, torch.ones(2, 2)),
        InputError,
        r"\(2, 2\), expected \(1, d\)",
    ),
    "zero": (lambda: tv.Library({"a": vector(0)}, torch.zeros(1, 2)), InputError, "'a' is zero"),
    "whole numbers": (
        lambda: tv.Library({"a": vector(0)}, torch.ones(1, 2, dtype=torch.int64)),
        InputError,
        "floating point",
    ),
    "nan": (lambda: tv.Library({"a": vector(0)}, torch.full((1, 2), math.nan)), NonFinite, "NaN or infinity"),
    "another base": (
        lambda: tv.Library({"a": vector(0), "b": vector(1, {"w": torch.ones(6, 4)})}, torch.eye(2)),
        BaseMismatch,
        "vectors of different bases do not mix",
    ),
    "k": (lambda: library().select(torch.ones(5), 5), InputError, "k: 5, expected 1 to 4"),
    "no k": (lambda: library().select(torch.ones(5), 0), InputError, "k: 0, expected 1 to 4"),
    "temperature": (
        lambda: library().select(torch.ones(5), 2, temperature=0.0),
        InputError,
        r"temperature: 0\.0, expected a positive number",
    ),
    "features": (
        lambda: library().select(torch.ones(2, 4)),
        InputError,
        r"\(2, 4\), expected \(5,\) or \(N, 5\)",
    ),
    "infinite": (lambda: library().select(torch.full((5,), math.inf)), NonFinite, "features"),
    "count": (lambda: library().vector([1.0]), InputError, r"weights: shape \(1,\), expected \(4,\)"),
    "rows": (lambda: library().vector(torch.ones(2, 4)), InputError, r"weights: shape \(2, 4\)"),
    "name": (lambda: library().vector({"sst": 1.0}), UnknownName, "no vector called 'sst'.*'sst2'"),
    "weight": (lambda: library().vector({"sst2": math.nan}), NonFinite, "coefficient nan"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    do, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        do()


def rewrite(**fields: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        manifest = folder / "taskvec.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **fields}))

    return spoil


def link_away(folder: Path) -> None:
    file = folder / "vectors" / "sst2.safetensors"
    file.rename(folder.parent / "elsewhere.safetensors")
    file.symlink_to(folder.parent / "elsewhere.safetensors")


def of_another_base(folder: Path) -> None:
    vector(1, {"w": torch.ones(6, 4)}).save(folder / "vectors" / "sst2.safetensors", force=True)


SPOILED: dict[str, tuple[Callable[[Path], object], type[TaskvecError], str]] = {
    "no manifest": (lambda f: (f / "taskvec.json").unlink(), InputError, "no library of task vectors"),
    "other kind": (rewrite(kind="task vector"), InputError, "kind 'task vector', expected 'library of"),
    "later": (rewrite(format=2), CorruptFile, "format"),
    "name leads out": (rewrite(names=["../../x", "sst2"]), InputError, "a vector is called"),
    "names twice": (rewrite(names=["sst2", "sst2"]), InputError, "'sst2' and 'sst2'"),
    "names missing": (rewrite(names=["sst2", "other"]), InputError, r"other\.safetensors"),
    "no names": (rewrite(names=[]), CorruptFile, "names"),
    "names of another type": (rewrite(names=7), CorruptFile, "expected a list"),
    "no json": (lambda f: (f / "taskvec.json").write_text("{"), CorruptFile, "not valid JSON"),
    "no keys": (lambda f: (f / "keys.safetensors").unlink(), InputError, r"keys\.safetensors"),
    "key missing": (
        lambda f: save_file({"sst2": torch.ones(5)}, f / "keys.safetensors"),
        CorruptFile,
        "no key of 'math-7b'",
    ),
    "key of three axes": (
        lambda f: save_file({n: torch.ones(2, 2, 5) for n in NAMES[:2]}, f / "keys.safetensors"),
        InputError,
        r"shape \(2, 2, 5\)",
    ),
    "keys cut": (lambda f: (f / "keys.safetensors").write_bytes(b"\xff" * 20), CorruptFile, "keys"),
    "linked": (link_away, InputError, "is a link that leads out of its folder"),
    "weights for a vector": (
        lambda f: save_file({"w": torch.ones(6, 4)}, f / "vectors" / "sst2.safetensors"),
        InputError,
        "expected a task vector",
    ),
    "another base": (of_another_base, BaseMismatch, "vectors of different bases do not mix"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_folder_is_refused(tmp_path: Path, case: str) -> None:
    spoil, kind, message = SPOILED[case]
    folder = library(2).save(tmp_path / "lib")
    spoil(folder)
    with pytest.raises(kind, match=message):
        tv.Library.load(folder)


def test_a_place_that_holds_no_library_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing", vector(0).save(tmp_path / "v.safetensors")):
        with pytest.raises(InputError, match="no library of task vectors"):
            tv.Library.load(place)


def test_shapes_of_vectors_have_to_agree() -> None:
    unknown = tv.TaskVector.from_tensors({"w": torch.ones(2, 2)}, None)
    other = tv.TaskVector.from_tensors({"w": torch.ones(3)}, None)
    with pytest.raises(KeyMismatch, match="'w' has shape"):
        tv.Library({"a": unknown, "b": other}, torch.eye(2))


def test_no_temperature_is_too_small() -> None:
    weights = library().select(
        torch.randn(7, 5, generator=torch.Generator().manual_seed(1)), 3, temperature=1e-320
    )
    assert torch.equal(weights.sort(dim=-1).values, torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(7, 4))


def test_a_vector_of_another_base_is_named() -> None:
    other = vector(1, {**base(), "w": torch.ones(6, 4)})
    with pytest.raises(BaseMismatch, match=r"library: the vector 'b': base .*, expected "):
        tv.Library({"a": vector(0), "b": other}, torch.eye(2))
