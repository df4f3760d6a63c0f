"""Trainings of a model in shards: the vector is that of one process, and none holds the model whole."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sharded_trainings
import taskvec as tv
from checkpoints import save_bert
from image_families import save
from language_models import save_language_model
from launching import launch
from sharded_trainings import KINDS, recipe, save_large, task_in, train
from taskvec.errors import InputError
from taskvec.training.regimes import regime_called
from taskvec.training.sharded import check_shardable

SCRIPT = sharded_trainings.__file__


def far(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """How far two vectors are from each other, as a share of one."""
    assert found.keys() == set(expected)
    a, b = (torch.cat([of[key].flatten() for key in expected]).double() for of in (found, expected))
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fsdp")
    for kind in {kind for kind, _, _ in KINDS.values()} - {"large"}:
        save_language_model(place / kind, kind)
    save_large(place / "large")
    save("vit", place / "vit")
    save("convnext", place / "convnext")
    save_bert(place / "bert")
    for rank in range(3):
        (place / str(rank)).mkdir()
    return place


def test_shards_learn_what_a_whole_model_learns(folder: Path) -> None:
    ended = launch([SCRIPT, "all", folder], 2)
    assert ended.returncode == 0, ended.stderr
    for name, (kind, regime, changes) in KINDS.items():
        backbone = tv.load_backbone(folder / kind, outputs="tokens")
        evaluator = tv.Evaluator(backbone, [task_in(folder)])
        alone = train(backbone, evaluator.tasks["cats"], regime, recipe(**changes))
        found = torch.load(folder / f"{name}.pt")
        if kind == "large":  # where steps are so small that the weights' own rounding is more of them
            assert max(float((found[key] - alone[key]).abs().max()) for key in alone) < 1e-6
        else:
            assert far(found, alone) < 2e-6, name
        told = json.loads((folder / f"{name}.json").read_text())
        points = evaluator.points({"v": alone})
        expected = [evaluator.values(points.at({"v": c}), ["cats"], "test")["cats"] for c in (0.0, 1.0)]
        assert told["figures"] == pytest.approx(expected, rel=1e-5), name
        whole = sum(value.numel() for value in backbone.network.parameters())
        assert sum(told["held"]) == whole and max(told["held"]) < 0.52 * whole


def test_a_training_goes_on_after_all_processes_were_killed(folder: Path, tmp_path: Path) -> None:
    def run(to: str, processes: int, place: Path, stop: int = 0) -> int:
        arguments = [SCRIPT, "resumed", place, folder / "llama", tmp_path / to, stop]
        return launch(arguments, processes).returncode

    straight, killed, other = (tmp_path / name for name in ("straight", "killed", "other"))
    for rank in range(2):
        (straight / str(rank)).mkdir(parents=True)
        (killed / str(rank)).mkdir(parents=True)
    assert run("straight.pt", 2, straight) == 0
    assert run("never.pt", 2, killed, stop=3) != 0
    assert [kept.name for kept in (killed / ".v.training.shards").glob("step-*")] == ["step-0000000003"]
    shutil.copytree(killed, other)
    (other / "2").mkdir()
    assert run("again.pt", 2, killed) == run("other.pt", 3, other) == 0
    one, same, near = (torch.load(tmp_path / f"{name}.pt") for name in ("straight", "again", "other"))
    assert all(torch.equal(same[name], one[name]) for name in one)
    assert far(near, one) < 2e-6
    assert not list(tmp_path.rglob("*.shards")) and not list(tmp_path.rglob("*.deltas.safetensors"))


def test_one_process_alone_is_told_to_bring_others(folder: Path) -> None:
    with pytest.raises(InputError, match=r"fsdp: there is one process.*torchrun --nproc-per-node N"):
        tv.load_backbone(folder / "llama", outputs="tokens", fsdp="float32")


@pytest.mark.parametrize(
    ("regime", "changes", "more", "said"),
    [
        ("tangent", {}, {}, "regime 'tangent': not with fsdp: FSDP2 has no derivatives"),
        ("tangent-lora", {}, {}, "regime 'tangent-lora': not with fsdp"),
        ("lora", {}, {}, "regime 'lora': not with fsdp"),
        ("gated", {}, {}, "regime 'gated': not with fsdp"),
        ("full", {"penalty": [{"kind": "decay", "strength": 0.1}]}, {}, "penalty: not with fsdp"),
        ("full", {"lr": "auto"}, {}, "lr: auto: not with fsdp"),
        ("full", {"precision": "fp16"}, {}, "precision: fp16: not with fsdp; take bf16"),
        ("full", {}, {"combiner": True}, "combiner: not with fsdp"),
        ("full", {}, {"mask": True}, "mask: not with fsdp"),
    ],
)
def test_what_is_not_known_to_be_right_is_refused(
    regime: str, changes: dict[str, Any], more: dict[str, bool], said: str
) -> None:
    settings = tv.TrainSettings.model_validate(changes)
    with pytest.raises(InputError, match=rf"{re.escape(said)}.*leave out --fsdp"):
        check_shardable(regime_called(regime), settings, **more)
