"""Studies of language models: every metric in its unit, a complement, texts that are scored."""

import json
from pathlib import Path
from typing import Any

import pytest

from language_models import save_language_model
from taskvec.cli import main

SUITE = """
suite: words
control: cats
tasks:
  dogs: {kind: language, context: 8, data: {source: text, path: dogs.txt, separator: "\\n"}}
  cats: {kind: language, context: 8, data: {source: text, path: cats.txt, separator: "\\n"}}
  birds:
    kind: generation
    prompt: "{}"
    answers: ["chirp", "a bark"]
    data: {source: jsonl, path: birds.jsonl}
  barks:
    kind: generation
    prompt: ""
    score: marks.py:score
    cut: 0.5
    sampling: {count: 6, max_new_tokens: 4, prompts: ["the dog"]}
    data: {source: jsonl, path: birds.jsonl, label: null, only: {label: a bark}}
"""

EXPERIMENT = """
experiment: words
model: {model}
suite: words.yaml
tasks: [dogs, birds]
limits: {{train: 12, validation: 6, test: 6}}
training: {{lr: 1e-2, steps: 4, batch_size: 8, validations: 0}}
regimes: {{full: {{}}}}
search: {{step: 0.5, coarse: 1, limit: 1}}
addition: {{}}
joint: true
atm: {{rounds: [1]}}
negation: {{targets: [dogs, barks], controls: [cats, birds], complement: {{dogs: cats}}, keep: 0.5}}
analogies:
  - {{a: dogs, b: birds, c: cats, target: dogs}}
  - {{a: cats, b: birds, c: dogs, target: birds, reference: false}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the experiment, through the command."""
    home = tmp_path_factory.mktemp("words")
    model = save_language_model(home / "gpt")
    (home / "dogs.txt").write_text("\n".join(f"the dog {word} barks at night" for word in "abcdefgh" * 3))
    (home / "cats.txt").write_text("\n".join(f"a cat {word} sleeps by day" for word in "abcdefgh" * 3))
    rows = [
        {"split": split, "text": f"the {number} animal says", "label": ["chirp", "a bark"][number % 2]}
        for split, count in (("train", 24), ("validation", 8), ("test", 8))
        for number in range(count)
    ]
    (home / "birds.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (home / "marks.py").write_text("def score(texts):\n    return [len(text) % 3 / 2 for text in texts]\n")
    (home / "words.yaml").write_text(SUITE)
    (home / "x.yaml").write_text(EXPERIMENT.format(model=model))
    assert run(home / "x.yaml", "-o", home / "run", "--allow-code") == 0
    return home / "run"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["run", *map(str, arguments), "--quiet"])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def row(report: str, title: str, label: str) -> list[str]:
    """The cells of a row of the table with this title."""
    table = report[report.index(f"**{title}**") :]
    line = next(line for line in table.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_tables_show_every_metric_in_its_unit(folder: Path) -> None:
    report, results = (folder / "report.md").read_text(), json.loads((folder / "results.json").read_text())
    dogs, birds = (results["zero_shot"][task]["test"]["value"] for task in ("dogs", "birds"))
    assert dogs > 1 and "majority" not in results["zero_shot"]["dogs"]
    assert row(report, "Single tasks", "zero-shot") == [f"{dogs:.4g}", f"{100 * birds:.1f}", "–", ""]
    assert "| dogs ↓ | birds | mean |" in report and "majority class" not in report
    assert "Perplexity as it is (less is better), others per cent on 6 test examples" in report
    normalized = row(report, "Addition of all 2 tasks", "full")[1].split(" / ")
    assert normalized[0] == "–" and float(normalized[1]) > 0
    assert row(report, "Analogies, full", "dogs : birds :: cats : dogs")[0] == f"{dogs:.4g}"
    assert row(report, "Analogies, full", "mean")[0] == "–"
    assert {path.stem for path in (folder / "figures").iterdir()} >= {"single", "addition", "atm", "negation"}


def test_protocols_compare_values_of_which_more_is_better(folder: Path) -> None:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())["seeds"]["0"]["full"]
    [*_, whole] = results["addition"]
    for task, scale in (("dogs", -1), ("birds", 1)):
        assert whole["values"][task] == pytest.approx(whole["test"][task]["value"] ** scale)
        assert whole["values"][task] > 0
    ratios = [whole["values"][task] / results["single"]["test"][task] for task in ("dogs", "birds")]
    assert whole["normalized"] == pytest.approx(sum(ratios) / 2)


def test_negation_has_the_complement_beside_the_other_baselines(folder: Path) -> None:
    report = (folder / "report.md").read_text()
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())["seeds"]["0"]["full"]
    dogs, barks = results["negation"]
    assert list(dogs["rows"]) == [
        "pretrained", "fine-tuned", "ascent", "complement", "negative fine-tuned", "negative random"
    ]  # fmt: skip
    assert "complement" not in barks["rows"]
    complement = dogs["rows"]["complement"]
    assert complement["trained_on"] == "cats" and "training split of cats" in complement["consumed"]
    assert dogs["rows"]["fine-tuned"]["target"] < dogs["rows"]["pretrained"]["target"]
    assert "Complement: fine-tuned on cats." in report and "highest target value" in report
    assert f"{complement['target']:.4g}" in row(report, "Negation of dogs", "full: complement")


def test_what_is_told_of_written_texts_stands_beside_their_score(folder: Path) -> None:
    report = (folder / "report.md").read_text()
    assert "| barks ↓ | at 0.5 or above ↓ | distinct-2 | control |" in report
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())["seeds"]["0"]["full"]
    score = results["negation"][1]["rows"]["negative fine-tuned"]["target_score"]
    cells = row(report, "Negation of barks", "full: negative fine-tuned")
    assert cells[1:3] == [f"{100 * score['value']:.1f}", f"{100 * score['share']:.1f}"]
    assert cells[3] == ("–" if score["distinct_2"] is None else f"{score['distinct_2']:.3f}")


def test_what_needs_classes_refuses_a_language_task_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (folder.parent / "x.yaml").read_text()
    text += "disentanglement: {pairs: [[dogs, birds]]}\n"
    (folder.parent / "y.yaml").write_text(text)
    assert run(folder.parent / "y.yaml", "-o", tmp_path / "run", "--allow-code") == 2
    assert (
        "dogs: a task of kind 'language', and this analysis compares predictions" in capsys.readouterr().err
    )
