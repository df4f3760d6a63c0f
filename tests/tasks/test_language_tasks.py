"""The kind ``language``: windows, perplexity against plain loops, bad input."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from language_models import TEXT, save_language_model
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.models.language import LanguageModel, Tokenised
from taskvec.models.loading import load_backbone
from taskvec.tasks.kinds.language import LanguageScore, Modelling, windows
from taskvec.tasks.objective import Batch, Tally
from taskvec.tasks.split import Split
from taskvec.tasks.suite import load_suite
from taskvec.tasks.task import Task

TEXTS = [TEXT, TEXT[7:90], "où est la tête?\n\n", "the dog ate"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def loaded(kind: str) -> LanguageModel:
        folder = save_language_model(tmp_path_factory.mktemp(kind), kind)
        backbone = load_backbone(folder, outputs="tokens")
        assert isinstance(backbone, LanguageModel)
        return backbone

    return loaded


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("|".join(TEXTS))
    return path


def task(path: Path, **fields: Any) -> Task:
    data = {"source": "text", "path": str(path), **fields.pop("data", {})}
    return Task.parse("task", {"name": "demo", "kind": "language", "data": data, **fields})


def scored(backbone: LanguageModel, of: Task, batch_size: int = 64) -> LanguageScore:
    evaluator = Evaluator(backbone, [of], batch_size=batch_size)
    found = evaluator.score(evaluator.pretrained, "demo", "test")
    assert isinstance(found, LanguageScore)
    return found


def plain(network: Any, tokens: list[int], context: int, stride: int) -> tuple[float, int]:
    """Total loss and tokens, window by window, as transformers' documentation has it."""
    ids, total, count, before = torch.tensor(tokens), 0.0, 0, 0
    for start in range(0, len(ids), stride):
        stop = min(start + context, len(ids))
        wanted = ids[start:stop].clone()
        wanted[: max(before - start, 1)] = -100
        with torch.no_grad():
            logits = network(input_ids=ids[start:stop][None]).logits[0, :-1]
        total += float(cross_entropy(logits, wanted[1:], ignore_index=-100, reduction="sum"))
        count += int((wanted != -100).sum())
        before = stop
        if stop == len(ids):
            break
    return total, count


# Windows


@given(st.integers(0, 40), st.integers(2, 12), st.data())
def test_each_token_is_scored_once_with_the_most_context(
    length: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    made = [w.passage for w in windows(Tokenised(list(range(length)), [1] * length), context, stride)]
    assert [token for p in made for token in p.target] == [
        token for token in range(1, length) if stride < context or token % context
    ]
    for passage in made:
        assert passage.context + passage.target == list(range(passage.context[0], passage.target[-1] + 1))
        assert passage.context[0] % stride == 0 and len(passage.context + passage.target) <= context
        for token in passage.target:
            assert passage.context[0] == max(0, -((context - 1 - token) // stride) * stride)


# Figures


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "bloom", "mamba"])
@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 5), (64, 32), (7, 1)])
def test_perplexity_is_that_of_a_plain_loop(
    kind: str, context: int, stride: int, model: Any, file: Path
) -> None:
    backbone = model(kind)
    of = task(file, context=context, stride=stride, data={"separator": "|"})
    found = scored(backbone, of, batch_size=3)
    parts = [plain(backbone.network, backbone.tokenise(text).tokens, context, stride) for text in TEXTS]
    total, count = (sum(part[at] for part in parts) for at in (0, 1))
    assert found.tokens == count
    assert found.value == found.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)
    assert found.loss == pytest.approx(total / count, rel=1e-5)


