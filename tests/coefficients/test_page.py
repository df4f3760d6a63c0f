"""What the page on learned coefficients shows runs."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import taskvec as tv
from taskvec.cli import main
from taskvec.coefficients.presets import PRESETS

PAGE = (Path(__file__).parents[2] / "docs" / "coefficients.md").read_text(encoding="utf-8")


FEW_SHOT = (Path(__file__).parents[2] / "docs" / "few-shot.md").read_text(encoding="utf-8")


def shortened(text: str) -> str:
    return re.sub(r"(steps[= ])80", r"\g<1>1", text)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of two tasks, in the working directory."""
    monkeypatch.chdir(tmp_path)
    backbone = tv.load_backbone("builtin")
    for seed, name in enumerate(("gabor", "greek")):
        small = {key: 1e-3 * (seed + 1) * value for key, value in backbone.encoder_parameters().items()}
        detached = {key: value.detach() for key, value in small.items()}
        tv.TaskVector.from_tensors(detached, backbone.source).save(f"{name}.safetensors")


@pytest.mark.usefixtures("world")
def test_the_snippets_run() -> None:
    names: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(shortened(snippet), names)
    assert Path("learned.safetensors").exists()
    for line in re.findall(r"^    taskvec (learn .*)$", PAGE, re.MULTILINE):
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(shortened(line)), "-q"])
        assert ended.value.code == 0
    assert Path("merged.recipe.yaml").exists()


def test_every_setting_and_preset_is_there() -> None:
    named = set(re.findall(r"`([\w+-]+)`", PAGE))
    assert set(PRESETS) <= named
    assert set(tv.CoefficientSettings.model_fields) - {"ratio"} <= named


@pytest.mark.usefixtures("world")
def test_the_snippets_on_few_shots_run() -> None:
    names: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", FEW_SHOT, re.DOTALL):
        exec(snippet.replace("shots=4", "shots=1"), names)
    for line in re.findall(r"^    taskvec (adapt .*)$", FEW_SHOT, re.MULTILINE):
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(line), "-q", "--steps", "1", "--force"])
        assert ended.value.code == 0
