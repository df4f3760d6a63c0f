"""The vector of a training by transformers' Trainer is what the training changed."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf

import taskvec as tv
from integrations.trainings import assert_vector_is, copied, load, make_trainer, texts
from language_models import build, save_language_model
from taskvec.errors import BaseMismatch, InputError, OutputExists, TaskvecError, TrainingDiverged
from taskvec.integrations.transformers import TaskVectorCallback, TaskVectorMixin

pytestmark = [  # of transformers, about names that PEFT and its own arguments go by
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]


def callback(place: Path, **options: Any) -> TaskVectorCallback:
    return TaskVectorCallback(place / "vector.safetensors", **options)


def trained_vector(model: Any, place: Path, options: Any = None, **settings: Any) -> tv.TaskVector:
    make_trainer(model, place, [callback(place, **(options or {}))], **settings).train()
    return tv.TaskVector.load(place / "vector.safetensors")


@pytest.mark.parametrize("regime", [None, "full", "attention", "mlp", "embeddings", r"re:.*\.0\..*norm.*"])
def test_the_vector_is_the_difference_in_what_the_regime_trains(
    llama: Path, tmp_path: Path, regime: str | None
) -> None:
    model = load(llama)
    before = copied(model)
    vector = trained_vector(model, tmp_path, {"regime": regime, "task": "plays"})
    assert_vector_is(vector, model.state_dict(), before)
    chosen = tv.Regime(regime or "full").selection
    allowed = set(before) if chosen == "full" else set(tv.select(tv.load_backbone(str(llama)), chosen))
    assert {name for name in vector if vector[name].any()} == allowed
    assert all(value.requires_grad for value in model.parameters())
    assert (vector.info.task, vector.info.regime) == ("plays", regime or "full")
    edited = tv.apply(llama, vector)
    for name in edited:
        torch.testing.assert_close(edited[name], model.state_dict()[name], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["tied", "gpt2", "t5"])
def test_other_networks(kind: str, tmp_path: Path) -> None:
    folder = save_language_model(tmp_path / kind, kind)
    model: Any = hf.AutoModelForSeq2SeqLM if kind == "t5" else hf.AutoModelForCausalLM
    model = model.from_pretrained(folder)
    before = copied(model)
    assert_vector_is(trained_vector(model, tmp_path), model.state_dict(), before)


def test_what_the_user_froze_stays_frozen(llama: Path, tmp_path: Path) -> None:
    model = load(llama)
    model.model.embed_tokens.weight.requires_grad_(False)
    vector = trained_vector(model, tmp_path)
    assert not vector["model.embed_tokens.weight"].any() and vector["lm_head.weight"].any()
    assert not model.model.embed_tokens.weight.requires_grad
    assert vector.info.regime is None


def test_settings_figures_and_versions_are_told_and_no_secret_is(llama: Path, tmp_path: Path) -> None:
    settings: Any = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "hub_token": "hf_secret",
        "run_name": "secret-run",
    }
    vector = trained_vector(
        load(llama), tmp_path, weight_decay=0.1, gradient_accumulation_steps=2, **settings
    )
    told = vector.info.training or {}
    assert (told["lr"], told["weight_decay"], told["steps"], told["accumulation"]) == (1e-2, 0.1, 4, 2)
    assert told["versions"]["transformers"] == hf.__version__
    assert vector.info.metrics is not None and vector.info.metrics["eval_loss"] > 0
    assert vector.info.base.fingerprint == tv.open_weights(llama).fingerprint()
    assert "secret" not in vector.info.model_dump_json() and str(tmp_path) not in json.dumps(told)


@pytest.mark.parametrize("half", [{"bf16": True}, {"gradient_checkpointing": True}])
def test_settings_that_change_how_it_is_computed(llama: Path, tmp_path: Path, half: Any) -> None:
    model = load(llama)
    before = copied(model)
    assert_vector_is(trained_vector(model, tmp_path, **half), model.state_dict(), before)


def test_weights_in_bfloat16(llama: Path, tmp_path: Path) -> None:
    model = load(llama, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    model = load(tmp_path / "half")
    assert model.dtype == torch.bfloat16
    before = copied(model)
    vector = trained_vector(model, tmp_path)
    assert_vector_is(vector, model.state_dict(), before)
    edited = tv.apply(tmp_path / "half", vector)
    assert all(torch.equal(edited[name], model.state_dict()[name]) for name in edited)


def test_the_best_checkpoint_is_what_the_vector_leads_to(llama: Path, tmp_path: Path) -> None:
    model = load(llama)
    before = copied(model)
    each = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    vector = trained_vector(model, tmp_path, **each, **best)  # the higher loss: that of the earlier step
    first = load(tmp_path / "run" / "checkpoint-2").state_dict()
    assert_vector_is(vector, first, before)
    assert vector.info.metrics is not None and vector.info.metrics["step"] == 2


@pytest.mark.parametrize("more", [{}, {"save_only_model": True}])
def test_a_resumed_training_starts_where_it_began(llama: Path, tmp_path: Path, more: Any) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trained_vector(load(llama), tmp_path, **saving, **more)
    model = load(llama)
    again = make_trainer(model, tmp_path, [callback(tmp_path, force=True)], **saving, **more)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    vector = tv.TaskVector.load(tmp_path / "vector.safetensors")
    assert_vector_is(vector, model.state_dict(), load(llama).state_dict())
    if not more:
        assert all(torch.equal(vector[name], whole[name]) for name in whole)


def test_going_on_from_a_checkpoint_of_other_weights_is_refused(llama: Path, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    trained_vector(load(llama), tmp_path, **saving)
    model = load(tmp_path / "run" / "checkpoint-2")
    again = make_trainer(model, tmp_path, [callback(tmp_path, force=True)], **saving)
    with pytest.raises(InputError, match="resume_from_checkpoint: that training started from weights of"):
        again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    right = make_trainer(model, tmp_path, [callback(tmp_path, force=True, base=llama)], **saving)
    right.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    vector = tv.TaskVector.load(tmp_path / "vector.safetensors")
    assert_vector_is(vector, model.state_dict(), load(llama).state_dict())


def test_a_model_without_a_reference_starts_from_what_it_is(tmp_path: Path) -> None:
    model = build("llama")
    before = copied(model)
    vector = trained_vector(model, tmp_path, {"regime": "attention"})
    assert_vector_is(vector, model.state_dict(), before)
    assert vector.info.base.fingerprint == tv.open_weights(before).fingerprint()


def test_a_model_that_is_not_its_reference_is_refused(llama: Path, tmp_path: Path) -> None:
    model = load(llama)
    with torch.no_grad():
        model.lm_head.weight[0] += 1
    with pytest.raises(InputError, match=r"differs from .* in 'lm_head.weight', expected the same weights"):
        make_trainer(model, tmp_path, [callback(tmp_path)])
    before = copied(model)
    assert_vector_is(trained_vector(model, tmp_path, {"base": model}), model.state_dict(), before)


def test_resized_embeddings(llama: Path, tmp_path: Path) -> None:
    model = load(llama)
    model.resize_token_embeddings(290, mean_resizing=False)
    with pytest.raises(InputError, match=r"'lm_head.weight' has shape .*; name the weights .* base=model"):
        make_trainer(model, tmp_path, [callback(tmp_path)])
    before = copied(model)
    assert_vector_is(trained_vector(model, tmp_path, {"base": model}), model.state_dict(), before)


def test_a_new_head_is_no_part_of_the_vector(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = hf.AutoModelForSequenceClassification.from_pretrained(llama, num_labels=3)
    before = copied(model)
    rows = [{"input_ids": row["input_ids"], "labels": n % 3} for n, row in enumerate(texts())]
    trainer = make_trainer(model, tmp_path, [callback(tmp_path)])
    trainer.train_dataset = rows
    trainer.train()
    assert "no part of the vector, as the base lacks it: 'score.weight'" in caplog.text
    vector = tv.TaskVector.load(tmp_path / "vector.safetensors")
    assert "score.weight" not in vector and not vector["lm_head.weight"].any()
    assert_vector_is({n: vector[n] for n in vector if n in before}, model.state_dict(), before)


def small(kind: str, place: Path) -> Any:
    """A network of another kind that was loaded with a new head, and rows to train it on."""
    generator = torch.Generator().manual_seed(0)
    images = [
        {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": n % 2} for n in range(16)
    ]
    sizes: Any = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    if kind == "resnet":
        shape: Any = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
        hf.ResNetForImageClassification(hf.ResNetConfig(**shape)).save_pretrained(place)
        return hf.AutoModelForImageClassification.from_pretrained(place), images
    if kind == "vit":
        hf.ViTModel(hf.ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(place)
        return hf.AutoModelForImageClassification.from_pretrained(place), images
    hf.BertModel(hf.BertConfig(**sizes, vocab_size=280)).save_pretrained(place)
    rows = [{"input_ids": row["input_ids"], "labels": n % 2} for n, row in enumerate(texts())]
    return hf.AutoModelForSequenceClassification.from_pretrained(place), rows


@pytest.mark.parametrize("kind", ["resnet", "vit", "bert"])
def test_encoders_and_running_statistics(kind: str, tmp_path: Path) -> None:
    model, rows = small(kind, tmp_path / kind)
    trainer = make_trainer(model, tmp_path, [callback(tmp_path)])
    trainer.train_dataset = rows
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    vector = tv.TaskVector.load(tmp_path / "vector.safetensors")
    saved = tv.TaskVector.between(
        tmp_path / kind, tmp_path / "saved", on_extra="drop", on_missing="zero"
    )  # under the names that files have
    assert set(vector) == set(saved) and vector.norm() > 0
    for name in saved:
        torch.testing.assert_close(vector[name], saved[name], rtol=0, atol=0)


class Own(torch.nn.Module):
    """A network of one's own, that takes its labels with it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.outer(torch.tanh(self.inner(x)))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("regime", [None, "re:outer.*", "tangent"])
