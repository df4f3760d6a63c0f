"""Code that a file names runs only where the user said so, and is not imported before."""

import json
import shutil
from pathlib import Path

import pytest

import taskvec as tv
from language_models import save_language_model
from taskvec.cli import main
from taskvec.code import allowing_code
from taskvec.errors import InputError
from taskvec.tasks.source import SPLITS

CODE = """
from pathlib import Path

Path(__file__).with_suffix(".ran").touch()

def chance(labels, predicted):
    return float((labels == predicted).double().mean()) - 0.5

def words(texts):
    return [len(text.split()) for text in texts]

def one(texts):
    return [0.5]

def angry(*given):
    raise RuntimeError("no weights\\nhere")
"""


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture
def folder(tmp_path: Path, tiny_suite: Path) -> Path:
    """A suite whose first task has a metric of its own, and the code."""
    for path in tiny_suite.parent.glob("*.jsonl"):
        shutil.copy(path, tmp_path)
    text = tiny_suite.read_text().replace("  pets: {", "  pets: {metric: 'mine.py:chance', ")
    (tmp_path / "own.yaml").write_text(text)
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


@pytest.fixture
def talking(tmp_path: Path) -> Path:
    """A suite that has texts scored."""
    rows = [{"split": split, "text": "the cat", "label": "sat"} for split in SPLITS] * 4
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "talk.yaml").write_text(
        "suite: talk\ntasks:\n  talk:\n    kind: generation\n    data: {source: jsonl, path: data.jsonl}\n"
        "    score: mine.py:words\n    sampling: {count: 4, max_new_tokens: 5}\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "MODEL", "-s", "SUITE"),
        ("train", "-m", "MODEL", "-s", "SUITE", "-t", "pets", "-o", "OUT"),
        ("stats", "MODEL", "-s", "SUITE", "-t", "pets", "--kind", "gram", "-o", "OUT"),
        ("suites", "SUITE"),
        ("tasks", "pets", "-s", "SUITE"),
        ("run", "EXPERIMENT", "-o", "OUT"),
        ("analyze", "ntk", "MODEL", "-s", "SUITE", "-t", "pets", "--control", "taste", "-o", "OUT"),
    ],
    ids=lambda words: words[0],
)
def test_every_command_refuses_code_that_a_suite_names(
    words: tuple[str, ...], folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "run.yaml").write_text(
        f"experiment: own\nmodel: {tiny_model}\nsuite: own.yaml\ntasks: [pets]\nregimes: {{full: {{}}}}\n"
    )
    place = {
        **{"MODEL": tiny_model, "SUITE": folder / "own.yaml", "OUT": folder / "out.safetensors"},
        "EXPERIMENT": folder / "run.yaml",
    }
    assert command(*(place.get(word, word) for word in words)) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "own.yaml: tasks.pets.metric: names code to run, 'mine.py:chance'" in line
    assert "--allow-code" in line
    assert not (folder / "mine.ran").exists() and not (folder / "out.safetensors").exists()


def test_a_metric_of_a_file_measures_where_it_is_allowed(
    folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = ["eval", tiny_model, "-s", folder / "own.yaml", "--allow-code", "-q"]
    assert command(*allowed, "--json") == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores["pets"]["metric"] == "mine.py:chance"
    assert scores["pets"]["value"] == pytest.approx(scores["pets"]["accuracy"] - 0.5)
    low, high = scores["pets"]["intervals"]["mine.py:chance"]
    assert low <= scores["pets"]["value"] <= high
    assert set(scores["taste"]["intervals"]) == {"macro_f1", "matthews"}
    assert (folder / "mine.ran").exists()
    assert command(*allowed) == 0
    assert "mine.py:chance" in capsys.readouterr().out


def test_a_variable_in_an_experiment_names_no_code_either(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NETWORK", str(folder / "mine.py:chance"))
    (folder / "run.yaml").write_text(
        "experiment: own\nmodel: '${NETWORK}'\nsuite: own.yaml\nregimes: {full: {}}\n"
    )
    assert command("run", folder / "run.yaml", "-o", folder / "out") == 2
    assert "run.yaml: model: names code to run" in capsys.readouterr().err
    assert not (folder / "mine.ran").exists()


def test_listing_runs_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("tasks", "pets", "-s", folder / "own.yaml", "--allow-code", "--json") == 0
    assert json.loads(capsys.readouterr().out)["metric"] == "mine.py:chance"
    assert not (folder / "mine.ran").exists()


def test_python_allows_it_by_a_word_too(folder: Path) -> None:
    with pytest.raises(InputError, match=r"own\.yaml: tasks\.pets\.metric: names code"):
        tv.load_suite(folder / "own.yaml")
    with allowing_code():
        assert tv.load_suite(folder / "own.yaml").task("pets").metric == "mine.py:chance"


def test_written_texts_are_scored_by_the_file_s_function(
    talking: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_language_model(talking / "model", "llama")
    suite = talking / "talk.yaml"
    assert command("eval", model, "-s", suite) == 2
    assert "talk.yaml: tasks.talk.score: names code to run" in capsys.readouterr().err
    options = ["--lr", 1e-4, "--steps", 2, "--batch-size", 4]
    vector = talking / "v.safetensors"
    assert command("train", "-m", model, "-s", suite, "-t", "talk", *options, "-o", vector, "-q") == 2
    assert not (talking / "mine.ran").exists()
    capsys.readouterr()
    allowed = ["-s", suite, "-t", "talk", "--allow-code", "-q", "--json"]
    assert command("train", "-m", model, *allowed, *options, "-o", vector) == 0
    trained = json.loads(capsys.readouterr().out)["test"]["talk"]
    assert command("eval", model, "-v", f"a={vector}", *allowed) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["talk"] == trained
    assert trained["examples"] == 4 and trained["share"] >= 0
    assert command("eval", model, *allowed[:-1]) == 0
    assert "score" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("score: mine.py:one", "talk: score mine.py:one: gave 1 numbers, expected 4, one for each text"),
        ("score: mine.py:angry", "talk: score mine.py:angry: raised RuntimeError: no weights here, given 4"),
        ("score: mine.py:other", "talk: score: mine.py has no function 'other'"),
        ("score: missing.py:words", "talk: score: missing.py cannot be imported"),
        ("score: no_such_thing:words", "talk: score: no_such_thing cannot be imported (ModuleNotFoundError"),
        ("score: words", "tasks.talk: score: 'words' is not of the form module:function"),
        ("metric: mine.py:angry", "metric 'mine.py:angry': raised RuntimeError: no weights here, given 4"),
    ],
)
def test_what_is_wrong_with_the_code_is_one_line(
    key: str, complaint: str, talking: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, model = talking / "talk.yaml", save_language_model(talking / "model", "gpt2")
    suite.write_text(suite.read_text().replace("score: mine.py:words", key))
    capsys.readouterr()
    assert command("eval", model, "-s", suite, "--allow-code", "-q") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert complaint in line
