"""Making, storing and combining task vectors: what the laws do not say."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from taskvec.errors import (
    BaseMismatch,
    CorruptFile,
    InputError,
    KeyMismatch,
    NonFinite,
    OutputExists,
    UnknownName,
)
from taskvec.vectors import EditedWeights, TaskVector, apply, combine, similarity
from taskvec.weights import open_weights, save_weights

BASE = {"emb.weight": torch.arange(6.0).reshape(3, 2), "bias": torch.ones(2), "ids": torch.arange(3)}
TUNED = {**BASE, "emb.weight": BASE["emb.weight"] + 0.5}


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    return TaskVector.between(BASE, TUNED).save(tmp_path / "vector.safetensors", task="sst2", regime="full")


def header_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_a_file_says_where_it_comes_from(vector: Path) -> None:
    content = json.loads(header_of(vector)["taskvec"])
    assert content["format"] == 1
    assert content["base"] == {"ref": "weights in memory", "fingerprint": open_weights(BASE).fingerprint()}
    assert (content["task"], content["regime"], content["dtype"]) == ("sst2", "full", "float32")
    assert content["created_by"].startswith("taskvec ")
    assert list(load_file(vector)) == ["emb.weight"]


def test_tensors_that_were_left_alone_are_not_stored_and_read_as_zero(vector: Path) -> None:
    loaded = TaskVector.load(vector)
    assert set(loaded) == {"emb.weight", "bias"}
    assert torch.equal(loaded["bias"], torch.zeros(2))
    assert torch.equal(loaded.read("bias", slice(0, 1)), torch.zeros(1))


def test_training_facts_travel_with_the_file(tmp_path: Path) -> None:
    made = TaskVector.from_tensors(
        {"bias": torch.ones(2)}, BASE, task="cola", training={"lr": 1e-5}, metrics={"test": 0.5}
    )
    path = made.save(tmp_path / "v", metrics={"test": 0.75})
    info = TaskVector.load(path).info
    assert (info.task, info.training, info.metrics) == ("cola", {"lr": 1e-5}, {"test": 0.75})
    assert json.loads((path / "taskvec.json").read_text())["kind"] == "task vector"
    assert set(info.unchanged) == {"emb.weight"}


def test_every_shard_carries_the_provenance(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tuned = {name: torch.randn(9, generator=generator) for name in "abc"}
    path = TaskVector.between({n: torch.zeros(9) for n in tuned}, tuned).save(
        tmp_path / "v", max_shard_size=40
    )
    shards = sorted(path.glob("*.safetensors"))
    assert len(shards) == 3
    assert len({header_of(shard)["taskvec"] for shard in shards}) == 1


def test_unknown_provenance_is_refused() -> None:
    with pytest.raises(TypeError, match="'taks'; did you mean 'task'"):
        TaskVector.from_tensors({"bias": torch.ones(2)}, BASE, taks="cola")


def test_plain_weights_are_no_vector_and_a_vector_no_weights(vector: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    save_file(BASE, plain)
    with pytest.raises(InputError, match=r"plain\.safetensors: holds weights, expected a task vector"):
        TaskVector.load(plain)
    with pytest.raises(InputError, match=r"vector\.safetensors: holds a task vector, expected the weights"):
        TaskVector.between(vector, plain)
    with pytest.raises(InputError, match=r"vector\.safetensors: holds a task vector, expected the weights"):
        apply(vector, TaskVector.load(vector))


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("{", CorruptFile, "'taskvec' in the header: not valid JSON"),
        ("[]", CorruptFile, "'taskvec' in the header"),
        ('{"format": 7}', InputError, "format 7, expected 1 to 2; a later taskvec wrote it"),
        ('{"format": 1, "metrics": 3}', CorruptFile, "'taskvec' in the header: metrics: "),
    ],
)
def test_provenance_that_cannot_be_read_is_said(
    text: str, kind: type[InputError], words: str, tmp_path: Path
) -> None:
    save_file({"bias": torch.ones(2)}, tmp_path / "v.safetensors", metadata={"taskvec": text})
    with pytest.raises(kind, match=words):
        TaskVector.load(tmp_path / "v.safetensors")


def test_an_unknown_base_is_reported_and_never_guessed(vector: Path) -> None:
    unknown = TaskVector.from_tensors({"bias": torch.ones(2)}, None)
    with pytest.raises(
        BaseMismatch, match=r"base unknown \(fingerprint unknown\), expected weights in memory"
    ):
        apply(BASE, unknown)
    with pytest.raises(BaseMismatch, match="fingerprint unknown"):
        TaskVector.load(vector) + unknown
    assert torch.equal(apply(BASE, unknown, allow_other_base=True)["bias"], torch.full((2,), 2.0))
    assert (TaskVector.load(vector) + unknown.with_base(BASE))["bias"].sum() == 2


def test_a_float64_model_is_computed_and_stored_in_float64(tmp_path: Path) -> None:
    base = {"w": torch.tensor([1.0], dtype=torch.float64)}
    tuned = {"w": torch.tensor([1.0 + 2**-40], dtype=torch.float64)}
    path = TaskVector.between(base, tuned).save(tmp_path / "v.safetensors")
    assert TaskVector.load(path).info.dtype == "float64"
    assert torch.equal(apply(base, TaskVector.load(path))["w"], tuned["w"])


def test_deltas_can_be_stored_in_half_the_space(tmp_path: Path) -> None:
    path = TaskVector.between(BASE, TUNED).save(tmp_path / "v.safetensors", dtype=torch.bfloat16)
    assert load_file(path)["emb.weight"].dtype == torch.bfloat16
    assert TaskVector.load(path)["emb.weight"].dtype == torch.float32
    with pytest.raises(InputError, match="dtype int8, expected one of"):
        TaskVector.between(BASE, TUNED).save(tmp_path / "w.safetensors", dtype=torch.int8)


def test_non_finite_weights_are_counted_when_a_vector_is_written(tmp_path: Path) -> None:
    broken = {**TUNED, "bias": torch.tensor([math.nan, math.inf])}
    with pytest.raises(NonFinite, match=r"weights in memory - weights in memory: 'bias' holds 2 values"):
        TaskVector.between(BASE, broken).save(tmp_path / "v")
    with pytest.raises(NonFinite, match="'bias' holds 2 values"):
        save_weights(apply(BASE, TaskVector.between(BASE, broken)), tmp_path / "w")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_coefficients_are_finite(number: float) -> None:
    vector = TaskVector.between(BASE, TUNED)
    with pytest.raises(NonFinite, match="expected a finite number"):
        number * vector
    with pytest.raises(NonFinite, match="expected a finite number"):
        apply(BASE, vector, number)
    with pytest.raises(NonFinite):
        (1e308 * vector) * 10


def test_numpy_numbers_are_numbers() -> None:
    vector = TaskVector.between(BASE, TUNED)
    assert np.float64(0.5) * vector == vector * np.float64(0.5) == vector / 2


MISFITS: list[tuple[dict[str, Tensor | None], str]] = [
    ({"bias": None}, r"'bias' is missing, expected it as in the base; take it as unchanged"),
    ({"more": torch.ones(1)}, r"'more' found, expected no such tensor .* leave such tensors out"),
    ({"bias": torch.ones(3)}, r"'bias' has shape \(3,\), expected \(2,\) as in the base"),
    ({"emb.weight": torch.ones(2, 3)}, r"has shape \(2, 3\), expected \(3, 2\).*was it saved transposed"),
    ({"emb.weight": torch.ones(5, 2)}, r"vocabularies of 5 and 3 tokens: resize the embeddings"),
    ({"bias": torch.ones(2).to(torch.float8_e5m2)}, r"'bias' has dtype float8_e5m2, expected float32"),
    ({"emb.weight": None, "bias": None}, r"'emb.weight' is missing.*\(1 more\)"),
]


@pytest.mark.parametrize(("change", "words"), MISFITS)
def test_models_that_do_not_fit_are_refused_in_words(change: dict[str, Tensor | None], words: str) -> None:
    tuned = {name: value for name, value in {**TUNED, **change}.items() if value is not None}
    with pytest.raises(KeyMismatch, match=words):
        TaskVector.between(BASE, tuned)


def test_extra_and_missing_tensors_can_be_left_out_on_request() -> None:
    tuned = {"emb.weight": TUNED["emb.weight"], "head": torch.ones(4)}
    vector = TaskVector.between(BASE, tuned, on_extra="drop", on_missing="zero")
    assert not vector["bias"].any()
    assert torch.equal((open_weights(BASE) + vector)["emb.weight"], TUNED["emb.weight"])
    assert torch.equal((open_weights(BASE) + vector)["bias"], BASE["bias"])


def test_a_prefix_on_every_name_is_seen_through(caplog: pytest.LogCaptureFixture) -> None:
    vector = TaskVector.between(BASE, {f"bert.{name}": value for name, value in TUNED.items()})
    plain = TaskVector.between(BASE, TUNED)
    assert set(vector) == set(plain)
    assert all(torch.equal(vector[name], plain[name]) for name in plain)
    assert any(
        "'bert.emb.weight' is taken for 'emb.weight' (3 renamed)" in message for message in caplog.messages
    )


def test_integer_buffers_may_come_and_go() -> None:
    tuned = {name: value for name, value in TUNED.items() if name != "ids"} | {"counter": torch.tensor(3)}
    edited = open_weights(BASE) + TaskVector.between(BASE, tuned)
    assert set(edited) == set(BASE)
    assert torch.equal(edited["ids"], BASE["ids"])


def test_quantized_tensors_must_not_differ() -> None:
    base = {**BASE, "q": torch.ones(2).to(torch.float8_e4m3fn)}
    same = {**base, "bias": torch.zeros(2)}
    assert "q" not in TaskVector.between(base, same)
    assert torch.equal((open_weights(base) + TaskVector.between(base, same))["q"].float(), torch.ones(2))
    with pytest.raises(KeyMismatch, match="'q' has dtype float8_e4m3fn and differs"):
        TaskVector.between(base, {**base, "q": torch.zeros(2).to(torch.float8_e4m3fn)})


def test_a_vector_that_does_not_fit_the_base_is_refused(vector: Path) -> None:
    other = {"bias": torch.ones(2), "emb.weight": torch.ones(4, 2)}
    with pytest.raises(KeyMismatch, match="vocabularies of 3 and 4 tokens"):
        apply(other, TaskVector.load(vector), allow_other_base=True)
    with pytest.raises(KeyMismatch, match=r"'emb\.weight' found, expected a tensor of the base"):
        apply({"bias": torch.ones(2)}, TaskVector.load(vector), allow_other_base=True)
    with pytest.raises(KeyMismatch, match="'ids' has dtype int64 in"):
        TaskVector.from_tensors({"ids": torch.ones(3)}, BASE)
    with pytest.raises(KeyMismatch, match="'ids' has dtype int64, expected floating point"):
        TaskVector.from_tensors({"ids": torch.arange(3)}, BASE)


def tied_model() -> dict[str, Tensor]:
    wte = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    return {"wte": wte, "head": wte, "b": torch.zeros(2)}


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    base = tied_model()
    shared = base["wte"] + 1
    vector = TaskVector.between(base, {"wte": shared, "head": shared, "b": base["b"]})
    assert set(vector) == {"wte", "b"}
    written = open_weights(save_weights(open_weights(base) + 0.5 * vector, tmp_path / "x.safetensors"))
    assert written.tied == {"head": "wte"}
    assert_close(written["head"], base["wte"] + 0.5)


def test_a_copy_of_a_tied_tensor_counts_as_tied_and_an_untied_one_is_refused() -> None:
    base = tied_model()
    copied = {name: value.clone() for name, value in base.items()}
    assert TaskVector.between(base, copied).norm() == 0
    copied["head"] += 1
    with pytest.raises(KeyMismatch, match="'head' differs from 'wte', expected them tied"):
        TaskVector.between(base, copied)


def test_ties_that_two_files_name_differently_are_the_same(tmp_path: Path) -> None:
    base = tied_model()
    listed_once = {"wte": base["wte"], "b": base["b"]}
    path = save_weights(
        {"head": base["wte"], "wte": base["wte"], "b": base["b"] + 1}, tmp_path / "x.safetensors"
    )
    assert open_weights(path).tied == {"wte": "head"}
    vector = TaskVector.between(listed_once, path)
    assert set(vector) == {"wte", "b"} and not vector["wte"].any()


def test_a_vector_under_an_alias_finds_its_tensor() -> None:
    base = tied_model()
    edited = apply(base, TaskVector.from_tensors({"head": torch.ones(4, 2)}, base))
    assert torch.equal(edited["wte"], base["wte"] + 1) and torch.equal(edited["head"], edited["wte"])
    with pytest.raises(KeyMismatch, match="holds 'wte' and 'head', expected one"):
        both = {"wte": torch.ones(4, 2), "head": torch.ones(4, 2)}
        apply(base, TaskVector.from_tensors(both, None), allow_other_base=True)


def test_an_edit_of_a_module_loads_back_into_it() -> None:
    module, tuned = nn.Linear(3, 2), nn.Linear(3, 2)
    edited = apply(module, TaskVector.between(module, tuned))
    module.load_state_dict(dict(edited))
    assert torch.equal(module.weight, tuned.weight)


def test_a_long_expression_is_one_form_over_its_sources() -> None:
    vectors = [TaskVector.between(BASE, {**TUNED, "bias": torch.full((2,), float(i))}) for i in range(4)]
    form = sum((0.5 * v for v in vectors), vectors[0] * 0)
    for _ in range(500):
        form = form + vectors[0] - vectors[1] + (vectors[1] - vectors[0])
    assert len(form.terms) == 4
    edited = open_weights(BASE) + form
    assert isinstance(edited, EditedWeights) and edited.vector == form


def test_an_output_is_refused_before_anything_is_read(vector: Path) -> None:
    loaded = TaskVector.load(vector)
    with pytest.raises(OutputExists, match="is an input"):
        (2 * loaded).save(vector, force=True)
    with pytest.raises(OutputExists, match="exists already"):
        TaskVector.between(BASE, TUNED).save(vector)


def test_noise_has_the_norms_of_the_vector_and_its_own_stream_for_each_tensor(vector: Path) -> None:
    tuned = {
        name: value + 0.1 * (i + 1) if value.is_floating_point() else value
        for i, (name, value) in enumerate(BASE.items())
    }
    like = TaskVector.between(BASE, tuned)
    noise = TaskVector.random_like(like, 7)
    for name, norm in like.norms().items():
        assert noise.norms()[name] == pytest.approx(norm, rel=1e-6)
    again = TaskVector.random_like(like, 7)
    assert torch.equal(again["bias"], noise["bias"]) and torch.equal(again["emb.weight"], noise["emb.weight"])
    assert not torch.equal(TaskVector.random_like(like, 8)["bias"], noise["bias"])
    assert noise.base.fingerprint() == like.base.fingerprint()
    zero = TaskVector.random_like(TaskVector.load(vector), 7)
    assert not zero["bias"].any() and zero["bias"].isfinite().all()


def test_noise_looks_gaussian() -> None:
    like = TaskVector.from_tensors({"w": torch.ones(400, 100)}, None)
    values = TaskVector.random_like(like, 0)["w"]
    assert values.mean().item() == pytest.approx(0, abs=0.03)
    assert (values**4).mean().item() / (values**2).mean().item() ** 2 == pytest.approx(3, abs=0.15)


def test_cosines_of_known_vectors() -> None:
    def of(*values: float) -> TaskVector:
        return TaskVector.from_tensors({"w": torch.tensor(values)}, None)

    matrix = similarity([of(1.0, 0.0), of(1.0, 1.0), of(0.0, -2.0), of(0.0, 0.0)])
    half = math.sqrt(0.5)
    expected = torch.tensor([[1, half, 0], [half, 1, -half], [0, -half, 1]], dtype=torch.float64)
    assert_close(matrix[:3, :3], expected)
    assert matrix[3].isnan().all() and matrix[:, 3].isnan().all()


def test_any_function_of_stacked_tensors_is_a_rule() -> None:
    one, two = (TaskVector.between(BASE, {**TUNED, "bias": torch.full((2,), b)}) for b in (2.0, 5.0))
    largest = combine(lambda deltas: deltas.max(0).values, [one, two])
    assert torch.equal(largest["bias"], torch.full((2,), 4.0))
    with pytest.raises(InputError, match=r"'emb\.weight' has shape \(2, 3, 2\), expected \(3, 2\)"):
        combine(lambda deltas: deltas, [one, two])["emb.weight"]
    with pytest.raises(UnknownName, match="no rule called 'tise'; did you mean 'ties'"):
        combine("tise", [one])
    with pytest.raises(InputError, match="no task vectors"):
        combine("sum", [])


def test_a_merged_vector_is_stored_with_its_rule(tmp_path: Path) -> None:
    one, two = (TaskVector.between(BASE, {**TUNED, "bias": torch.full((2,), b)}) for b in (2.0, 5.0))
    merged = combine("ties", [one, two], keep=0.5)
    loaded = TaskVector.load(merged.save(tmp_path / "m.safetensors"))
    assert all(torch.equal(loaded[name], merged[name]) for name in merged)
    rule = loaded.info.rule
    assert rule is not None and (rule["name"], rule["keep"], rule["trim"]) == ("ties", 0.5, "tensor")


def test_vectors_that_hold_different_tensors_combine() -> None:
    one = TaskVector.from_tensors({"a": torch.ones(2)}, None)
    two = TaskVector.from_tensors({"b": torch.ones(3)}, None)
    assert set(one + two) == {"a", "b"}
    assert torch.equal(combine("ties", [one, two], keep=1.0, merge="sum")["b"], torch.ones(3))
    with pytest.raises(KeyMismatch, match=r"'a' has shape \(3,\), expected \(2,\)"):
        one + TaskVector.from_tensors({"a": torch.ones(3)}, None)


def test_tensors_that_are_left_out_are_named(caplog: pytest.LogCaptureFixture) -> None:
    base = {"a": torch.zeros(3)}
    tuned = {"a": torch.ones(3), "head": torch.ones(2)}
    assert list(TaskVector.between(base, tuned, on_extra="drop")) == ["a"]
    assert [record.message for record in caplog.records] == [
        "weights in memory: 'head' is left out, as the base lacks it"
    ]
