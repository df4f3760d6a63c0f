"""What the documentation shows is what the code does."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import taskvec as tv
from image_families import save as save_image_encoder
from language_models import TEXT, save_language_model
from taskvec.cli import COMMANDS, main
from taskvec.code import allowing_code
from taskvec.config import Config
from taskvec.rules import RULES
from taskvec.runs.experiment import load_experiment
from taskvec.studies import STUDIES
from taskvec.studies.experiment import Experiment
from taskvec.tasks.kinds import KINDS
from taskvec.tasks.source import SOURCES
from taskvec.tasks.suite import Suite

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_exists(page: Path) -> None:
    shown = set(re.findall(r"(?:^|`|\$ |    )taskvec ([a-z-]+)", page.read_text()))
    assert shown <= {*COMMANDS, "install-completion"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_shown_is_public(page: Path) -> None:
    shown = set(re.findall(r"\btv\.([A-Za-z_]+)", page.read_text()))
    assert shown <= set(tv.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def headings(page: Path) -> set[str]:
    """The anchors of a page, made from its headings as web pages of Markdown make them."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    assert [
        link for link in links if link[1] not in headings(page.parent / link[0] if link[0] else page)
    ] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_import_shown_works(page: Path) -> None:
    for statement in re.findall(r"^from taskvec[\w.]* import .*$", page.read_text(), re.MULTILINE):
        exec(statement, {})


@pytest.mark.parametrize("page", ["README.md", "docs/supported.md"])
def test_the_rules_are_counted(page: str) -> None:
    counts = re.findall(r"(\d+) rules", (ROOT / page).read_text())
    assert set(counts) == {str(len(RULES))}, f"{page} counts {set(counts)} rules, there are {len(RULES)}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


def test_every_key_of_an_experiment_file_is_on_its_page() -> None:
    page = (ROOT / "docs" / "experiments.md").read_text()
    studies = [name for name, study in STUDIES.items() if study.settings is not None]
    fields = [field.alias or name for name, field in Experiment.model_fields.items()]
    missing = [key for key in [*fields, *studies] if f"`{key}`" not in page]
    assert not missing, f"docs/experiments.md does not say what the keys {missing} mean"


def test_the_suite_in_the_documentation_is_valid(tmp_path: Path) -> None:
    [block] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "suites.md").read_text(), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(block)
    suite = tv.load_suite(tmp_path / "mine.yaml")
    assert set(suite.tasks) == {"sentiment", "topics"}


def test_every_key_of_a_suite_is_on_its_page() -> None:
    page = (ROOT / "docs" / "suites.md").read_text()
    settings: list[type[Config]] = [Suite, *KINDS.values(), *SOURCES.values()]
    # Set by ``load_suite``: a task's name is its key in the file, paths are relative to its folder.
    keys = {field.alias or name for model in settings for name, field in model.model_fields.items()} - {
        "name",
        "folder",
    }
    assert {key for key in keys if f"`{key}`" not in page} == set()


def test_the_snippets_on_models_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "models.md").read_text()
    [suite] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    Path("mine.yaml").write_text(suite)
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        labels = np.arange(40) % 2
        shades = draw.integers(0, 100, (40, 8, 8, 3)) + 100 * labels[:, None, None, None]
        arrays |= {f"x_{split}": shades.astype(np.uint8), f"y_{split}": labels}
    np.savez("shades.npz", **arrays)
    names: dict[str, Any] = {"print": lambda *values: None}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if "tv.wrap" in snippet:
            Path("net.py").write_text(snippet)
        exec(snippet, names)
    Path("shades.safetensors").unlink()
    for words in re.findall(r"^    taskvec (.*net\.py:small.*)", page, re.MULTILINE):
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(words), "--quiet"])
        assert ended.value.code == 0, words
    assert names["evaluator"].values(names["points"].at({"shades": 1.0}), ["shades"], "test")["shades"] > 0.9


