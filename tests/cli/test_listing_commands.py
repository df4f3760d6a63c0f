"""The commands that list tasks, suites and models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from taskvec.cli import main
from taskvec.models.known import LOADERS, MODELS
from taskvec.tasks.suite import load_suite, suite_names


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    printed = capsys.readouterr()
    return int(done.value.code or 0), printed.out, printed.err


@pytest.mark.parametrize("command", ["tasks", "suites", "models"])
def test_lists_are_one_line_each(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, err = run(capsys, command)
    counts = {
        "tasks": sum(len(load_suite(name).tasks) for name in suite_names()),
        "suites": len(suite_names()),
        "models": len(MODELS),
    }
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1 + counts[command]


@pytest.mark.parametrize("command", ["tasks", "suites", "models"])
def test_lists_as_json_hold_the_same_entries(capsys: pytest.CaptureFixture[str], command: str) -> None:
    lines = run(capsys, command)[1].splitlines()
    assert len(json.loads(run(capsys, command, "--json")[1])) == len(lines) - 1


def test_kinds_of_model_are_those_that_load_and_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [entry["kind"] for entry in json.loads(run(capsys, "models", "--kinds", "--json")[1])]
    assert kinds == [*LOADERS, "your own"]
    assert len(run(capsys, "models", "--kinds")[1].splitlines()) == 1 + len(kinds)


def test_a_rule_is_shown_with_its_usual_scale(capsys: pytest.CaptureFixture[str]) -> None:
    assert "search: 0.5\n" in run(capsys, "rules", "dare+ties")[1]
    assert json.loads(run(capsys, "rules", "pcb", "--json")[1])["coefficient"] == 1.2


def test_one_task_is_shown_as_a_piece_of_a_suite_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = run(capsys, "tasks", "text8/trec6")
    shown = yaml.safe_load(out)
    assert code == 0 and shown["classes"][0] == "abbreviation"
    name = shown.pop("name")
    suite = tmp_path / "mine.yaml"
    suite.write_text(yaml.safe_dump({"suite": "mine", "tasks": {name: shown}}))
    again = load_suite(suite).task("trec6")
    kept = {"data": {"folder"}}
    assert again.model_dump(exclude=kept) == load_suite("text8").task("trec6").model_dump(exclude=kept)


def test_tasks_of_an_own_suite_are_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text("suite: mine\ntasks: {spam: {classes: [a, b], data: {source: csv, path: x.csv}}}\n")
    code, out, _ = run(capsys, "tasks", "--suite", str(suite), "--json")
    assert code == 0 and [task["name"] for task in json.loads(out)] == ["spam"]
    code, out, _ = run(capsys, "suites", str(suite))
    assert code == 0 and yaml.safe_load(out)["tasks"] == {"spam": ""}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tasks", "trek6"), "no task called 'trek6'; did you mean 'trec6'?"),
        (("suites", "text9"), "did you mean 'text8'?"),
        (("models", "minlm"), "no model called 'minlm'; did you mean 'minilm'?"),
        (("suites", "none.yaml"), "none.yaml: no such file"),
        (("tasks", "--suite", "text9"), "did you mean 'text8'?"),
    ],
)
def test_unknown_names_are_bad_input(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_model_is_shown_with_its_reference(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "models", "clip-vit-b-32", "--json")
    assert code == 0 and json.loads(out)["reference"] == "openai/clip-vit-base-patch32"


@pytest.mark.parametrize("command", ["tasks", "suites", "models"])
def test_listing_does_not_import_torch(command: str) -> None:
    code = (
        "import sys\nfrom taskvec.cli import main\n"
        f"try: main(['{command}'])\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL)
    assert done.returncode == 0
