"""Groups of processes: who is who, what they tell each other, and a group of one."""

from pathlib import Path

import pytest
import torch

from launching import launch
from taskvec.errors import InputError
from taskvec.group import ALONE, Group, current, joined, launched

TOLD = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "::1", "MASTER_PORT": "1"}

SCRIPT = r"""
import os
import torch
from launching import leave
from taskvec.errors import InputError
from taskvec.group import ALONE, current, joined

with joined() as group:
    assert current() is group and group.size == 2 and group.place == group.rank
    flat = torch.arange(4.0) + group.rank
    group.sum_(flat)
    assert flat.tolist() == [1, 3, 5, 7]
    for count in range(6):
        mine = [10 * item for item in group.deal(range(count))]
        assert group.collect(mine) == [10 * item for item in range(count)]
    assert group.gather(group.rank) == [0, 1]
    assert group.broadcast({"rank": group.rank}) == {"rank": 0}
    group.same("model", "one")
    try:
        group.same("model", f"digest {group.rank}")
    except InputError as error:
        os.write(1, f"{error}\n".encode())
assert current() is ALONE
leave()
"""


def test_torchrun_says_who_a_process_is() -> None:
    assert launched(TOLD) == Group(1, 4, 1)
    assert launched({name: value for name, value in TOLD.items() if name != "MASTER_ADDR"}) is ALONE


@pytest.mark.parametrize("changed", [{"RANK": "x"}, {"WORLD_SIZE": "-2"}, {"RANK": "4"}])
def test_an_environment_that_makes_no_sense_is_refused(changed: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"in the environment, expected"):
        launched({**TOLD, **changed})


def test_a_group_of_one_leaves_all_as_it_is() -> None:
    flat, items = torch.ones(3), [1, 2, 3]
    with joined(ALONE) as group:
        group.sum_(flat)
        group.same("model", "any")
        assert flat.tolist() == [1, 1, 1]
        assert group.deal(items) is items
        assert (group.collect(items), group.gather(1), group.broadcast(2)) == (items, [1], 2)
    assert current() is ALONE


def test_two_processes_sum_share_and_compare(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ended = launch([script], 2)
    assert ended.returncode == 0, ended.stderr
    said = (
        "model: process 1 of 2 has digest 1, expected digest 0 as process 0 has; give all processes the same"
    )
    assert ended.stdout.splitlines() == [said, said]