def test_the_regimes_on_the_page_on_training_run(
    evaluator: tv.Evaluator,
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "training.md").read_text().replace("[345]", "1")
    names: dict[str, Any] = {"tv": tv, "model": evaluator.backbone, "part": evaluator.part("pets")}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        if "tv.Regime" in snippet or 'lr="auto"' in snippet:
            exec(snippet, names)
    assert names["vector"].info.training["lr_search"]
    assert (names["upper"].info.regime, names["small"].info.regime) == ("upper", "lora-mlp")
    here = f"-m {tiny_model} -s {tiny_suite} -t pets"
    shown = re.findall(r"^    taskvec (train .*(?:--space|--lr auto).*)", page, re.MULTILINE)
    for words in shown:
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(words.replace("-m minilm -s text8 -t sst2", here)), "--quiet"])
        assert ended.value.code == 0, words
    assert len(shown) == 3


def test_the_snippets_on_penalties_run(
    evaluator: tv.Evaluator,
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "penalties.md").read_text()
    names: dict[str, Any] = {"tv": tv, "model": evaluator.backbone, "part": evaluator.part("pets")}
    names["others"] = [evaluator.part("taste"), evaluator.part("number")]
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, names)
    for regimes in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        Path("tiny.yaml").write_text(f"experiment: tiny\nmodel: {tiny_model}\nsuite: {tiny_suite}\n{regimes}")
        load_experiment(Path("tiny.yaml"))
    here = {"-m minilm -s text8 -t sst2": f"-m {tiny_model} -s {tiny_suite} -t pets"}
    here |= {"trec6 ag_news": "taste number", "--steps 30": "--steps 2"}
    here |= {"stats minilm -s text8 -t trec6": f"stats {tiny_model} -s {tiny_suite} -t taste"}
    for words in re.findall(r"^    taskvec ((?:train|stats) .*)", page, re.MULTILINE):
        for shown, meant in here.items():
            words = words.replace(shown, meant)
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(words), "--quiet"])
        assert ended.value.code == 0, words


def test_the_snippets_on_trained_adapters_run(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base-model").symlink_to(tiny_model)
    page = (ROOT / "docs" / "lora.md").read_text()
    section = page[page.index("## How do I train one?") : page.index("## Does PEFT find the layers?")]
    for words in re.findall(r"^    taskvec (.*)", section, re.MULTILINE):
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(words.replace("-s text8 -t sst2", f"-s {tiny_suite} -t pets")), "--quiet"])
        assert ended.value.code == 0, words
    for snippet in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(snippet, {"tv": tv})
    first, other = (tv.TaskVector.load(name).with_base("base-model") for name in ("ADAPTER", "trained"))
    trained = tv.TaskVector.load("sst2.safetensors")
    for name in trained:
        torch.testing.assert_close(first[name], trained[name])
        torch.testing.assert_close(other[name], trained[name])


def test_the_snippets_on_language_models_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, kind in {"gpt": "gpt2", "t5": "t5"}.items():
        save_language_model(tmp_path / folder, kind)
    Path("plays.txt").write_text(TEXT * 4)
    Path("stories.txt").write_text("the dog ate\nthe cat sat on the mat\n" * 4)
    rows = [
        {"split": split, "text": "the cat sat", "hypothesis": "the cat", "label": place % 3}
        for split in ("train", "validation", "test")
        for place in range(6)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = (ROOT / "docs" / "language-models.md").read_text()
    for suite in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        Path(suite.split()[1]).write_text(suite)
    for words in re.findall(r"^    taskvec (.*)", page, re.MULTILINE):
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(words), "--quiet"])
        assert ended.value.code == 0, words
    names: dict[str, Any] = {"print": lambda *values: None}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, names)
    assert names["logits"].shape == (len(names["text"]) - 2, names["model"].dim)


