"""A library as a method: what serves an input is what its key says, and nothing knows its task."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig
from torch import Tensor
from torch.testing import assert_close
from transformers import BertConfig, BertModel

import taskvec as tv
from adapters import save_trained
from evaluation.test_chosen import TASKS, vectors_for
from language_models import save_language_model
from taskvec.errors import InputError
from taskvec.evaluation.points import OrdinaryPoints
from taskvec.merging.keys import balanced, learn_keys, make_library
from taskvec.merging.library import TENTHS, LibraryMethod, in_parts, library_method
from taskvec.merging.method import Bench


@pytest.fixture(scope="module")
def vectors(evaluator: tv.Evaluator) -> dict[str, tv.TaskVector]:
    return vectors_for(evaluator)


@pytest.fixture(scope="module")
def bench(evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector]) -> Bench:
    return Bench(evaluator, vectors)


def cosines(evaluator: tv.Evaluator, task: str, split: str) -> np.ndarray:
    """Of every input with the mean feature of each task's validation inputs, in float64."""
    features = {
        name: evaluator.features(evaluator.pretrained, name, "validation")[0].double().numpy()
        for name in TASKS
    }
    keys = np.stack([of.mean(0) for of in features.values()])
    queries = evaluator.features(evaluator.pretrained, task, split)[0].double().numpy()  # type: ignore[arg-type]
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(keys, axis=1)
    return np.asarray(queries @ keys.T / lengths)


@pytest.mark.parametrize("alpha", [1.0, 0.4])
@pytest.mark.parametrize("task", TASKS)
def test_an_input_is_served_by_the_vector_of_the_nearest_key(
    evaluator: tv.Evaluator, bench: Bench, task: str, alpha: float
) -> None:
    nearest = cosines(evaluator, task, "test").argmax(1)
    points = evaluator.points(bench.vectors)
    logits = np.stack([evaluator.logits(points.at({name: alpha}), task, "test")[0].numpy() for name in TASKS])
    expected = logits[nearest, np.arange(len(nearest))]
    model = library_method({}).make(bench)
    tally = model.tally(task, "test", alpha)
    np.testing.assert_allclose(tally["logits"].numpy(), expected, rtol=1e-4, atol=1e-4)
    right = float((expected.argmax(1) == tally["labels"].numpy()).mean())
    assert model.value(task, "test", alpha) == pytest.approx(right)
    shares = model.routing("test")[task]
    assert shares == pytest.approx({name: (nearest == n).mean() for n, name in enumerate(TASKS)}, abs=1e-6)
    assert model.facts()["routed"][task] == shares[task]  # type: ignore[index]


def mixtures(evaluator: tv.Evaluator, task: str, k: int, temperature: float) -> np.ndarray:
    near = cosines(evaluator, task, "test")
    kept = np.argsort(-near, axis=1, kind="stable")[:, :k]
    weights = np.zeros_like(near)
    for row, places in enumerate(kept):
        parts = np.exp((near[row, places] - near[row].max()) / temperature)
        weights[row, places] = parts / parts.sum()
    return weights