def test_a_network_of_ones_own(tmp_path: Path, regime: str | None) -> None:
    class MixedTrainer(TaskVectorMixin, hf.Trainer):
        """As users write it."""

    model = Own()
    before = copied(model)
    trainer = make_trainer(model, tmp_path, [callback(tmp_path, regime=regime)], MixedTrainer)
    trainer.train_dataset = [{"x": torch.randn(4), "labels": n % 2} for n in range(16)]
    trainer.train()
    assert_vector_is(tv.TaskVector.load(tmp_path / "vector.safetensors"), model.state_dict(), before)


def test_a_model_of_the_hub_is_remembered_with_its_commit(tmp_path: Path) -> None:
    commit = "a" * 40
    cached = tmp_path / "hub" / "models--org--tiny"
    save_language_model(cached / "snapshots" / commit, "llama")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    code = (
        "import sys; from pathlib import Path; from integrations.trainings import load, make_trainer\n"
        "from taskvec.integrations.transformers import TaskVectorCallback\n"
        "place = Path(sys.argv[1]); made = TaskVectorCallback(place / 'vector.safetensors')\n"
        "make_trainer(load('org/tiny'), place, [made]).train()\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(tv.__file__).parents[1])])
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=env, check=True, timeout=200)
    assert tv.TaskVector.load(tmp_path / "vector.safetensors").info.base.ref == f"org/tiny@{commit}"


