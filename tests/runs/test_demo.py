"""``taskvec demo``: the experiment inside the package, cut to a few steps."""

import json
from pathlib import Path

import pytest
import yaml

from taskvec.cli import main
from taskvec.runs import demo
from taskvec.runs.experiment import load_experiment


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = yaml.safe_load(demo.FILE.read_text())
    values["tasks"] = ["display", "gabor"]
    values["limits"] = {"train": 16, "validation": 10, "test": 20}
    values["training"] |= {"steps": 4, "batch_size": 4}
    values["regimes"] = {regime: values["regimes"][regime] for regime in ("full", "tangent", "post-hoc")}
    values["search"] = {"step": 0.5, "coarse": 1, "limit": 1.5}
    values["methods"]["rules"] = ["ties", {"rule": "adamerging", "steps": 1}]
    values["negation"]["targets"] = ["gabor"]
    values["disentanglement"] = {"pairs": [["display", "gabor"]], "grid": {"points": 3}, "samples": 5}
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(values))
    monkeypatch.setattr(demo, "FILE", path)


@pytest.mark.usefixtures("short")
def test_the_demo_shows_the_whole_life_and_the_counter_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # the second time everything is there already
        with pytest.raises(SystemExit) as stopped:
            main(["demo", "-o", str(tmp_path / "run"), "--quiet"])
        assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for title in (
        "Single tasks",
        "Addition of all 2 tasks",
        "What pre-training is for",
        "Methods side by side",
        "Learned coefficients",
        "Negation of gabor",
        "Non-linear advantage",
        "Weight disentanglement error",
        "Training cost",
    ):
        assert shown.count(title) == 2
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["untrained"]["model"] != results["model"]
    assert "Analogies" in (tmp_path / "run" / "report.md").read_text()


def test_the_demo_is_a_valid_experiment() -> None:
    experiment, suite = load_experiment(demo.FILE)
    assert len(experiment.task_names(suite)) == 8
