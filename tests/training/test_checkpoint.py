"""The state of a training on disk: taken as it was written, or not at all."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from effort import EFFORT
from taskvec.errors import InputError
from taskvec.training.checkpoint import Checkpoint


def state_at(path: Path, kind: str = "adamw") -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    """A checkpoint of a small training after one step."""
    leaves = {name: torch.ones(3, 2, requires_grad=True) for name in ("a", "b")}
    values = list(leaves.values())
    optimizer = torch.optim.SGD(values, lr=0.1) if kind == "sgd" else torch.optim.AdamW(values, lr=0.1)
    torch.autograd.backward((leaves["a"] ** 2).sum())
    optimizer.step()
    found = Checkpoint(path, leaves, optimizer, "signature")
    found.every = 0.0
    return found, leaves


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_state_comes_back_as_it_was(kind: str, tmp_path: Path) -> None:
    state, leaves = state_at(tmp_path / "t.pt", kind)
    with torch.no_grad():
        leaves["b"].fill_(7)
    state.save_if_due(5)
    again, fresh = state_at(tmp_path / "t.pt", kind)
    assert again.restore() == 5
    assert all(torch.equal(fresh[name], leaves[name]) for name in leaves)


def inner(state: dict[str, Any], *path: Any) -> dict[Any, Any]:
    for step in path:
        state = state[step]
    return state


CHANGES: list[Callable[[dict[str, Any]], object]] = [
    lambda s: s.clear(),
    lambda s: s.pop("leaves"),
    lambda s: s.pop("step"),
    lambda s: s.update(step="5"),
    lambda s: s.update(step=-1),
    lambda s: s.update(step=2**70),
    lambda s: s.update(step=True),
    lambda s: s.update(leaves=[1]),
    lambda s: s.update(leaves=torch.ones(3, 2)),
    lambda s: s.update(optimizer=torch.ones(3, 2)),
    lambda s: s["leaves"].pop("b"),
    lambda s: s["leaves"].update(b=torch.ones(())),
    lambda s: s["leaves"].update(b=torch.ones(1).expand(10**12)),
    lambda s: s["leaves"].update(b=torch.ones(3, 2, dtype=torch.complex64).conj()),
    lambda s: s["leaves"].update(b=torch.ones(3, 2).to_sparse()),
    lambda s: s["leaves"].update(b=torch.ones(3, 2, dtype=torch.int32)),
    lambda s: s["leaves"].update(b="text"),
    lambda s: s.update(optimizer=None),
    lambda s: s["optimizer"].pop("state"),
    lambda s: s["optimizer"].update(state=torch.ones(3, 2)),
    lambda s: s["optimizer"]["state"].update({0: torch.ones(3, 2)}),
    lambda s: s["optimizer"]["state"].update({7: inner(s, "optimizer", "state", 0)}),
    lambda s: inner(s, "optimizer", "state", 0).pop("exp_avg"),
    lambda s: inner(s, "optimizer", "state", 0).update(exp_avg=torch.ones(9)),
    lambda s: inner(s, "optimizer", "state", 0).update(step=torch.ones(3, 2)),
    lambda s: inner(s, "optimizer", "state", 0).update(exp_avg_sq=3),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_of_another_shape_is_damaged(change: Callable[[Any], object], tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    state_at(path)[0].save_if_due(5)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(InputError, match=r"t\.pt: damaged training checkpoint .*; remove it to start anew"):
        state_at(path)[0].restore()


def test_damaged_states_are_taken_whole_or_refused(tmp_path: Path) -> None:
    path, draw = tmp_path / "t.pt", Random(0)
    state_at(path)[0].save_if_due(5)
    sound = path.read_bytes()
    for _ in range(100 * EFFORT):
        content = bytearray(sound)
        at = draw.randrange(len(content))
        content[at : at + draw.choice([1, 4, 50])] = draw.randbytes(draw.choice([0, 1, 4, 50]))
        path.write_bytes(content)
        try:
            assert state_at(path)[0].restore() >= 0
        except InputError as error:
            assert "damaged training checkpoint" in str(error) or "of another training" in str(error)


def test_settings_of_the_optimizer_are_never_those_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    state_at(path)[0].save_if_due(5)
    content = torch.load(path, weights_only=True)
    content["optimizer"]["param_groups"][0]["lr"] = "fast"
    torch.save(content, path)
    state = state_at(path)[0]
    assert state.restore() == 5 and state._optimizer.param_groups[0]["lr"] == 0.1


def test_a_state_is_no_pipe_and_is_not_written_through_a_link(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.pt")
    with pytest.raises(InputError, match="is a pipe, expected a file"):
        state_at(tmp_path / "t.pt")[0].restore()
    (tmp_path / "thesis").write_text("years of work")
    (tmp_path / ".u.pt.partial").symlink_to("thesis")
    state_at(tmp_path / "u.pt")[0].save_if_due(1)
    assert (tmp_path / "thesis").read_text() == "years of work"
    assert state_at(tmp_path / "u.pt")[0].restore() == 1
