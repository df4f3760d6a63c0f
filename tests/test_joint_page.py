"""What the page on joint training shows runs."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from taskvec.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "joint.md").read_text()
SHORT = PAGE.replace("steps 30", "steps 1").replace("batch-size 32", "batch-size 4 --limit 8 --validations 0")


def test_its_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def weights(gram):\n    return gram.diagonal() * 0 + 1\n")
    shown = re.findall(r"^    taskvec (.*)", SHORT, re.MULTILINE)
    more = re.findall(r"`(--combiner .*?)`", SHORT.replace("\n", " "))
    assert (len(shown), len(more)) == (2, 2)
    first = (
        shown[0].replace("--combiner pcgrad", "").replace("joint.safetensors", "other.safetensors --force")
    )
    for words in (*shown, *(f"{first} {combiner}" for combiner in more)):
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(words), "--quiet"])
        assert ended.value.code == 0, words


def test_its_snippets_run() -> None:
    [snippet] = re.findall(r"```python\n(.*?)```", SHORT, re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet.replace("steps=30, batch_size=32", "steps=1, batch_size=4, validations=0"), names)
    assert names["vector"].info.training["combiner"] == "pcgrad"


def test_its_experiment_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [experiment] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    small = {
        "train: 2000, validation: 200, test: 400": "train: 8, validation: 8, test: 8",
        "steps: 30": "steps: 1",
    }
    small |= {"batch_size: 32": "batch_size: 4", "rounds: [4]": "rounds: [1]"}
    for shown, used in small.items():
        assert shown in experiment
        experiment = experiment.replace(shown, used)
    Path("together.yaml").write_text(experiment)
    with pytest.raises(SystemExit) as ended:
        main(["run", "together.yaml", "-o", "run", "--quiet"])
    assert ended.value.code == 0
    assert "meta (target gabor)" in Path("run/report.md").read_text()