def test_a_mixture_in_ordinary_space_is_rounded_to_tenths(evaluator: tv.Evaluator, bench: Bench) -> None:
    model = LibraryMethod(library_method({"k": 2, "temperature": 0.003}).options).make(bench)
    tally = model.tally("taste", "test", 0.5)
    points = evaluator.points(bench.vectors)
    assert isinstance(points, OrdinaryPoints)
    weights = mixtures(evaluator, "taste", 2, 0.003)
    rounded = in_parts(torch.from_numpy(weights), TENTHS)
    assert len({tuple(row) for row in rounded.tolist()}) > 3
    for row in range(0, len(rounded), 7):
        at = {name: 0.5 * w for name, w in zip(TASKS, rounded[row].tolist(), strict=True)}
        logits, _ = evaluator.logits(points.at(at), "taste", "test")
        assert_close(tally["logits"][row], logits[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_in_tangent_space_every_input_has_its_exact_mixture(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector], k: int
) -> None:
    bench = Bench(evaluator, vectors, space="tangent")
    model = library_method({"k": k, "temperature": 0.003}).make(bench)
    tally = model.tally("pets", "test", 0.3)
    points = evaluator.points(vectors, space="tangent")
    weights = mixtures(evaluator, "pets", k, 0.003)
    for row in range(0, len(weights), 11):
        at = points.at({name: 0.3 * float(w) for name, w in zip(TASKS, weights[row], strict=True)})
        logits, _ = evaluator.logits(at, "pets", "test")
        assert_close(tally["logits"][row], logits[row], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("space", ["ordinary", "tangent"])
@pytest.mark.parametrize("given", [{}, {"keys": "learned"}])
def test_a_library_of_one_is_its_model(evaluator: tv.Evaluator, space: str, given: dict[str, object]) -> None:
    vectors = vectors_for(evaluator, ("pets",))
    bench = Bench(evaluator, vectors, space=space)  # type: ignore[arg-type]
    model = library_method(given).make(bench)
    own = evaluator.points(vectors, space=space).at({"pets": 0.7})  # type: ignore[call-overload]
    expected = evaluator.tally(own, "pets", "test")
    for key, values in model.tally("pets", "test", 0.7).items():
        assert_close(values, expected[key], rtol=1e-4, atol=1e-5)
    assert model.routing("test") == {"pets": {"pets": 1.0}}


def test_what_it_consumes_and_counts(evaluator: tv.Evaluator, bench: Bench) -> None:
    method = library_method({"k": 2})
    assert (method.name, method.coefficient) == ("library (k 2)", None)
    assert method.consumes("validation") == ("unlabelled validation inputs",)
    assert method.consumes("test") == ("unlabelled test inputs",)
    assert method.unfit(bench) is None and library_method({"k": 4}).unfit(bench) == "takes 4 vectors an input"
    assert library_method({}).make(bench).coefficients == 3 * evaluator.backbone.dim
    assert method.settings() != library_method({"k": 3}).settings()


@pytest.mark.parametrize("given", [{"k": 0}, {"temperature": 0}, {"keys": "random"}, {"kk": 1}])
def test_settings_that_do_not_fit_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"^library: "):
        library_method(given)


def test_language_models_have_no_keys(tmp_path: Path) -> None:
    folder = save_language_model(tmp_path / "gpt", "gpt2")
    backbone = tv.load_backbone(str(folder), "tokens")
    evaluator = tv.Evaluator(backbone, [])
    vector = tv.TaskVector.from_tensors({}, tv.open_weights(backbone.source))
    assert library_method({}).unfit(Bench(evaluator, {"a": vector})) is not None
    with pytest.raises(InputError, match="gives logits of tokens, expected features"):
        make_library(evaluator, {"a": vector})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(1, 20))
def test_parts_are_near_and_sum_to_one(raw: list[float], parts: int) -> None:
    total = sum(raw)
    weights = torch.tensor([[w / total for w in raw] if total else [1.0, *[0.0] * (len(raw) - 1)]])
    rounded = in_parts(weights, parts)
    assert_close((rounded * parts).round() / parts, rounded)
    assert float(rounded.sum()) == pytest.approx(1.0)
    assert float((rounded - weights).abs().max()) < 1 / parts + 1e-5
    one = torch.tensor([[0.0, 1.0, 0.0]])
    assert torch.equal(in_parts(one, parts).float(), one)


