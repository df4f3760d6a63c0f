"""What the page on Trainer shows works."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

import taskvec as tv
from language_models import save_language_model
from taskvec.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "trainer.md"


@pytest.mark.filterwarnings("ignore")  # of transformers, PEFT and trl, about each other
def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "1")  # no telemetry
    save_language_model(tmp_path / "base-model", "llama")
    tokenizer: Any = hf.AutoTokenizer.from_pretrained("base-model")
    tokenizer.pad_token = "<pad>"
    tokenizer.save_pretrained("base-model")
    page = PAGE.read_text()
    names: dict[str, Any] = {"print": lambda *values: None}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, names)
        if "animals.safetensors" in snippet and "tv" not in names:
            for words in re.findall(r"^    taskvec (.*)", page, re.MULTILINE):
                with pytest.raises(SystemExit) as ended:
                    main(shlex.split(words))
                assert ended.value.code == 0, words
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        f"{name}.safetensors" for name in ("animals", "animals-lora", "animals-tangent", "sft")
    }
    assert tv.TaskVector.load("animals-tangent.safetensors").info.space == "tangent"
    metrics = tv.TaskVector.load("animals-tangent.safetensors").info.metrics or {}
    assert {"eval_loss", "taskvec/norm", "eval_taskvec/0.8/loss"} <= set(metrics)


def test_every_argument_is_on_the_page() -> None:
    from inspect import signature

    from taskvec.integrations.transformers import TaskVectorCallback

    names = [name for name in signature(TaskVectorCallback).parameters if f"`{name}`" not in PAGE.read_text()]
    assert not [name for name in names if name != "force"]
