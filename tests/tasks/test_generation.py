"""Text to text: answers ranked and written as a plain computation with transformers has them."""

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import taskvec as tv
from language_models import save_language_model
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.models.loading import load_backbone
from taskvec.tasks.score import shown
from taskvec.tasks.source import SPLITS
from taskvec.tasks.task import Task
from taskvec.training.parts import make_part

KINDS = ["gpt2", "llama", "t5", "bart"]
ROWS = [
    {"split": split, "text": text, "label": label}
    for split in ("train", "validation", "test")
    for text, label in [
        ("the cat sat on the mat", "cat"),
        ("two men went home", "the men"),
        ("where is the dog", "on the mat"),
        ("and the ox", "ox"),
        ("", "the cake; où"),
    ]
]
ANSWERS = ["cat", "the men", "on the mat", "ox", "the cake; où"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def saved(kind: str) -> Path:
        return save_language_model(tmp_path_factory.mktemp(kind), kind)

    return saved


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def task(data: Path, **fields: Any) -> Task:
    source = {"source": "jsonl", "path": str(data), **fields.pop("source", {})}
    made: Task = Task.parse("task", {"kind": "generation", "name": "talk", "data": source, **fields})
    return made


def evaluator(folder: Path, of: Task, **options: Any) -> Evaluator:
    return Evaluator(load_backbone(folder, outputs="tokens"), [of], **options)


def score(folder: Path, of: Task, **options: Any) -> Any:
    made = evaluator(folder, of, **options)
    return made.score(made.pretrained, of.name, "test")


@cache
def loaded(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and network, by transformers alone."""
    config = hf.AutoConfig.from_pretrained(folder)
    kind = hf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else hf.AutoModelForCausalLM
    return hf.AutoTokenizer.from_pretrained(folder), kind.from_pretrained(folder)


@cache
@torch.no_grad()
def by_hand(folder: Path, prompt: str, answer: str) -> tuple[list[float], bool]:
    """Log-likelihoods of the answer's tokens and of the end, and whether an encoder reads the prompt."""
    tokenizer, network = loaded(folder)
    context = tokenizer(prompt)["input_ids"]
    if network.config.is_encoder_decoder:
        target = tokenizer(answer)["input_ids"]
        read = torch.tensor([[network.config.decoder_start_token_id, *target[:-1]]])
        logits = network(input_ids=torch.tensor([context]), decoder_input_ids=read).logits[0]
    else:
        whole = tokenizer(f"{prompt} {answer}" if prompt else answer)["input_ids"]
        if not context:
            context, whole = [1], [1, *whole]
        target = [*whole[len(context) :], tokenizer.eos_token_id]
        logits = network(input_ids=torch.tensor([context + target])).logits[0, len(context) - 1 : -1]
    rows = logits.log_softmax(-1)[range(len(target)), target]
    return rows.tolist(), network.config.is_encoder_decoder


def likelihood(folder: Path, prompt: str, answer: str, *, per_token: bool) -> float:
    rows, encodes = by_hand(folder, prompt, answer)
    counted = rows if encodes else rows[:-1]
    return sum(counted) / (len(counted) if per_token else 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_token", [False, True])
def test_ranking_is_that_of_a_plain_computation(kind: str, per_token: bool, model: Any, data: Path) -> None:
    tests = [row for row in ROWS if row["split"] == "test"]
    hits = 0
    for row in tests:
        costs = [-likelihood(model(kind), row["text"], answer, per_token=per_token) for answer in ANSWERS]
        hits += costs.index(min(costs)) == ANSWERS.index(row["label"])
    found = score(model(kind), task(data, answers=ANSWERS, per_token=per_token))
    assert (found.metric, found.value, found.accuracy, found.examples) == ("accuracy", hits / 5, hits / 5, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_costs_of_all_answers_are_their_likelihoods(kind: str, model: Any, data: Path) -> None:
    of = task(data, answers=ANSWERS)
    for batch_size in (1, 5):
        made = evaluator(model(kind), of, batch_size=batch_size)
        tally = made.tally(made.pretrained, "talk", "test")
        found = {tuple(row) for row in tally["costs"].numpy().round(4).tolist()}
        expected = {
            tuple(-likelihood(model(kind), row["text"], answer, per_token=False) for answer in ANSWERS)
            for row in ROWS[:5]
        }
        for row in expected:
            assert any(row == pytest.approx(other, abs=2e-3) for other in found)


@pytest.mark.parametrize("kind", KINDS)
def test_perplexity_is_that_of_the_answers_tokens_and_the_end(kind: str, model: Any, data: Path) -> None:
    rows = [value for row in ROWS[:5] for value in by_hand(model(kind), row["text"], row["label"])[0]]
    found = score(model(kind), task(data, metric="perplexity"))
    assert found.value == found.perplexity == pytest.approx(math.exp(-sum(rows) / len(rows)), rel=1e-4)
    assert (found.tokens, found.examples, found.accuracy) == (len(rows), 5, None)
    low, high = found.interval
    assert low < found.value < high
    assert score(model(kind), task(data, metric="loss")).value == pytest.approx(math.log(found.value))
    ranked = score(model(kind), task(data, answers=ANSWERS))
    assert ranked.perplexity == pytest.approx(found.value, rel=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_answers_that_are_trained_on_are_ranked_first_and_written(kind: str, model: Any, data: Path) -> None:
    ranked, written = task(data, answers=ANSWERS), task(data, name="other")
    backbone = load_backbone(model(kind), outputs="tokens")
    made = Evaluator(backbone, [ranked, written.model_copy(update={"name": "other"})])
    settings = tv.TrainSettings(lr=1e-2, steps=100, batch_size=5, warmup=0.1)
    before = made.score(made.pretrained, "talk", "test")
    vector = tv.finetune(backbone, [make_part(backbone, ranked)], settings=settings)
    point = made.points({"v": vector}).at({"v": 1.0})
    after = made.score(point, "talk", "test")
    assert after.loss < 0.3 * before.loss
    assert after.accuracy >= 0.8 and after.accuracy > before.accuracy
    assert made.score(point, "other", "test").exact_match >= 0.8


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_ranking_and_loss_go_in_tangent_space_and_writing_is_refused(
    kind: str, model: Any, data: Path
) -> None:
    ranked, written = task(data, answers=ANSWERS), task(data, metric="exact_match")
    backbone = load_backbone(model(kind), outputs="tokens")
    made = Evaluator(backbone, [ranked, written.model_copy(update={"name": "other"})])
    settings = tv.TrainSettings(lr=1e-4, steps=3, batch_size=5)
    vector = tv.finetune(backbone, [make_part(backbone, ranked)], regime="tangent", settings=settings)
    points = made.points({"v": vector}, space="tangent")
    at_zero, at_one = (made.score(points.at({"v": c}), "talk", "test") for c in (0.0, 1.0))
    assert at_zero.loss == pytest.approx(made.score(made.pretrained, "talk", "test").loss, rel=1e-5)
    assert at_one.loss < at_zero.loss
    with pytest.raises(InputError, match=r"^other: .*tangent space.*perplexity"):
        made.score(points.at({"v": 1.0}), "other", "test")


def length(texts: list[str]) -> list[float]:
    """A score that anyone can check."""
    return [len(text) / 10 for text in texts]


def test_written_texts_are_scored_and_described(model: Any, data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "SEEN = []\n\ndef length(texts):\n    SEEN.append(texts)\n    return [len(t) / 10 for t in texts]\n"
    )
    fields: Mapping[str, Any] = {
        "score": f"{tmp_path}/mine.py:length",
        "cut": 1.0,
        "sampling": {"count": 12, "max_new_tokens": 9, "seed": 3, "top_k": 50},
    }
    found = score(model("gpt2"), task(data, **fields))
    assert (found.metric, found.examples, found.cut) == ("score", 12, 1.0)
    assert found.interval[0] <= found.value <= found.interval[1]
    assert 0 <= found.share_interval[0] <= found.share <= found.share_interval[1] <= 1
    json.dumps(found.record(), allow_nan=False)
    assert found == score(model("gpt2"), task(data, **fields), batch_size=3)
    other = {**fields, "sampling": {**fields["sampling"], "seed": 4}}
    assert found != score(model("gpt2"), task(data, **other))


def test_what_is_drawn_for_validation_is_not_drawn_for_test(
    model: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def texts(self: Any, model: Any, prompts: list[str], seed: int = 0) -> list[str]:
        seeds.append(seed)
        return prompts

    monkeypatch.setattr("taskvec.tasks.answering.Writing.texts", texts)
    fields = {"score": f"{__file__}:length", "sampling": {"prompts": ["a"], "seed": 3}}
    made = evaluator(model("gpt2"), task(data, **fields))
    for split in SPLITS:
        made.score(made.pretrained, "talk", split)
    assert len(set(seeds)) == 3 and seeds[SPLITS.index("test")] == 3


def test_prompts_of_the_settings_take_turns(model: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def texts(self: Any, model: Any, prompts: list[str], seed: int = 0) -> list[str]:
        seen.extend(prompts)
        return ["", "  ", *prompts[2:]]

    monkeypatch.setattr("taskvec.tasks.answering.Writing.texts", texts)
    monkeypatch.setattr("sys.modules", {**__import__("sys").modules})
    fields = {"score": f"{__file__}:length", "sampling": {"count": 5, "prompts": ["a b", ""]}}
    found = score(model("gpt2"), task(data, **fields))
    assert seen == ["a b", "", "a b", "", "a b"]
    assert found.empty == 3
    assert found.value == pytest.approx((0 + 0.2 + 0.3 + 0 + 0.3) / 5)


def test_a_metric_of_one_s_own_compares_answers_and_texts(model: Any, data: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def share(answers, texts):\n"
        "    assert all(isinstance(t, str) for t in [*answers, *texts])\n"
        "    return sum(a[0] in t for a, t in zip(answers, texts)) / len(answers)\n"
    )
    of = task(data, metric="mine.py:share", source={"folder": tmp_path})
    found = score(model("llama"), of)
    assert found.metric == "mine.py:share"
    assert found.interval[0] <= found.value <= found.interval[1]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_texts_without_labels_are_answers_to_a_fixed_prompt(kind: str, model: Any, tmp_path: Path) -> None:
    path = tmp_path / "posts.txt"
    path.write_text("the cat sat\non the mat\ntwo men\nthe dog ate\n", encoding="utf-8")
    source = {"source": "text", "path": str(path), "separator": "\n"}
    of: Task = Task.parse(
        "task", {"kind": "generation", "name": "t", "data": source, "prompt": "", "metric": "loss"}
    )
    rows = [value for text in path.read_text().splitlines() for value in by_hand(model(kind), "", text)[0]]
    assert score(model(kind), of).value == pytest.approx(-sum(rows) / len(rows), rel=1e-4)


def test_pairs_fill_two_places(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("split,one,two,label\ntest,a {} b,c,1\ntest,d,e,0\ntest,f,g,2\n", encoding="utf-8")
    source = {"source": "csv", "path": str(path), "text": "one", "text2": "two"}
    of = Task.parse(
        "task",
        {
            **{"kind": "generation", "name": "nli", "data": source, "prompt": "if {} then {}?"},
            "answers": {0: "no", 1: "yes", 2: None},
        },
    )
    split = of.split("test")
    assert [(exchange.prompt, exchange.answers) for exchange in split.inputs] == [
        ("if a {} b then c?", ("no", "yes")),
        ("if d then e?", ("no", "yes")),
    ]
    assert split.labels.tolist() == [1, 0]


def test_a_long_prompt_is_cut_and_a_long_answer_refused(model: Any, tmp_path: Path) -> None:
    def of(text: str, label: str, **fields: Any) -> Task:
        path = tmp_path / "long.jsonl"
        path.write_text(json.dumps({"split": "test", "text": text, "label": label}) + "\n", encoding="utf-8")
        return task(path, metric="loss", **fields)

    for kind in ("gpt2", "llama", "bart"):
        assert math.isfinite(score(model(kind), of("the cat sat on the mat " * 40, "ox")).loss)
        with pytest.raises(InputError, match=r"talk: the answer 'xyz.* takes \d+ tokens, and .* reads 64"):
            score(model(kind), of("the cat", "xyz" * 60))
    whole = score(model("gpt2"), of("the dog ate the cake", "ox"))
    assert whole.loss != score(model("gpt2"), of("the dog ate the cake", "ox", max_length=2)).loss
    assert whole.loss == score(model("gpt2"), of("the dog ate the cake", "ox", max_length=50)).loss


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"metric": "acuracy"}, "no metric called 'acuracy'; did you mean 'accuracy'"),
        ({"metric": "accuracy"}, "accuracy ranks answers; list two or more under 'answers'"),
        ({"answers": ["yes"]}, "accuracy ranks answers"),
        ({"answers": ["yes", " "]}, "answers"),
        ({"answers": [True, False]}, "answers"),
        ({"metric": "score"}, "'metric: score' and 'score: module:function' belong together"),
        ({"score": "toxicity"}, "'toxicity' is not of the form module:function"),
        ({"prompt": "{} {} {}"}, "has '{}' more than twice"),
        (
            {"sampling": {"temperatur": 1}},
            "unknown key 'temperatur' in 'sampling'; did you mean 'temperature'",
        ),
        ({"sampling": {"top_p": 0}}, "sampling.top_p"),
        ({"sampling": {"count": 10**12}}, "sampling.count"),
    ],
)
def test_fields_that_make_no_task_are_refused(data: Path, fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as refused:
        task(data, **fields)
    assert complaint in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("row", "fields", "complaint"),
    [
        (
            {"text": "a", "label": "maybe"},
            {"answers": ["no", "yes"]},
            "label 'maybe', expected one of 'answers'",
        ),
        ({"text": "a", "label": 2}, {"answers": ["no", "yes"]}, "label 2, expected one of"),
        ({"text": "a", "label": " "}, {}, "the answer is ' ', expected a text"),
        ({"text": "a"}, {}, "no field 'label'"),
        ({"label": "a"}, {}, "no field 'text'"),
        ({"text": "a", "label": None}, {}, "the field 'label' is empty"),
        (
            {"text": "a", "label": "b"},
            {"prompt": "{} {}"},
            "1 texts, and the prompt '{} {}' has '{}' 2 times",
        ),
    ],
)
def test_rows_that_are_no_examples_are_named(
    tmp_path: Path, row: dict[str, Any], fields: dict[str, Any], complaint: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"split": "test", **row}) + "\n", encoding="utf-8")
    with pytest.raises(InputError) as refused:
        task(path, **fields).split("test")
    assert str(refused.value).startswith(f"{path}, row 1: {complaint}")


def test_prompts_without_answers_can_only_be_written_to(model: Any, data: Path) -> None:
    prompts = {"label": None}
    with pytest.raises(InputError, match=r"talk: the data have no labels, expected an answer.*prompt: ''"):
        score(model("gpt2"), task(data, source=prompts, metric="perplexity"))
    with pytest.raises(InputError, match="talk: the data have no labels"):
        score(model("gpt2"), task(data, source=prompts))
    found = score(model("gpt2"), task(data, source=prompts, score=f"{__file__}:length"))
    assert found.examples == 100


def test_an_encoder_is_no_language_model(tiny_model: Path, data: Path) -> None:
    with pytest.raises(InputError, match=r"talk: needs the logits of tokens .*kind classification"):
        Evaluator(load_backbone(tiny_model), [task(data)])


def test_scores_are_shown_as_they_are() -> None:
    assert (shown("score", 49.775), shown("accuracy", 0.5)) == ("49.77", "50.0")