def test_model_init_is_followed(llama: Path, tmp_path: Path) -> None:
    args = make_trainer(load(llama), tmp_path, []).args
    made: list[Any] = []

    def init() -> Any:
        made.append(load(llama))
        return made[-1]

    hf.Trainer(
        model_init=init,
        args=args,
        train_dataset=texts(),
        callbacks=[callback(tmp_path, regime="attention")],
    ).train()
    vector = tv.TaskVector.load(tmp_path / "vector.safetensors")
    assert len(made) == 2 and {name for name in vector if vector[name].any()} <= {
        name for name in vector if "self_attn" in name
    }
    assert_vector_is(vector, made[-1].state_dict(), load(llama).state_dict())


# Adapters


def with_adapter(llama: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], **options)
    return peft.get_peft_model(load(llama), config)


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"use_rslora": True}]
)
def test_the_vector_of_an_adapter(llama: Path, tmp_path: Path, options: Any) -> None:
    model = with_adapter(llama, **options)
    vector = trained_vector(model, tmp_path)
    merged = model.merge_and_unload().state_dict()
    before = load(llama).state_dict()
    for name in vector:
        torch.testing.assert_close(vector[name], merged[name] - before[name], rtol=1e-4, atol=1e-6)
    assert vector.info.regime == "lora" and vector.info.base.fingerprint
    assert (vector.info.compact is not None) == (set(options) <= {"use_rslora"})  # held as factors