def clusters(seed: int, count: int = 4, dim: int = 16) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    common = 2 * torch.randn(dim, generator=draw)  # features of one encoder have much in common
    return {
        f"task{n}": common + 2 * torch.randn(dim, generator=draw) + 0.3 * torch.randn(60, dim, generator=draw)
        for n in range(count)
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learned_keys_find_their_tasks(seed: int) -> None:
    features = clusters(seed)
    keys = learn_keys(features, seed=seed)
    assert list(keys) == list(features)
    vectors = {name: tv.TaskVector.from_tensors({"w": torch.ones(2)}, None) for name in features}
    library = tv.Library(vectors, keys)
    for place, of in enumerate(features.values()):
        assert float((library.select(of).argmax(1) == place).float().mean()) > 0.9
    again = learn_keys(features, seed=seed)
    assert all(torch.equal(keys[name], again[name]) for name in keys)
    assert any(not torch.equal(keys[name], learn_keys(features, seed=9)[name]) for name in keys)


def test_a_learned_key_stays_on_its_one_feature() -> None:
    query = torch.tensor([[0.3, -2.0, 1.0]])
    keys = learn_keys({"a": query}, slots=1, steps=300)["a"]
    assert_close(keys, torch.nn.functional.normalize(query), rtol=1e-4, atol=1e-4)


def test_a_pool_that_leaves_a_task_without_a_key_is_refused() -> None:
    with pytest.raises(InputError, match=r"slots: 1, and 'task\d' is left without a key; take more"):
        learn_keys(clusters(0), slots=1)
    with pytest.raises(InputError, match="slots: 0"):
        learn_keys(clusters(0), slots=0)
    with pytest.raises(InputError, match=r"\(2, 3\), \(2, 4\), expected \(N, d\) for each task, of one d"):
        learn_keys({"a": torch.ones(2, 3), "b": torch.ones(2, 4)})


@given(st.integers(0, 1000), st.integers(0, 50))
def test_usage_permutes_ties_only(seed: int, used: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    cosines = 2 * torch.rand(5, 7, generator=draw, dtype=torch.float64) - 1
    alike = balanced(cosines, torch.full((7,), used))
    assert torch.equal(alike.argsort(dim=1), cosines.argsort(dim=1))
    tied = torch.full((1, 7), 0.3, dtype=torch.float64)
    counts = torch.randperm(7, generator=draw)
    assert torch.equal(balanced(tied, counts).argsort(dim=1, descending=True)[0], counts.argsort())


def test_the_snippets_on_the_page_run(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base-model").symlink_to(tiny_model)
    page = (
        (Path(__file__).parents[2] / "docs" / "library.md").read_text().replace("mine.yaml", str(tiny_suite))
    )
    backbone = tv.load_backbone("base-model")
    for name, vector in vectors_for(tv.Evaluator(backbone, []), ("pets", "taste")).items():
        vector.save(f"{name}.safetensors")
    names: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, names)
    assert names["weights"].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert names["made"].names == names["learned"].names == ("pets", "taste")


def encoder() -> Any:
    return BertModel(BertConfig(vocab_size=20))


def test_any_library_is_routed_and_adapters_are_bound(
    evaluator: tv.Evaluator, tiny_model: Path, tmp_path: Path
) -> None:
    scales = IA3Config(target_modules=["key", "value"], feedforward_modules=[])
    factors = LoraConfig(r=2, target_modules=["query"])
    loose = {
        "scales": tv.TaskVector.load(save_trained(encoder, tiny_model, tmp_path / "ia3", scales)),
        "factors": tv.TaskVector.load(save_trained(encoder, tiny_model, tmp_path / "lora", factors)),
        "pets": vectors_for(evaluator, ("pets",))["pets"],
    }
    bound = {name: vector.with_base(tiny_model) for name, vector in loose.items()}
    of_tasks = evaluator.features(evaluator.pretrained, "pets", "test")[0]
    keys = {"scales": of_tasks[0], "factors": of_tasks[1:3], "pets": of_tasks[3]}
    found = tv.route(evaluator, tv.Library(bound, keys), ["pets", "taste"])
    assert set(found["values"]) == set(found["routing"]) == {"pets", "taste"}
    assert found["routed"] == {"pets": found["routing"]["pets"]["pets"]}
    nearest = tv.Library(bound, keys).select(of_tasks).argmax(1)
    points = evaluator.points(bound)
    logits = torch.stack([evaluator.logits(points.at({name: 1.0}), "pets", "test")[0] for name in bound])
    labels = evaluator.logits(points.at({}), "pets", "test")[1]
    right = logits[nearest, torch.arange(len(nearest))].argmax(1) == labels
    assert found["values"]["pets"] == pytest.approx(float(right.float().mean()), abs=0.03)
    adapters = {name: loose[name] for name in ("scales", "factors")}
    unbound = tv.Library(adapters, {name: keys[name] for name in adapters})
    same = tv.route(evaluator, unbound, ["taste"])
    whole = tv.Library({name: bound[name] for name in adapters}, unbound.keys)
    assert same == tv.route(evaluator, whole, ["taste"])
    renamed = dict(zip(("pets", "taste"), adapters.values(), strict=True))
    assert not tv.make_library(evaluator, renamed).base.unbound


@pytest.mark.parametrize(
    ("asked", "words"),
    [({"k": 4}, "k: 4, expected 1 to 3"), ({"k": 0}, "library: k"), ({"temperature": 0.0}, "library: temp"),
     ({"tasks": ["petz"]}, "'pets'")],
)  # fmt: skip
def test_what_cannot_be_routed_is_refused(
    evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector], asked: dict[str, Any], words: str
) -> None:
    library = tv.make_library(evaluator, vectors)
    with pytest.raises(InputError, match=words):
        tv.route(evaluator, library, **{"tasks": ["pets"], **asked})
    with pytest.raises(InputError, match=r"features: shape .* expected \(3,\) or \(N, 3\)"):
        tv.route(evaluator, tv.Library(vectors, torch.eye(3)), ["pets"])
