"""The page on rules says what every rule is and how it is called."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from taskvec.rules import RULES
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


def test_there_is_a_section_for_every_rule_in_their_order() -> None:
    assert list(SECTIONS) == list(RULES)


@pytest.mark.parametrize("name", RULES)
def test_a_section_has_an_equation_and_every_parameter_and_the_source(name: str) -> None:
    section = SECTIONS[name]
    assert re.search(r"^    \S.* = ", section, re.MULTILINE)
    listed = " ".join(re.findall(r"^- (.*?):", section, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", listed)) == set(RULES[name].parameters())
    source = re.findall(r"arXiv:\d{4}\.\d{5}", RULES[name].description)
    assert all(paper in section for paper in source)


@pytest.mark.parametrize("name", RULES)
def test_the_command_and_the_call_of_a_section_are_the_same_and_work(name: str) -> None:
    [(command, call)] = re.findall(
        r"^`(taskvec apply .*?)` · `(combine\(.*?\))`$", SECTIONS[name], re.MULTILINE
    )
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
