"""Suites from YAML files and those that come with the package."""

import subprocess
import sys
from pathlib import Path

import pytest

from taskvec.errors import InputError, UnknownName
from taskvec.models.heads import prompts
from taskvec.models.known import MODELS
from taskvec.tasks.suite import load_suite, suite_names

GOOD = """
suite: mine
model: minilm
control: mood
defaults:
  max_length: 40
  data: {source: csv, text: body, path: "data/{task}.csv"}
tasks:
  spam:
    classes: [spam, ham]
    max_length: 20
  mood:
    classes: [sad, glad]
    data: {label: feeling}
"""


def written(folder: Path, text: str) -> Path:
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


def test_defaults_are_filled_in_and_overridden(tmp_path: Path) -> None:
    suite = load_suite(written(tmp_path, GOOD))
    assert (suite.name, suite.version, suite.control) == ("mine", 1, "mood")
    assert [task.max_length for task in suite.tasks.values()] == [20, 40]
    spam, mood = (task.data.model_dump() for task in suite.tasks.values())
    assert (spam["path"], spam["text"], spam["label"]) == ("data/spam.csv", "body", "label")
    assert (mood["path"], mood["text"], mood["label"]) == ("data/mood.csv", "body", "feeling")


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"test,text {n},{n % 2}\n" for n in range(4))
    (tmp_path / "suite" / "data").mkdir(parents=True)
    (tmp_path / "suite" / "data" / "spam.csv").write_text(f"split,body,label\n{rows}")
    written(tmp_path / "suite", GOOD)
    monkeypatch.chdir(tmp_path)
    assert len(load_suite("suite/mine.yaml").task("spam").split("test")) == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "max_length: 20",
            "max_lenght: 20",
            r"unknown key 'max_lenght' in 'tasks\.spam'; did you mean 'max_length'",
        ),
        ("control: mood", "controll: mood", "unknown key 'controll'; did you mean 'control'"),
        ("control: mood", "control: mod", "no task called 'mod'; did you mean 'mood'"),
        ("source: csv", "source: cvs", "no data source called 'cvs'; did you mean 'csv'"),
        ("label: feeling", "lable: feeling", "unknown key 'lable'; did you mean 'label'"),
        ("suite: mine", "suite: mine\nsuite: yours", "'suite' is given twice, line 3"),
        ("[spam, ham]", "[spam]", "two or more"),
        ("[spam, ham]", "!!python/tuple [spam, ham]", "not valid YAML"),
        ("suite: mine", "", "suite: field required"),
        ("tasks:", "task:", "tasks: field required|unknown key 'task'"),
        ("model: minilm", "model: [minilm", "not valid YAML"),
        ("data: {label: feeling}", "data: feeling", r"tasks\.mood\.data"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        load_suite(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "suite"])
def test_a_file_that_is_no_mapping_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="expected keys such as 'suite'"):
        load_suite(written(tmp_path, text))


def test_an_unknown_name_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'text8'"):
        load_suite("text9")
    with pytest.raises(UnknownName, match="did you mean 'spam'"):
        load_suite(written(tmp_path, GOOD)).task("span")
    with pytest.raises(InputError, match=r"none\.yaml: no such file"):
        load_suite(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", suite_names())
def test_shipped_suites_are_whole(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name and suite.description and suite.model in MODELS
    for key, task in suite.tasks.items():
        assert task.name == key and task.description.endswith(".")
        if task.names is not None:
            filled = prompts(task.names, task.templates, task.wordings)
            assert len({prompt for of_class in filled for prompt in of_class}) == sum(map(len, filled))


def test_the_eight_text_and_vision_tasks_are_there() -> None:
    assert list(load_suite("text8").tasks) == [
        "sst2", "subj", "trec6", "ag_news", "banking77", "tweet_emotion", "tweet_offensive", "cola",
    ]  # fmt: skip
    epochs = {name: task.epochs for name, task in load_suite("vision8").tasks.items()}
    assert epochs == {
        "Cars": 35, "DTD": 76, "EuroSAT": 12, "GTSRB": 11, "MNIST": 5, "RESISC45": 15, "SUN397": 14,
        "SVHN": 4, "ImageNet": 4,
    }  # fmt: skip


def test_the_cells_of_the_analogy_share_a_head_and_no_row() -> None:
    suite = load_suite("analogy")
    kept = [name for task in suite.tasks.values() for name in task.keep or ()]
    assert len({task.names for task in suite.tasks.values()}) == 1
    assert sorted(kept) == sorted(suite.task("card_cost").classes)


def test_reading_suites_does_not_import_torch() -> None:
    code = "import sys; from taskvec.tasks.suite import load_suite; load_suite('vision8')"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("suite: x\ndefaults: [1]\ntasks: {a: {}}", "defaults: list, expected keys such as 'data'"),
        ("suite: x\ntasks: {a: {}}", "no 'source'; known: builtin, csv"),
        (
            "suite: x\ntasks: {a/b: {classes: [c, d], data: {source: builtin, scene: gabor}}}",
            "tasks.a/b.name",
        ),
        (
            "suite: x\ntasks: {a: {clases: [c, d], data: {source: builtin, scene: gabor}}}",
            "unknown key 'clases'",
        ),
        ("suite: x\n? {a: 1}\n: 2\n", "a dict as a key, line 2"),
        ("suite: x\nversion: " + "9" * 5000, "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_shapes_that_no_suite_has_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_suite(tmp_path / "s.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 's.yaml'}: ")
    assert message in str(caught.value)