@pytest.mark.parametrize("resized", [False, True])
def test_an_adapter_of_a_model_without_a_reference(llama: Path, tmp_path: Path, resized: bool) -> None:
    network = load(llama) if resized else build("llama")
    if resized:
        network.resize_token_embeddings(290, mean_resizing=False)
    before = copied(network)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(network, config)
    vector = trained_vector(model, tmp_path, {"base": model} if resized else {})
    merged = model.merge_and_unload().state_dict()
    for name in vector:
        torch.testing.assert_close(vector[name], merged[name] - before[name], rtol=1e-4, atol=1e-6)
    assert vector["lm_head.weight"].any() and set(vector) == set(before)
    assert vector.info.base.fingerprint == tv.open_weights(before).fingerprint()


def test_an_adapter_that_is_no_direction_is_refused_at_once(llama: Path, tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = peft.get_peft_model(load(llama), config)
    with pytest.raises(InputError, match="PROMPT_TUNING"):
        make_trainer(model, tmp_path, [callback(tmp_path)])


# Figures on the way


def test_norm_and_cosines_are_logged(llama: Path, tmp_path: Path) -> None:
    other = trained_vector(load(llama), tmp_path, {"regime": "attention"})
    made = TaskVectorCallback(tmp_path / "b.safetensors", vectors={"first": other}, validate_every=2)
    trainer = make_trainer(load(llama), tmp_path, [made])
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "taskvec/norm" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]
    vector = tv.TaskVector.load(tmp_path / "b.safetensors")
    assert logged[-1]["taskvec/norm"] == pytest.approx(vector.norm())
    assert logged[-1]["taskvec/cosine/first"] == pytest.approx(vector.cosine(other))


def test_files_and_adapters_are_compared_with(llama: Path, tmp_path: Path) -> None:
    adapted = with_adapter(llama)
    adapted.save_pretrained(tmp_path / "adapter")  # the product of its factors is zero yet
    trained_vector(load(llama), tmp_path)
    others: dict[str, tv.TaskVector | str | Path] = {
        "file": tmp_path / "vector.safetensors",
        "adapter": str(tmp_path / "adapter"),
    }
    made = TaskVectorCallback(tmp_path / "b.safetensors", vectors=others, validate_every=4)
    trainer = make_trainer(load(llama), tmp_path, [made])
    trainer.train()
    [logged] = [entry for entry in trainer.state.log_history if "taskvec/norm" in entry]
    assert logged["taskvec/cosine/file"] == pytest.approx(1) and "taskvec/cosine/adapter" not in logged


def test_evaluations_have_them(llama: Path, tmp_path: Path) -> None:
    trainer = make_trainer(load(llama), tmp_path, [callback(tmp_path)])
    trainer.train()
    assert trainer.evaluate()["taskvec/norm"] == pytest.approx(
        tv.TaskVector.load(tmp_path / "vector.safetensors").norm()
    )


def test_vectors_of_another_base_are_refused_at_once(llama: Path, tmp_path: Path) -> None:
    foreign = trained_vector(build("llama"), tmp_path)
    made = TaskVectorCallback(tmp_path / "b.safetensors", vectors={"foreign": foreign})
    with pytest.raises(BaseMismatch, match="vectors: 'foreign' is of base LlamaForCausalLM"):
        make_trainer(load(llama), tmp_path, [made])


# What is refused, and what goes wrong


