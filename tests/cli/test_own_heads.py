"""Two classifiers and no training run: ``head: own`` through the commands."""

import json
import re
import shlex
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

import image_families
import taskvec as tv
from classifiers import WORDS, build, nudge, save_text, save_tokenizer
from taskvec.cli import main

CLASSES = ["entailment", "neutral", "contradiction"]


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments), "--quiet"])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def scores(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert command("eval", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)["scores"]  # type: ignore[no-any-return]


def write(folder: Path, tasks: dict[str, dict[str, Any]]) -> Path:
    """A suite of pairs of texts; the class is how many of four words the second shares, up to two."""
    folder.mkdir(exist_ok=True)
    draw, words = Random(0), WORDS[4:]
    with (folder / "pairs.jsonl").open("w") as file:
        for split, count in {"train": 96, "validation": 24, "test": 24}.items():
            for place in range(count):
                label = place % 3
                first = draw.sample(words, 4)
                second = [
                    *first[:label],
                    *draw.sample([word for word in words if word not in first], 3 - label),
                ]
                row = {"split": split, "label": label, "text": " ".join(first), "text2": " ".join(second)}
                file.write(json.dumps(row) + "\n")
    data = {"source": "jsonl", "path": "pairs.jsonl", "text2": "text2"}
    whole = {name: {"classes": CLASSES, "data": data, **task} for name, task in tasks.items()}
    (folder / "suite.yaml").write_text(json.dumps({"suite": "mine", "tasks": whole}))
    return folder / "suite.yaml"


def save(network: Any, folder: Path) -> Path:
    network.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=["roberta", "t5"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A classifier, the same without its head, and the same tuned; head and all."""
    folder = tmp_path_factory.mktemp(request.param)
    network = save_text(folder / "base", request.param)
    save(network.base_model, folder / "headless")
    return folder / "base", folder / "headless", save(nudge(network, 1), folder / "tuned")


def test_base_and_vector_are_the_tuned_model(
    pair: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, _, tuned = pair
    suite = write(tmp_path, {"nli": {"head": "own"}})
    assert command("diff", base, tuned, "-o", tmp_path / "v.safetensors") == 0
    expected = scores(capsys, tuned, "-s", suite)["nli"]
    edited = scores(capsys, base, "-v", f"v={tmp_path}/v.safetensors", "-s", suite)["nli"]
    assert edited["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-4)
    assert scores(capsys, base, "-s", suite)["nli"]["perplexity"] != pytest.approx(
        expected["perplexity"], rel=1e-3
    )
    half = ["-v", f"v={tmp_path}/v.safetensors", "-e", "0.5*v"]
    assert command("apply", base, *half, "-o", tmp_path / "half") == 0
    written = scores(capsys, tmp_path / "half", "-s", suite)["nli"]
    assert scores(capsys, base, *half, "-s", suite)["nli"]["perplexity"] == pytest.approx(
        written["perplexity"]
    )


def test_a_base_without_a_head_borrows_that_of_the_tuned_model(
    pair: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, base, tuned = pair
    suite = write(tmp_path, {"nli": {"head": "own"}})
    vector = tmp_path / "v.safetensors"
    assert command("diff", base, tuned, "-o", vector, "--on-extra", "drop") == 0
    expected = scores(capsys, tuned, "-s", suite)["nli"]["perplexity"]
    options = [base, "-v", f"v={vector}"]
    lent = scores(capsys, *options, "-s", suite, "--heads-from", tuned)["nli"]
    assert lent["perplexity"] == pytest.approx(expected, rel=1e-4)
    named = write(tmp_path / "named", {"nli": {"head": "own", "checkpoint": str(tuned)}})
    assert scores(capsys, *options, "-s", named)["nli"] == lent
    assert command("eval", *options, "-s", suite) == 2
    error = capsys.readouterr().err
    assert f"{base}: has no trained head (the checkpoint lacks" in error and error.count("\n") == 1


def test_several_models_lend_a_head_each_and_no_vector_moves_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save(build("bert", "SEQUENCE").base_model, tmp_path / "base")
    tuned = {
        name: save(nudge(build("bert", "SEQUENCE"), seed), tmp_path / name) for seed, name in enumerate("ab")
    }
    suite = write(tmp_path, {name: {"head": "own", "checkpoint": name} for name in tuned})
    edit: list[object] = []
    for name, folder in tuned.items():
        assert command("diff", base, folder, "-o", tmp_path / f"{name}.st", "--on-extra", "drop") == 0
        edit += ["-v", f"{name}={tmp_path}/{name}.st"]
    alone = scores(capsys, base, *edit, "-e", "1.0*a + 0.0*b", "-s", suite)
    own = write(tmp_path / "own", {"a": {"head": "own"}})
    expected = scores(capsys, tuned["a"], "-s", own)["a"]["perplexity"]
    assert alone["a"]["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert alone["b"]["perplexity"] != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("regime", ["full", "tangent"])
def test_training_moves_the_encoder_behind_the_trained_head(
    regime: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_text(tmp_path / "base", "roberta")
    suite = write(tmp_path, {"nli": {"head": "own"}})
    recipe = ["--lr", 3e-3, "--steps", 60, "--batch-size", 16, "--regime", regime]
    out = tmp_path / "v.safetensors"
    assert command("train", "-m", tmp_path / "base", "-s", suite, "-t", "nli", *recipe, "-o", out) == 0
    vector = tv.TaskVector.load(out)
    assert not any("classifier" in name for name in vector if vector.terms_at(name))
    options = [tmp_path / "base", "-s", suite, "--split", "train"]
    before = scores(capsys, *options)["nli"]["perplexity"]
    assert scores(capsys, *options, "-v", f"v={out}")["nli"]["perplexity"] < before


def test_a_head_of_one_number_is_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_text(tmp_path / "base", "roberta", labels=1)
    suite = write(tmp_path, {"nli": {"head": "own"}})
    assert command("eval", tmp_path / "base", "-s", suite) == 2
    assert "its head gives one number, expected one of the classes" in capsys.readouterr().err
    whole = json.loads(suite.read_text())
    whole["tasks"]["nli"] = {"kind": "regression", "head": "own", "data": whole["tasks"]["nli"]["data"]}
    suite.write_text(json.dumps(whole))
    figures = scores(capsys, tmp_path / "base", "-s", suite)["nli"]
    assert -1 <= figures["value"] == figures["pearson"] <= 1 and figures["examples"] == 24
    assert command("eval", tmp_path / "base", "-s", suite) == 0
    assert "pearson" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_pairs_of_three_classes_are_learned_behind_a_linear_probe(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_text(tmp_path / "base", family)
    suite = write(tmp_path, {"nli": {"head": "linear-probe"}})
    recipe = ["--lr", 3e-3, "--steps", 60, "--batch-size", 16]
    out = tmp_path / "v.safetensors"
    assert command("train", "-m", tmp_path / "base", "-s", suite, "-t", "nli", *recipe, "-o", out) == 0
    options = [tmp_path / "base", "-s", suite, "--split", "train"]
    before = scores(capsys, *options)["nli"]
    after = scores(capsys, *options, "-v", f"v={out}")["nli"]
    assert len(after["recall"]) == 3 and after["perplexity"] < before["perplexity"]
    if family == "t5":
        vector = tv.TaskVector.load(out)
        assert not any("decoder" in name for name in vector if vector.terms_at(name))


@pytest.mark.parametrize(
    ("task", "options", "complaint"),
    [
        ({"head": "own"}, ["--heads-from", "{dir}/other"], "and its head cannot read those of"),
        ({"head": "own"}, ["--heads-from", "{dir}/headless"], "headless: has no trained head"),
        ({"head": "own", "classes": ["a", "b"]}, [], "and the task the classes"),
        ({"head": "own", "checkpoint": "nowhere"}, [], "nowhere: no folder, hub id or known model"),
    ],
)
def test_a_head_that_does_not_fit_is_one_line(
    task: dict[str, Any],
    options: list[str],
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    network = save_text(tmp_path / "base", "bert")
    save(network.base_model, tmp_path / "headless")
    save_text(tmp_path / "other", "roberta")
    suite = write(tmp_path, {"nli": task})
    given = [option.format(dir=tmp_path) for option in options]
    capsys.readouterr()
    assert command("eval", tmp_path / "base", "-s", suite, *given) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1


def test_a_model_without_classifiers_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = write(tmp_path, {"nli": {"head": "own"}})
    assert command("eval", "builtin", "-s", suite) == 2
    assert "has no classifier with a head of its own" in capsys.readouterr().err


PAGE = Path(__file__).parents[2] / "docs" / "classifiers.md"
REVIEWS = {"a good film": "positive", "a bad film": "negative", "good cat": "positive", "bad dog": "negative"}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_lines_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = save_text(Path("tuned"), "roberta", labels=2)
    save(nudge(deepcopy(network.base_model), 1), Path("base"))
    settings = LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["query", "value"])
    get_peft_model(deepcopy(network), settings).save_pretrained("adapter")
    rows = [f"{split},{text},{label}" for split in ("train", "test") for text, label in REVIEWS.items()]
    Path("reviews.csv").write_text("\n".join(["split,text,label", *rows]))
    page = PAGE.read_text()
    [suite] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    Path("reviews.yaml").write_text(suite)
    for words in re.findall(r"^    taskvec (.*)", page, re.MULTILINE):
        assert command(*shlex.split(words)) == 0, words
    names: dict[str, Any] = {"print": lambda *values: None}
    [snippet] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(snippet, names)
    task = tv.load_suite("reviews.yaml").task("reviews")
    whole = tv.Evaluator(tv.load_backbone("tuned", "classifier"), [task])
    expected = whole.score(whole.pretrained, "reviews", "test").perplexity
    edited = names["evaluator"].score(names["points"].at({"change": 1.0}), "reviews", "test")
    assert edited.perplexity == pytest.approx(expected, rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_an_adapter_lends_the_head_that_was_trained_with_it(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save(build(family, "SEQUENCE").base_model, tmp_path / "base")
    network = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    network.config.pad_token_id = 0
    targets = ["query", "value"] if family == "roberta" else ["c_attn"]
    settings = LoraConfig(r=2, lora_alpha=4, task_type="SEQ_CLS", target_modules=targets)
    if family == "gpt2":
        settings.fan_in_fan_out = True
    tuned: Any = nudge(get_peft_model(network, settings), 1)
    tuned.save_pretrained(tmp_path / "adapter")
    # Weights that are not of the adapter were moved too, and are not saved: those of the base count.
    again = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    again.config.pad_token_id = 0
    whole = PeftModel.from_pretrained(again, tmp_path / "adapter").merge_and_unload()
    save(whole, tmp_path / "whole")
    suite = write(tmp_path, {"nli": {"head": "own"}})
    vector = tmp_path / "v.safetensors"
    assert command("diff", base, tmp_path / "adapter", "-o", vector, "--on-extra", "drop") == 0
    expected = scores(capsys, tmp_path / "whole", "-s", suite)["nli"]["perplexity"]
    lent = scores(capsys, base, "-v", f"v={vector}", "-s", suite, "--heads-from", tmp_path / "adapter")
    assert lent["nli"]["perplexity"] == pytest.approx(expected, rel=1e-4)
    other = write(tmp_path / "other", {"nli": {"head": "own", "classes": ["a", "b"], "keep": ["a", "b"]}})
    assert command("eval", base, "-s", other, "--heads-from", tmp_path / "adapter") == 2
    assert f"{tmp_path}/adapter: its head has the classes" in capsys.readouterr().err
    plain = LoraConfig(r=2, target_modules=targets, fan_in_fan_out=family == "gpt2")
    get_peft_model(again, plain).save_pretrained(str(tmp_path / "plain"))
    capsys.readouterr()
    assert command("eval", base, "-s", suite, "--heads-from", tmp_path / "plain") == 2
    assert f"{tmp_path}/plain: the adapter has no trained head" in capsys.readouterr().err


PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_image_classifiers_are_measured_like_those_of_text(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {0: "Light", 1: "Dark"}
    config = image_families.build(family, id2label=names).config
    config.architectures = None
    torch.manual_seed(0)
    auto: Any = AutoModelForImageClassification
    network = auto.from_config(config).eval()
    for name in ("base", "tuned"):
        network.save_pretrained(tmp_path / name)
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        nudge(network, 1)
    shades = np.arange(24).repeat(32 * 32 * 3).reshape(24, 32, 32, 3).astype(np.uint8) * 10
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays |= {f"x_{split}": shades, f"y_{split}": np.arange(24) // 12}
    np.savez(tmp_path / "shades.npz", **arrays)
    task: dict[str, Any] = {"modality": "image", "head": "own", "classes": ["dark", "light"]}
    task["data"] = {"source": "npz", "path": "shades.npz"}
    (tmp_path / "suite.yaml").write_text(json.dumps({"suite": "mine", "tasks": {"shades": task}}))
    suite, vector = tmp_path / "suite.yaml", tmp_path / "v.safetensors"
    assert command("diff", tmp_path / "base", tmp_path / "tuned", "-o", vector) == 0
    expected = scores(capsys, tmp_path / "tuned", "-s", suite)["shades"]["perplexity"]
    edited = scores(capsys, tmp_path / "base", "-v", f"v={vector}", "-s", suite)["shades"]
    assert edited["perplexity"] == pytest.approx(expected, rel=1e-4)
    recipe = ["--lr", 1e-3, "--steps", 5, "--batch-size", 8, "-o", tmp_path / "trained.safetensors"]
    assert command("train", "-m", tmp_path / "base", "-s", suite, "-t", "shades", *recipe) == 0
