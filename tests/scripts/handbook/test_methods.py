"""Every method has a page with all its parts, and what the page shows runs."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import taskvec as tv
from handbook import methods
from handbook.options import allowed, bullets
from taskvec.cli import main
from taskvec.coefficients.presets import PRESETS
from taskvec.combiners import COMBINERS
from taskvec.merging import AFTER, METHODS, method_of
from taskvec.rules import RULES
from taskvec.training.penalties.settings import SETTINGS
from taskvec.training.settings import TrainSettings

PAGES = {method.name: method for method in methods.every_method()}
PARTS = ["Equation", "Use it", "Options", "What it needs, and what holds", "Measured", "Source"]


@pytest.fixture(scope="module")
def moved() -> dict[str, str]:
    return methods.moved()


def test_every_method_has_a_page_of_its_own() -> None:
    known = {*RULES, *COMBINERS, *SETTINGS, *PRESETS, *METHODS, *AFTER}
    assert PAGES.keys() == known
    assert len({method.place for method in PAGES.values()}) == len(known)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_all_parts(name: str, moved: dict[str, str]) -> None:
    method = PAGES[name]
    text = methods.page(method, moved)
    parts = dict(re.findall(r"^## ([^\n]*)\n\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert [part for part in parts if part != "What it does"] == PARTS
    assert all(said.strip() for said in parts.values()), name
    assert re.search(r"^    \S", parts["Equation"], re.MULTILINE), f"{name}: no equation, indented by four"
    assert "```python" in parts["Use it"] or "```sh" in parts["Use it"] or name in ("library", "tsv-compress")
    assert all(row.meaning or row.name == "`strength`" for row in method.options if method.family == "rules")


def test_drawings_are_of_the_rules_own_making(moved: dict[str, str]) -> None:
    drawn = {name for name, method in PAGES.items() if "<svg" in methods.page(method, moved)}
    assert drawn == {name for name in RULES if "inputs" not in RULES[name].consumes}


def test_figures_of_the_results_stand_on_the_pages(moved: dict[str, str]) -> None:
    pages = {name: methods.page(method, moved) for name, method in PAGES.items()}
    assert "| ties | 1 | 78.7 ± 0.6 / 86.0 ± 0.8 |" in pages["ties"]
    assert "| adamerging (60 steps) | – | 80.1 ± 2.2" in pages["adamerging"]
    assert "| tangent-tak | tak 100 |" in pages["tak"] and "| tangent | none |" in pages["tak"]
    assert "| pcgrad | 93.4 ± 0.3" in pages["pcgrad"]
    assert "| tsv+surgery | 1 |" in pages["surgery"]
    assert "| adamerging++" not in pages["adamerging"] and "adamerging-layer" not in pages["adamerging"]


def shown(method: methods.Method, language: str) -> Iterator[str]:
    for text in method.usage.values():
        yield from re.findall(rf"^```{language}\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", [name for name, each in PAGES.items() if each.family != "rules"])
def test_the_commands_run(
    name: str,
    vectors: dict[str, tv.TaskVector],
    tiny_model: Path,
    tiny_suite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for label, vector in vectors.items():
        vector.save(f"{label}.safetensors")
    here = {
        "-m minilm -s text8 -t sst2": f"-m {tiny_model} -s {tiny_suite} -t pets",
        "-m minilm -t sst2": f"-m {tiny_model} -s {tiny_suite} -t pets",
        "trec6 ag_news": "taste number",
        "learn builtin": f"learn {tiny_model}",
        "-s builtin8 -t gabor greek": f"-s {tiny_suite} -t pets taste",
        "gabor": "pets",
        "greek": "taste",
        "a=A -v b=B": "pets=pets.safetensors -v taste=taste.safetensors",
        "--steps 30": "--steps 1",
        "--steps 80": "--steps 1",
    }
    for command in shown(PAGES[name], "sh"):
        if command.startswith("taskvec apply"):
            continue  # tests/rules runs them: they stand in docs/rules.md
        for words, meant in here.items():
            command = command.replace(words, meant)
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(command)[1:], "--quiet"])
        assert ended.value.code == 0, command


@pytest.mark.parametrize("name", [*SETTINGS, *(name for name in PRESETS if "layer++" not in name)])
def test_the_calls_run(name: str, evaluator: tv.Evaluator, vectors: dict[str, tv.TaskVector]) -> None:
    [call] = shown(PAGES[name], "python")
    parts = {task: evaluator.part(task) for task in evaluator.tasks}
    names: dict[str, Any] = {"tv": tv, "evaluator": evaluator, "model": evaluator.backbone}
    names |= {"part": parts["pets"], "others": [parts["taste"]], "vectors": {}}
    names["vectors"] = {"gabor": vectors["pets"], "greek": vectors["taste"]}
    short = call.replace("steps=30", "steps=1").replace('["gabor", "greek"]', '["pets", "taste"]')
    exec(
        re.sub(r'"([\w+-]+)"\)$', rf'preset("{name}", {{"steps": 1}}))', short), {**names, "preset": _preset}
    )


def _preset(name: str, changes: dict[str, object]) -> tv.CoefficientSettings:
    from taskvec.coefficients.presets import preset

    return preset(name, changes)


@pytest.mark.parametrize("name", PAGES)
def test_an_experiment_takes_it(name: str) -> None:
    for text in shown(PAGES[name], "yaml"):
        said = yaml.safe_load(text)
        for entry in said.get("methods", {}).get("rules", []):
            assert method_of(entry).name
        for regime in said.get("regimes", {}).values():
            assert TrainSettings(penalty=regime["penalty"]).penalty


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "a number, above 0, up to 1"),
        ({"type": "integer", "minimum": 0}, "an integer, from 0"),
        ({"enum": ["mean", "sum"]}, "`mean`, `sum`"),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, "a number or `null`"),
        (
            {"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}}]},
            "a number or a list of such",
        ),
        ({"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}]}, "a number, a number"),
    ],
)
def test_what_an_option_may_be_is_said_in_words(shape: dict[str, Any], words: str) -> None:
    assert allowed(shape, {}) == words


def test_a_list_of_options_is_read() -> None:
    said = bullets("- `keep`: a share,\n  up to 1. Default 0.2.\n- `weights`, `weigh`: `before` or: after.\n")
    assert said == {
        "keep": "a share, up to 1.",
        "weights": "`before` or: after.",
        "weigh": "`before` or: after.",
    }