@pytest.mark.parametrize(
    ("regime", "said"),
    [
        ("lora", r"regime: 'lora' is of space lora, .* peft.get_peft_model"),
        ("gated", r"regime: 'gated' is of space gated, .* use taskvec.finetune"),
        ("atention", r"no regime called 'atention'; did you mean 'attention'"),
        ("re:(", r"regime 're:\('"),
    ],
)
def test_regimes_that_cannot_be_had(tmp_path: Path, regime: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        callback(tmp_path, regime=regime)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"validate_every": -1}, "validate_every: -1, expected a number of steps"),
        ({"coefficients": (float("nan"),)}, "coefficients: nan, expected finite numbers"),
        ({"penalty": "orthorex"}, "no penalty called 'orthorex'; did you mean 'orthoreg'"),
        ({"task": 3}, "task is 3, expected str"),
    ],
)
def test_arguments_that_cannot_be(tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        callback(tmp_path, **options)


def test_two_callbacks_of_a_trainer_are_refused(llama: Path, tmp_path: Path) -> None:
    callbacks = [TaskVectorCallback(tmp_path / name, regime=name) for name in ("mlp", "attention")]
    with pytest.raises(InputError, match="the trainer has another, expected one"):
        make_trainer(load(llama), tmp_path, callbacks)
    for callback in callbacks:
        assert make_trainer(load(llama), tmp_path, [callback])


def test_what_is_wrong_is_said_when_the_trainer_is_made(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="LlamaForCausalLM: selection 're:nothing' leaves nothing to train"):
        make_trainer(load(llama), tmp_path, [callback(tmp_path, regime="re:nothing")])
    with pytest.raises(InputError, match=r"regime: 'mlp' given, but PeftModel.* leave it out"):
        make_trainer(with_adapter(llama), tmp_path, [callback(tmp_path, regime="mlp")])
    frozen = load(llama).requires_grad_(False)
    with pytest.raises(InputError, match="no parameter has requires_grad"):
        make_trainer(frozen, tmp_path, [callback(tmp_path)])
    with pytest.raises(InputError, match="expected a tenth or more"):
        make_trainer(load(llama), tmp_path, [callback(tmp_path, base={"w": torch.ones(2)})])


def test_transformers_is_asked_for(tmp_path: Path) -> None:
    code = "import sys; sys.modules['transformers'] = None; import taskvec.integrations.transformers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert "transformers is not installed; pip install 'taskvec[trainer]'" in done.stderr


def test_outputs_that_cannot_be_written(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file is a file, expected a folder to write into"):
        TaskVectorCallback(tmp_path / "file" / "a.safetensors")
    with pytest.raises(InputError, match=r"ends in .bin"):
        TaskVectorCallback(tmp_path / "a.bin")
    trained_vector(load(llama), tmp_path)
    with pytest.raises(OutputExists, match="force=True"):
        callback(tmp_path)


def test_a_vector_that_cannot_be_written_is_rescued(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "there").mkdir()
    models = [load(llama), load(llama)]
    made = [callback(tmp_path / "there") for _ in models]
    trainers = [make_trainer(model, tmp_path, [each]) for model, each in zip(models, made, strict=True)]
    (tmp_path / "there").rmdir()
    (tmp_path / "there").write_text("in the way")
    for trainer, each, place in zip(trainers, made, ("run", "taskvec-[^/]*"), strict=True):
        monkeypatch.setattr(each, "_check_output", lambda: None)  # as if that came in while it trained
        with pytest.raises(TaskvecError, match=rf"vector is in .*{place}/rescued-vector.safetensors inst"):
            trainer.train()
    for model, each in zip(models, made, strict=True):  # what was rescued before stays
        assert each.path is not None
        assert_vector_is(tv.TaskVector.load(each.path), model.state_dict(), load(llama).state_dict())


def test_a_training_that_diverges_ends_at_once(llama: Path, tmp_path: Path) -> None:
    trainer = make_trainer(load(llama), tmp_path, [callback(tmp_path)], learning_rate=1e38, max_grad_norm=0)
    with pytest.raises(TrainingDiverged, match=r"step \d: the weights are NaN or infinite; lower"):
        trainer.train()
    assert not (tmp_path / "vector.safetensors").exists()