@pytest.mark.parametrize("kind", ["vit", "dinov2", "mobilenet_v2"])
def test_the_snippets_on_image_encoders_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    processor = {"size": {"height": 32, "width": 32}, "image_processor_type": "ViTImageProcessor"}
    save_image_encoder(kind, tmp_path / "vit", processor)
    save_image_encoder("resnet", tmp_path / "resnet", processor)
    page = (ROOT / "docs" / "images.md").read_text()
    [suite] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    Path("pictures.yaml").write_text(suite)
    arrays: dict[str, Any] = {"classes": np.array(["stop", "go"])}
    for split in ("train", "val", "test"):
        arrays |= {f"x_{split}": shades(12, 20), f"y_{split}": np.arange(12) % 2}
        for place, image in enumerate(shades(12, 24)):
            file = Path("pets", split, ("cat", "dog")[place % 2], f"{place}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    np.savez("signs.npz", **arrays)
    commands = re.findall(r"^    taskvec (.*)", page, re.MULTILINE)
    assert len(commands) == 4
    for words in commands:
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(words), "--quiet"])
        assert ended.value.code == 0, words
    [snippet] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shown: list[Any] = []
    exec(snippet, {"print": shown.append})
    assert set(shown[0]) == {"pets", "signs"}


def shades(count: int, side: int) -> Any:
    """Dark and light pictures in turn."""
    draw = np.random.default_rng(side)
    bright = 100 * (np.arange(count) % 2)[:, None, None, None]
    return (draw.integers(0, 100, (count, side, side, 3)) + bright).astype(np.uint8)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_the_snippets_on_generation_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_language_model(tmp_path / "gpt", kind)
    rows = [
        {"split": split, "text": f"the cat sat {place}.", "label": ("bad", "good")[place % 2]}
        for split in ("train", "validation", "test")
        for place in range(6)
    ]
    Path("reviews.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = (ROOT / "docs" / "generation.md").read_text()
    [suite] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    Path("talk.yaml").write_text(suite)
    names: dict[str, Any] = {"print": lambda *values: None}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, names)
    assert (names["mood"].examples, names["tone"].examples) == (6, 20)
    for words in re.findall(r"^    taskvec (.*)", page, re.MULTILINE):
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(words), "--quiet"])
        assert ended.value.code == 0, words


def test_the_snippet_on_vocabularies_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, tokens in {"base": "abcd", "chat": "abcde"}.items():
        tv.save_weights({"embed_tokens.weight": torch.randn(len(tokens), 3)}, name)
        Path(name, "vocab.json").write_text(json.dumps({token: row for row, token in enumerate(tokens)}))
    page = (ROOT / "docs" / "vocabulary.md").read_text()
    [snippet] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(snippet, {"print": lambda *values, sep: None})
    assert tv.open_weights("out").spec("embed_tokens.weight").shape == (5, 3)


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.name)
def test_every_experiment_file_is_valid(path: Path) -> None:
    with allowing_code():
        experiment, suite = load_experiment(path)
    assert set(experiment.task_names(suite)) <= set(suite.tasks)


def test_the_page_on_methods_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "methods.md").read_text()
    [experiment] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    short = "[ties, {rule: adamerging, steps: 2}]\n"
    short += "  coefficient: default\n"
    Path("methods.yaml").write_text(re.sub(r"rules: .*\n", f"rules: {short}", experiment))
    loaded, _ = load_experiment(Path("methods.yaml"))
    with pytest.raises(SystemExit) as ended:
        main(["run", "methods.yaml", "-o", "runs/methods", "--seeds", "0", "--quiet"])
    assert loaded.seeds == (0, 1, 2) and ended.value.code == 0
    names: dict[str, Any] = {"print": lambda *values: None}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, names)
    assert {"zero-shot", "sum", "ties", "slerp (t 0.4)"} <= {record["name"] for record in names["records"]}


def test_the_snippets_on_atm_run(evaluator: tv.Evaluator) -> None:
    page = (ROOT / "docs" / "atm.md").read_text().replace("steps=40", "steps=4").replace("steps=6", "steps=3")
    tasks = ["pets", "taste"]
    parts = [evaluator.part(task) for task in tasks]
    vectors = [tv.finetune(evaluator.backbone, part, settings=tv.TrainSettings(steps=1)) for part in parts]
    names = {"tv": tv, "model": evaluator.backbone, "evaluator": evaluator, "tasks": tasks}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, {**names, "parts": parts, "vectors": vectors})
