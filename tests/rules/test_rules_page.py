"""The page on rules says what every rule is and how it is called."""

import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from taskvec.rules import RULES
from taskvec.rules.rule import Law
from taskvec.vectors import TaskVector, combine
from taskvec.weights import Weights, open_weights

PAGE = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
SECTIONS = {
    match[1]: match[2]
    for match in re.finditer(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}


def vectors() -> dict[str, TaskVector]:
    base = {f"layers.{n}.weight": torch.ones(4, 3) for n in range(2)}
    generator = torch.Generator().manual_seed(0)
    return {
        label: TaskVector.between(
            base, {name: value + torch.randn(4, 3, generator=generator) for name, value in base.items()}
        )
        for label in "ab"
    }


def statistics() -> dict[str, Weights]:
    """Fisher information and Gram matrices of both vectors."""
    layers = [f"layers.{n}.weight" for n in range(2)]
    kinds = {"f": torch.rand(4, 3, generator=torch.Generator().manual_seed(1)), "g": torch.eye(3)}
    return {
        f"{kind}{label}": open_weights(dict.fromkeys(layers, (1 + place) * value))
        for kind, value in kinds.items()
        for place, label in enumerate("ab")
    }


@pytest.mark.parametrize("law", get_args(Law))
def test_the_page_says_which_rules_do_not_obey_a_law(law: Law) -> None:
    [exceptions] = re.findall(rf"^\|.*\(`{law}`\) \| (.*?)\|$", PAGE, re.MULTILINE)
    registered = {name for name in RULES if law in RULES[name].breaks}
    assert set(re.findall(r"`(\w+)`", exceptions)) == registered, f"docs/rules.md: exceptions of {law!r}"


def test_the_page_lists_the_usual_scales() -> None:
    rows = re.findall(r"^\| ([\d.]+) \| (.*?) \|$", PAGE, re.MULTILINE)
    listed = {name: float(value) for value, names in rows for name in re.findall(r"`([\w+]+)`", names)}
    for name in RULES:
        assert RULES[name].coefficient == listed.get(name, 1.0), name
    assert listed["dare+ties"] == RULES["dare+ties"].coefficient
    assert all(RULES[name].coefficient == value for name, value in listed.items())


def section_of(name: str) -> str:
    assert name in SECTIONS, (
        f"docs/rules.md has no section '## `{name}`': say there what the rule does, its equation (indented), "
        "its parameters (a list), the command and the call, and the source"
    )
    return SECTIONS[name]


def test_there_is_a_section_for_every_rule_in_their_order() -> None:
    for name in RULES:
        section_of(name)
    for name in SECTIONS:
        assert name in RULES, (
            f"docs/rules.md has a section on {name!r}, which rules/__init__.py does not list"
        )
    assert list(SECTIONS) == list(RULES), (
        "docs/rules.md: the sections are not in the order of rules/__init__.py"
    )


@pytest.mark.parametrize("name", RULES)
def test_a_section_has_an_equation_and_every_parameter_and_the_source(name: str) -> None:
    section, where = section_of(name), f"docs/rules.md, section `{name}`"
    assert re.search(r"^    \S.* = ", section, re.MULTILINE), f"{where}: no equation, indented by four spaces"
    listed = " ".join(re.findall(r"^- (.*?):", section, re.MULTILINE))
    wrong = set(re.findall(r"`(\w+)`", listed)) ^ set(RULES[name].parameters())
    assert not wrong, (
        f"{where}: {', '.join(sorted(wrong))} not both a parameter and in its list '- `name`: …'"
    )
    for paper in re.findall(r"arXiv:\d{4}\.\d{5}", RULES[name].description):
        assert paper in section, f"{where}: {paper} is missing, which the docstring names"


@pytest.mark.parametrize("name", RULES)
def test_the_command_and_the_call_of_a_section_are_the_same_and_work(name: str) -> None:
    examples = re.findall(r"^`(taskvec apply .*?)` · `(combine\(.*?\))`$", section_of(name), re.MULTILINE)
    assert len(examples) == 1, (
        f"docs/rules.md, section `{name}`: {len(examples)} lines '`taskvec apply …` · `combine(…)`', "
        "expected one"
    )
    [(command, call)] = examples
    words = shlex.split(command)
    rule = words[words.index("--rule") + 1]
    pairs = (words[place + 1].split("=", 1) for place, word in enumerate(words) if word == "-p")
    params: dict[str, Any] = {key: yaml.safe_load(value) for key, value in pairs}
    assert name in rule.split("+")
    known, stats = vectors(), statistics()
    given = [vector for label, vector in known.items() if f"{label}={label.upper()}" in words]
    used = [one for label, one in stats.items() if f"{label[1]}={label.upper()}" in words]
    assert words.count("--stats") == len(used)
    called = eval(call, {"combine": combine, **known, **stats})
    assert called == combine(rule, given, stats=used or None, **params)
    assert bool(called["layers.1.weight"].isfinite().all())
