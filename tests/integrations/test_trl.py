"""The trainers of trl take the same callback."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf

import taskvec as tv
from integrations.trainings import SETTINGS, assert_vector_is, copied, load
from language_models import TEXT
from taskvec.errors import InputError
from taskvec.integrations.transformers import TaskVectorCallback, TaskVectorMixin

datasets = pytest.importorskip("datasets")
trl: Any = pytest.importorskip("trl")

pytestmark = pytest.mark.filterwarnings("ignore")  # trl uses names that transformers is about to drop

STEPS = {**SETTINGS, "max_steps": 2, "per_device_train_batch_size": 2, "bf16": False}


class MixedTrainer(TaskVectorMixin, trl.SFTTrainer):  # type: ignore[misc]
    """As users write it."""


@pytest.fixture
def told(llama: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What all of them are given."""
    monkeypatch.setenv("CI", "1")  # no telemetry
    tokenizer: Any = hf.AutoTokenizer.from_pretrained(llama)
    tokenizer.pad_token = "<pad>"
    return {"processing_class": tokenizer}


def texts() -> Any:
    return datasets.Dataset.from_list([{"text": TEXT[start : start + 40]} for start in range(8)])


def pairs() -> Any:
    rows = [
        {"chosen": TEXT[start : start + 20], "rejected": TEXT[start + 20 : start + 40]} for start in range(8)
    ]
    return datasets.Dataset.from_list([{"prompt": "the cat", **row} for row in rows])


def sft(place: Path, **more: Any) -> Any:
    return trl.SFTConfig(output_dir=str(place / "run"), max_length=16, **{**STEPS, **more})


@pytest.mark.parametrize("regime", [None, "attention"])
def test_supervised_fine_tuning(llama: Path, tmp_path: Path, told: Any, regime: str | None) -> None:
    model = load(llama)
    before = copied(model)
    made = TaskVectorCallback(tmp_path / "sft.safetensors", regime=regime)
    trl.SFTTrainer(model, sft(tmp_path), train_dataset=texts(), callbacks=[made], **told).train()
    vector = tv.TaskVector.load(tmp_path / "sft.safetensors")
    assert_vector_is(vector, model.state_dict(), before)
    assert (vector.info.training or {})["loss_type"] == "nll"
    assert sum(bool(vector[name].any()) for name in vector) == (len(before) if regime is None else 8)


def test_an_adapter_that_trl_adds(llama: Path, tmp_path: Path, told: Any) -> None:
    made = TaskVectorCallback(tmp_path / "sft.safetensors")
    adapter = peft.LoraConfig(r=2, target_modules=["q_proj"])
    trainer = trl.SFTTrainer(
        str(llama), sft(tmp_path), train_dataset=texts(), peft_config=adapter, callbacks=[made], **told
    )
    trainer.train()
    vector, merged = (
        tv.TaskVector.load(tmp_path / "sft.safetensors"),
        trainer.model.merge_and_unload().state_dict(),
    )
    for name in vector:
        step = merged[name] - load(llama).state_dict()[name]
        torch.testing.assert_close(vector[name], step, rtol=1e-3, atol=1e-6)
    assert vector.norm() > 0 and vector.info.regime == "lora"


def test_the_mixin_before_a_trainer_of_trl(llama: Path, tmp_path: Path, told: Any) -> None:
    norms = {}
    for strength in (0.0, 100.0):
        made = TaskVectorCallback(
            tmp_path / f"{strength}.safetensors",
            penalty={"kind": "decay", "strength": strength},
            coefficients=(0.5,),
        )
        args = sft(tmp_path, max_steps=6, lr_scheduler_type="constant")
        data = {"train_dataset": texts(), "eval_dataset": texts()}
        trainer = MixedTrainer(load(llama), args, callbacks=[made], **data, **told)
        trainer.train()
        norms[strength] = tv.TaskVector.load(made.path or "").norm()
        assert "eval_taskvec/0.5/loss" in trainer.evaluate()
    assert norms[100.0] < 0.9 * norms[0.0]
    tangent = TaskVectorCallback(tmp_path / "tangent.safetensors", regime="tangent")
    with pytest.raises(InputError, match="MixedTrainer makes the loss inside of the network"):
        MixedTrainer(load(llama), sft(tmp_path), train_dataset=texts(), callbacks=[tangent], **told)


def test_preferences(llama: Path, tmp_path: Path, told: Any) -> None:
    model = load(llama)
    before = copied(model)
    made = TaskVectorCallback(tmp_path / "dpo.safetensors", regime="mlp")
    args = trl.DPOConfig(output_dir=str(tmp_path / "run"), max_length=24, **STEPS)
    trl.DPOTrainer(model, args=args, train_dataset=pairs(), callbacks=[made], **told).train()
    vector = tv.TaskVector.load(tmp_path / "dpo.safetensors")
    assert_vector_is(vector, model.state_dict(), before)
    assert (vector.info.training or {})["beta"] == 0.1


def test_rewards(llama: Path, tmp_path: Path, told: Any) -> None:
    model: Any = hf.AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1)
    model.config.pad_token_id = 0
    before = copied(model)
    made = TaskVectorCallback(tmp_path / "reward.safetensors")
    args = trl.RewardConfig(output_dir=str(tmp_path / "run"), max_length=24, **STEPS)
    data = pairs().remove_columns("prompt")
    trl.RewardTrainer(model, args=args, train_dataset=data, callbacks=[made], **told).train()
    vector = tv.TaskVector.load(tmp_path / "reward.safetensors")
    assert_vector_is({name: vector[name] for name in vector if name in before}, model.state_dict(), before)
