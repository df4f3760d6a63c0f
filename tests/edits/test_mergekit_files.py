"""Files for mergekit in every published form: they run, or are refused in a sentence."""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from edits.mergekit_files import BASE, FORMS, LORA, Form, State, save_family
from edits.mergekit_models import run
from taskvec.edits.opening import open_recipe
from taskvec.errors import InputError
from taskvec.vectors import TaskVector, apply
from taskvec.weights import open_weights

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # PEFT asks for it
RUNNING = [name for name, form in FORMS.items() if not form.refused]
PAGE = Path(__file__).parents[2] / "docs" / "mergekit.md"
MERGEKIT = os.environ.get("MERGEKIT")


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    save_family(folder)
    return folder


@pytest.fixture
def here(family: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(family)
    return family


@pytest.fixture(scope="session")
def states(family: Path) -> Mapping[str, State]:
    """The models in float64, and the base with its adapter."""
    held = {
        path.parent.name: {name: value.double() for name, value in load_file(path).items()}
        for path in family.glob("*/model.safetensors")
    }
    base = open_weights(family / BASE)
    adapted = apply(base, TaskVector.load(family / LORA).with_base(base))
    return {**held, LORA: {name: adapted[name].double() for name in adapted}}


def merged(form: Form, folder: Path) -> dict[str, Tensor]:
    (folder / "merge.yml").write_text(form.text)
    made = open_recipe(folder / "merge.yml")
    return {name: made.weights[name] for name in made.weights}


@pytest.mark.parametrize("name", RUNNING)
def test_a_published_form_runs(name: str, here: Path, states: Mapping[str, State], tmp_path: Path) -> None:
    form = FORMS[name]
    for tensor, value in merged(form, tmp_path).items():
        assert value.isfinite().all()
        if form.expected is not None:
            expected = form.expected(tensor, states[BASE], states)
            step = torch.finfo(value.dtype).eps
            torch.testing.assert_close(value.double(), expected, rtol=2 * step, atol=step, msg=tensor)


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.refused])
def test_what_does_not_run_is_refused_in_one_line(name: str, here: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        merged(FORMS[name], tmp_path)
    assert FORMS[name].refused in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "dare_ties",
        "an adapter alone",
        "a tower of two models",
        "all tokens",
        "a template by name",
        "three documents in a chain",
    ],
)
def test_the_command_writes_a_model_that_loads(name: str, here: Path, tmp_path: Path) -> None:
    (tmp_path / "merge.yml").write_text(FORMS[name].text)
    run("merge", tmp_path / "merge.yml", "-o", tmp_path / "out", "--quiet")
    loaded: Any = LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loaded[1].values())
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text())["model"]["vocab"]


def test_a_base_that_is_written_alone_is_said(here: Path, tmp_path: Path) -> None:
    (tmp_path / "merge.yml").write_text(FORMS["an adapter alone"].text)
    assert any("no model beside the base" in note for note in open_recipe(tmp_path / "merge.yml").notes)


def test_the_page_counts_the_forms() -> None:
    counted = re.search(r"(\d+) of (\d+) forms run", PAGE.read_text())
    assert counted is not None
    assert [int(number) for number in counted.groups()] == [len(RUNNING), len(FORMS)]
    compared = re.search(
        r"that run, (\d+) make what mergekit makes.*?; (\d+) draw", PAGE.read_text(), re.DOTALL
    )
    assert compared is not None
    exact = sum(FORMS[name].apart is not None for name in RUNNING)
    assert [int(number) for number in compared.groups()] == [exact, len(RUNNING) - exact]
    for name, form in FORMS.items():
        assert not form.refused or f"`{name}`" in PAGE.read_text()


# Compared with mergekit, where it is installed

_RUN_ALL = """
import pathlib, sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from mergekit.scripts.multimerge import load_config, make_tasks

folder = pathlib.Path(sys.argv[1])
options = MergeOptions(lora_merge_cache=str(folder / "merged"), quiet=True, write_model_card=False)

def execute(task):
    for inner in task.input_merges.values():
        execute(inner)
    task.execute()

for file in sorted(folder.glob("*.yml")):
    text, out = file.read_text(), str(file.with_suffix(""))
    contents = [content for content in yaml.safe_load_all(text) if content]
    try:
        if len(contents) == 1:
            run_merge(MergeConfiguration.model_validate(contents[0]), out, options)
        else:
            between = out + "-between"
            for task in make_tasks(*load_config(text, between), options, between, out, False):
                execute(task)
    except Exception as error:
        print(f"{file.name}: {error!r}")
"""
"""One process for all files, as importing mergekit takes longer than its merges."""


@pytest.fixture(scope="session")
def theirs(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mergekit makes of each form, in folders by number."""
    assert MERGEKIT is not None
    folder = tmp_path_factory.mktemp("theirs")
    for number, form in enumerate(FORMS.values()):
        (folder / f"{number}.yml").write_text(form.text)
    python = Path(MERGEKIT).with_name("python")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([python, "-c", _RUN_ALL, folder], cwd=family, env=environment, capture_output=True)
    assert ended.returncode == 0 and not ended.stdout, (ended.stdout, ended.stderr)
    return folder


@pytest.mark.skipif(MERGEKIT is None, reason="MERGEKIT does not name mergekit-yaml")
@pytest.mark.parametrize("name", RUNNING)
def test_mergekit_makes_the_same_model(
    name: str, here: Path, states: Mapping[str, State], theirs: Path, tmp_path: Path
) -> None:
    ours = merged(FORMS[name], tmp_path)
    files = (theirs / str(list(FORMS).index(name))).glob("*.safetensors")
    other = {tensor: value for file in files for tensor, value in load_file(file).items()}
    assert {tensor: (value.shape, value.dtype) for tensor, value in ours.items()} == {
        tensor: (value.shape, value.dtype) for tensor, value in other.items()
    }
    apart = FORMS[name].apart
    if apart is None:
        return
    far = sum((ours[tensor].double() - other[tensor].double()).square().sum().item() for tensor in ours)
    base = states[BASE]
    moved = sum(
        (other[tensor].double() - base[tensor]).square().sum().item()
        for tensor in other
        if tensor in base and base[tensor].shape == other[tensor].shape
    )
    assert far <= apart**2 * moved