def test_a_stride_of_a_window_is_the_mean_over_chunks(model: Any, file: Path) -> None:
    backbone = model("gpt2")
    tokens = backbone.tokenise(file.read_text()).tokens
    chunks = [torch.tensor([tokens[at : at + 8]]) for at in range(0, len(tokens) // 8 * 8, 8)]
    (file.parent / "b.txt").write_text(backbone.tokenizer.decode(tokens[: len(tokens) // 8 * 8]))
    with torch.no_grad():
        losses = [float(backbone.network(input_ids=chunk, labels=chunk).loss) for chunk in chunks]
    found = scored(backbone, task(file.parent / "b.txt", context=8))
    assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)


@pytest.mark.parametrize("stride", [None, 3])
def test_a_uniform_model_gives_the_size_of_its_vocabulary(stride: int | None, model: Any, file: Path) -> None:
    backbone = model("gpt2")
    zero = {name: torch.zeros_like(value) for name, value in backbone.encoder_parameters().items()}
    evaluator = Evaluator(backbone, [task(file, context=10, stride=stride)])
    found = evaluator.score(zero, "demo", "test")
    assert found.value == pytest.approx(backbone.dim, rel=1e-14)
    assert found.interval == pytest.approx((backbone.dim, backbone.dim), rel=1e-13)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_figures_do_not_depend_on_the_batch_or_its_padding(kind: str, model: Any, file: Path) -> None:
    of = task(file, context=20, stride=7, data={"separator": "|"})
    values = [scored(model(kind), of, batch_size).value for batch_size in (1, 2, 5, 64)]
    assert values == pytest.approx([values[0]] * 4, rel=1e-6)
    objective, split = of.objective(model(kind)), of.split("test")
    model(kind).network.double()
    try:
        totals = [tally_of(model(kind), objective, split, size) for size in (1, 3, 1000)]
    finally:
        model(kind).network.float()
    for tally in totals[1:]:
        for key, value in tally.items():
            assert_close(value, totals[0][key], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def tally_of(backbone: LanguageModel, objective: Any, split: Split, size: int) -> Tally:
    prepared = objective.prepare(backbone, split)
    batches = [prepared.batch(places) for places in torch.split(torch.arange(len(prepared.sizes)), size)]
    pieces = [objective.tally(backbone(**batch.inputs), batch) for batch in batches]
    return {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_bits_per_byte_count_the_bytes_of_the_scored_text(kind: str, model: Any, tmp_path: Path) -> None:
    text = "où est la tête? the cat sat\non the mat"
    (tmp_path / "a.txt").write_text(text)
    found = scored(model(kind), task(tmp_path / "a.txt", context=64, metric="bits_per_byte"))
    first = model("gpt2").tokenise(text).sizes[0] if kind == "gpt2" else 0
    assert found.bytes == len(text.encode()) - first
    assert found.value == pytest.approx(found.loss * found.tokens / math.log(2) / found.bytes)
    assert found.interval is None and found.examples == 1


def test_all_bytes_are_counted_where_the_tokenizer_begins_texts(model: Any, file: Path) -> None:
    found = scored(model("llama"), task(file, metric="bits_per_byte", context=16, stride=4))
    assert found.bytes == len(file.read_text().encode())
    assert found.interval is not None and found.interval[0] < found.value < found.interval[1]


def test_the_interval_is_that_of_windows_drawn_again() -> None:
    draw = torch.Generator().manual_seed(0)
    nats, tokens = torch.rand(50, generator=draw, dtype=torch.float64) * 40, torch.full((50,), 10)
    found = Modelling("demo", 8, 8).score({"nats": nats, "tokens": tokens, "bytes": tokens})
    spread = float((nats / 10).std()) / math.sqrt(50)
    assert found.interval is not None
    low, high = (math.log(end) for end in found.interval)
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.1)


def test_packed_texts_are_joined_by_the_end_of_a_text(model: Any, file: Path) -> None:
    backbone = model("gpt2")
    parts = [backbone.tokenise(text).tokens for text in TEXTS]
    joined = [*parts[0], 2, *parts[1], 2, *parts[2], 2, *parts[3]]
    found = scored(backbone, task(file, context=16, stride=4, packed=True, data={"separator": "|"}))
    total, count = plain(backbone.network, joined, 16, 4)
    assert found.tokens == count and found.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)


def test_packed_texts_that_begin_with_a_token_have_it_between_them(model: Any, file: Path) -> None:
    backbone = model("llama")
    joined = [token for text in TEXTS for token in backbone.tokenise(text).tokens]
    found = scored(backbone, task(file, context=16, stride=4, packed=True, data={"separator": "|"}))
    assert found.tokens == len(joined) - 1


def test_the_loss_is_that_of_transformers(model: Any) -> None:
    backbone = model("llama")
    objective = Modelling("demo", 64, 64)
    split = Split([TEXT[:80]], torch.zeros(1, dtype=torch.int64))
    prepared = objective.prepare(backbone, split)
    batch: Batch = prepared.batch(torch.tensor([0]))
    with torch.no_grad():
        own: Tensor = objective.loss(backbone(**batch.inputs), batch)
        ids = torch.tensor([backbone.tokenise(TEXT[:80]).tokens])
        assert_close(own, backbone.network(input_ids=ids, labels=ids).loss)


# Data


@pytest.mark.parametrize("source", ["jsonl", "csv"])
def test_tables_need_no_labels(source: str, model: Any, tmp_path: Path) -> None:
    rows = {"jsonl": '{"split": "test", "text": "the cat"}\n', "csv": "split,text\ntest,the cat\n"}
    (tmp_path / "rows").write_text(rows[source])
    assert task(tmp_path / "rows", data={"source": source}).split("test").inputs == ["the cat"]


def test_a_limit_is_a_number_of_windows(model: Any, file: Path) -> None:
    evaluator = Evaluator(model("gpt2"), [task(file, context=16)], limits={"test": 3})
    found = evaluator.score(evaluator.pretrained, "demo", "test")
    assert isinstance(found, LanguageScore) and (found.examples, found.tokens) == (3, 45)


def test_what_decides_a_figure_is_in_the_fingerprint(file: Path) -> None:
    made = [task(file), task(file, stride=64), task(file, context=64), task(file, packed=True)]
    assert len({of.fingerprint for of in made}) == len(made)
    assert task(file).fingerprint == task(file, description="another").fingerprint


# Bad input


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stride": 300}, "stride: 300 is more than the context of 256"),
        ({"stride": 0}, "stride: "),
        ({"context": 1}, "context: "),
        ({"metric": "accuracy"}, "metric: "),
        ({"classes": ["a", "b"]}, "classes: a key of kind 'classification'"),
        ({"contxt": 3}, "unknown key 'contxt'; did you mean 'context'"),
    ],
)
def test_bad_fields_are_one_line(fields: dict[str, Any], words: str, file: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        task(file, **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "text", "fields", "words"),
    [
        ("t5", "the cat", {}, "demo: kind 'language' is for causal models, and .* has an encoder"),
        ("gpt2", "the cat", {"context": 65}, "demo: context: 65 tokens are more than the 64 positions of"),
        ("gpt2", "t", {"context": 8}, "demo: text 1 of 1 has fewer than 2 tokens"),
        ("gpt2", "", {"context": 8}, "a.txt: holds no text"),
        ("gpt2", b"\xff", {"context": 8}, "a.txt: cannot be read as text in UTF-8"),
    ],
)
def test_bad_texts_and_models_are_one_line(
    kind: str, text: str | bytes, fields: dict[str, Any], words: str, model: Any, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError, match=words) as caught:
        scored(model(kind), task(tmp_path / "a.txt", **fields))
    assert "\n" not in str(caught.value)


def test_an_encoder_is_refused_with_the_kinds_that_it_serves(tiny_model: Path, file: Path) -> None:
    with pytest.raises(
        InputError, match=r"demo: needs .*language model.* serve tasks of kind .*classification"
    ):
        Evaluator(load_backbone(tiny_model), [task(file)])


def test_a_shipped_way_to_write_a_suite(file: Path, model: Any) -> None:
    suite = file.parent / "suite.yaml"
    suite.write_text(
        "suite: texts\ntasks:\n  demo:\n    kind: language\n    data: {source: text, path: a.txt}\n"
        "    context: 64\n    stride: 64\n    metric: perplexity\n"
    )
    assert scored(model("gpt2"), load_suite(suite).task("demo")).examples == 4
