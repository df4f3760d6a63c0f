"""Spoiled inputs of every kind: refused in one line, or a right result, soon and in little memory.

Findings say how to see them again; ``attacks/cases.py`` does it.
"""

import pytest

from attacks.cases import Arena, recorded
from attacks.families import FAMILIES
from effort import EFFORT

CASES = 6
"""Cases of a family at one time, if its share is 1."""


@pytest.mark.parametrize("part", range(EFFORT))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_spoiled_input_is_refused_in_one_line_or_gives_a_right_result(
    family: str, part: int, arena: Arena
) -> None:
    count = round(CASES * FAMILIES[family].share)
    outcomes = [arena.tried(family, number) for number in range(part * count, (part + 1) * count)]
    recorded(outcomes)
    findings = [str(outcome) for outcome in outcomes if outcome.finding]
    assert not findings, "\n".join(findings)
