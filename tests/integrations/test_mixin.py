"""What the mixin adds to a trainer: tangent space, penalties, evaluations at coefficients."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from torch.nn.functional import cross_entropy

import taskvec as tv
from integrations.trainings import assert_vector_is, copied, load, make_trainer, texts
from language_models import save_language_model
from taskvec.errors import InputError
from taskvec.integrations.transformers import TaskVectorCallback, TaskVectorMixin
from taskvec.vectors.statistics import StatisticsInfo, measured_at, save_statistics

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

PLAIN: dict[str, Any] = {
    **{"per_device_train_batch_size": 16, "max_steps": 3, "lr_scheduler_type": "constant"},
    **{"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0},
}
"""Steps on all examples at once, so that their order does not matter."""


class MixedTrainer(TaskVectorMixin, hf.Trainer):
    """As users write it."""


def run(model: Any, place: Path, options: Mapping[str, Any], **settings: Any) -> tuple[Any, tv.TaskVector]:
    made = TaskVectorCallback(place / "vector.safetensors", **options)
    trainer = make_trainer(model, place, [made], MixedTrainer, **settings)
    trainer.train()
    return trainer, tv.TaskVector.load(place / "vector.safetensors")


def loss_of(logits: Tensor, tokens: Tensor) -> Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def descend(
    leaves: Mapping[str, Tensor], logits: Callable[[], Tensor], more: Callable[[], Tensor], decay: float = 0
) -> None:
    """The same steps in a loop of our own."""
    tokens = torch.tensor([row["input_ids"] for row in texts()])
    optimizer = torch.optim.SGD([*leaves.values()], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(logits(), tokens) + more())
        optimizer.step()


def tokens() -> Tensor:
    return torch.tensor([row["input_ids"] for row in texts()])


@pytest.mark.parametrize("regime", ["tangent", "tangent-attention"])
def test_tangent_space_is_that_of_linearize(llama: Path, tmp_path: Path, regime: str) -> None:
    model = load(llama)
    trainer, vector = run(model, tmp_path, {"regime": regime}, **PLAIN)
    lin = tv.linearize(load(llama), "all" if regime == "tangent" else "attention")
    descend(lin.tau, lambda: lin(input_ids=tokens(), use_cache=False).logits, lambda: torch.zeros(()))
    for name, tau in lin.tau.items():
        torch.testing.assert_close(vector[name], tau.detach(), rtol=1e-3, atol=1e-6)
    assert {name for name in vector if vector[name].any()} == set(lin.tau)
    assert vector.info.space == "tangent" and vector.info.regime == regime
    measured = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        rows = torch.tensor([row["input_ids"] for row in texts(1, 4)])
        expected = loss_of(lin(input_ids=rows, use_cache=False).logits, rows).item()
        there = loss_of(model(input_ids=rows).logits, rows).item()  # outside, the model is what it was
    assert measured == pytest.approx(expected, rel=1e-5) and abs(measured - there) > 1e-4


@pytest.mark.parametrize("kind", ["t5", "tied", "classifier"])
def test_losses_of_other_networks_in_tangent_space(kind: str, tmp_path: Path) -> None:
    folder = save_language_model(tmp_path / kind, "llama" if kind == "classifier" else kind)
    classes: dict[str, Any] = {
        "t5": hf.AutoModelForSeq2SeqLM,
        "tied": hf.AutoModelForCausalLM,
        "classifier": hf.AutoModelForSequenceClassification,
    }
    model = classes[kind].from_pretrained(folder)
    made = TaskVectorCallback(tmp_path / "vector.safetensors", regime="tangent-attention")
    rate = 1e-8 if kind == "t5" else 1e-4
    trainer = make_trainer(model, tmp_path, [made], MixedTrainer, **{**PLAIN, "learning_rate": rate})
    rows: list[dict[str, Any]] = texts()
    if kind == "classifier":
        rows = [{"input_ids": row["input_ids"], "labels": n % 2} for n, row in enumerate(rows)]
    trainer.train_dataset = rows
    with torch.no_grad():
        own = model(**hf.default_data_collator(rows)).loss.item()
    before = copied(model)
    trainer.train()
    vector = tv.TaskVector.load(tmp_path / "vector.safetensors")
    assert_vector_is({name: vector[name] for name in vector if name in before}, model.state_dict(), before)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(own, rel=1e-4) and losses[2] < losses[0]


def test_tangent_training_goes_on_from_a_checkpoint(llama: Path, tmp_path: Path) -> None:
    saving = {**PLAIN, "save_strategy": "steps", "save_steps": 1}
    _, whole = run(load(llama), tmp_path, {"regime": "tangent"}, **saving)
    made = TaskVectorCallback(tmp_path / "again.safetensors", regime="tangent")
    again = make_trainer(load(llama), tmp_path, [made], MixedTrainer, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    vector = tv.TaskVector.load(tmp_path / "again.safetensors")
    for name in whole:
        torch.testing.assert_close(vector[name], whole[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gradient_checkpointing": True}, "set gradient_checkpointing=False"),
        ({"fp16": True}, "set bf16=True, or neither"),
        ({"neftune_noise_alpha": 1.0}, "leave NEFTune out"),
    ],
)
def test_what_does_not_go_with_tangent_space(llama: Path, tmp_path: Path, settings: Any, said: str) -> None:
    made = TaskVectorCallback(tmp_path / "vector.safetensors", regime="tangent")
    with pytest.raises(InputError, match=f"regime: of space tangent, but .*{said}"):
        make_trainer(load(llama), tmp_path, [made], MixedTrainer, **settings)


def test_half_precision_in_tangent_space(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has dtype torch.bfloat16, expected float32"):
        run(load(llama, dtype=torch.bfloat16), tmp_path, {"regime": "tangent"})
    _, vector = run(load(llama), tmp_path, {"regime": "tangent"}, bf16=True)
    assert vector.norm() > 0


def squares(tau: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([value.square().sum() for value in tau.values()]).sum()


def orthogonality(tau: Mapping[str, Tensor]) -> Tensor:
    made = []
    for value in tau.values():
        matrix = value if value.shape[0] < value.shape[1] else value.T
        made.append((matrix @ matrix.T - torch.eye(len(matrix))).square().sum())
    return torch.stack(made).sum()


@pytest.mark.parametrize(
    ("penalty", "term"),
    [
        ("decay", lambda tau: squares(tau) / 2),
        ({"kind": "orthoreg", "strength": 0.01}, lambda tau: 0.01 * orthogonality(tau)),
    ],
)
@pytest.mark.parametrize("parts", [1, 4])
def test_penalties_are_terms_of_the_loss(
    llama: Path, tmp_path: Path, penalty: Any, term: Callable[[Mapping[str, Tensor]], Tensor], parts: int
) -> None:
    cut = {"per_device_train_batch_size": 16 // parts, "gradient_accumulation_steps": parts}
    options = {"regime": "attention", "penalty": penalty}
    _, vector = run(load(llama), tmp_path, options, **{**PLAIN, **cut})
    model, before = load(llama), load(llama).state_dict()
    leaves = {name: value for name, value in model.named_parameters() if "self_attn" in name}
    descend(
        leaves,
        lambda: model(input_ids=tokens()).logits,
        lambda: term({name: leaf - before[name] for name, leaf in leaves.items()}),
    )
    for name, leaf in leaves.items():
        torch.testing.assert_close(vector[name], leaf.detach() - before[name], rtol=1e-3, atol=1e-6)
    assert vector.info.training is not None and len(vector.info.training["penalty"]) == 1


def test_a_penalty_by_curvature_from_a_file(llama: Path, tmp_path: Path) -> None:
    before = load(llama).state_dict()
    names = [name for name in before if "self_attn" in name]
    curvature = {name: torch.rand(before[name].shape) for name in names}
    info = StatisticsInfo(
        kind="ggn",
        model=measured_at(str(llama)),
        task="other",
        data="d",
        split="train",
        examples=4,
        seed=0,
        probes=1,
    )
    save_statistics(curvature, tmp_path / "stats.safetensors", info)
    file = str(tmp_path / "stats.safetensors")
    options = {"regime": "attention", "penalty": {"kind": "diagonal", "strength": 2.0, "files": [file]}}
    _, vector = run(load(llama), tmp_path, options, **PLAIN)
    model = load(llama)
    leaves = {name: value for name, value in model.named_parameters() if name in names}
    descend(
        leaves,
        lambda: model(input_ids=tokens()).logits,
        lambda: (
            2
            * torch.stack(
                [(curvature[name] * (leaf - before[name]).square()).sum() for name, leaf in leaves.items()]
            ).sum()
        ),
    )
    for name, leaf in leaves.items():
        torch.testing.assert_close(vector[name], leaf.detach() - before[name], rtol=1e-3, atol=1e-6)
    assert "files of statistics" in str((vector.info.training or {})["consumed"])


@pytest.mark.parametrize("regime", ["full", "tangent"])
def test_tau_jp_keeps_outputs_on_other_tasks(llama: Path, tmp_path: Path, regime: str) -> None:
    other = texts(5, 4)
    asked = {"kind": "tau_jp", "strength": 1e-3, "batch_size": 8}  # of four: all of them
    options = {"regime": regime, "penalty": asked, "references": {"other": other}}
    _, vector = run(load(llama), tmp_path, options, **PLAIN)
    rows = torch.tensor([row["input_ids"] for row in other])
    model, start = load(llama), load(llama)
    lin = tv.linearize(start)
    leaves: Mapping[str, Tensor] = lin.tau if regime == "tangent" else dict(model.named_parameters())

    def logits(inputs: Tensor) -> Tensor:
        out = lin(input_ids=inputs, use_cache=False) if regime == "tangent" else model(input_ids=inputs)
        return out.logits  # type: ignore[no-any-return]

    with torch.no_grad():
        before = start(input_ids=rows).logits
    descend(
        leaves,
        lambda: logits(tokens()),
        lambda: 1e-3 * (logits(rows) - before).flatten(0, 1).square().sum(1).mean(),
    )
    for name, leaf in leaves.items():
        tau = leaf.detach() if regime == "tangent" else leaf.detach() - start.state_dict()[name]
        torch.testing.assert_close(vector[name], tau, rtol=2e-3, atol=1e-6)
    assert (vector.info.training or {})["references"] == ["other"]


@pytest.mark.parametrize("penalty", ["tau_jp", "tak", "diagonal"])
def test_penalties_that_lack_what_they_read(llama: Path, tmp_path: Path, penalty: str) -> None:
    with pytest.raises(InputError, match=f"penalty {penalty}: no (references|files), expected"):
        run(load(llama), tmp_path, {"penalty": penalty})


@pytest.mark.parametrize("regime", [None, "tangent"])
def test_evaluations_at_coefficients(llama: Path, tmp_path: Path, regime: str | None) -> None:
    model = load(llama)
    options = {"coefficients": (0.0, 0.5, 1.0), "regime": regime}
    trainer, vector = run(model, tmp_path, options, eval_strategy="steps", eval_steps=4)
    after, held = copied(model), {name: id(value) for name, value in model.named_parameters()}
    metrics = trainer.evaluate()
    assert held == {name: id(value) for name, value in model.named_parameters()}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in after.items())
    assert metrics["eval_taskvec/1/loss"] == pytest.approx(metrics["eval_loss"], rel=1e-6)
    rows = torch.tensor([row["input_ids"] for row in texts(1, 4)])
    start, lin = load(llama), tv.linearize(load(llama))
    with torch.no_grad():
        assert metrics["eval_taskvec/0/loss"] == pytest.approx(
            loss_of(start(input_ids=rows).logits, rows).item(), rel=1e-5
        )
        if regime is None:
            half = tv.apply(llama, 0.5 * vector)
            start.load_state_dict(dict(half))
            made = start(input_ids=rows).logits
        else:
            steps = {name: 0.5 * vector[name] for name in lin.tau}
            made = lin.linearization(steps, input_ids=rows, use_cache=False).logits
        assert metrics["eval_taskvec/0.5/loss"] == pytest.approx(loss_of(made, rows).item(), rel=1e-5)
    assert any("eval_taskvec/0.5/loss" in entry for entry in trainer.state.log_history)


def test_what_takes_the_mixin_is_refused_without(llama: Path, tmp_path: Path) -> None:
    for options in ({"regime": "tangent"}, {"penalty": "decay"}, {"coefficients": (0.5,)}):
        made = TaskVectorCallback(tmp_path / "vector.safetensors", **options)
        with pytest.raises(InputError, match="expected a trainer with TaskVectorMixin"):
            make_trainer(load(llama), tmp_path, [made])


def test_the_mixin_takes_its_callback(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="MixedTrainer: callbacks holds 0 TaskVectorCallback, expected one"):
        make_trainer(load(llama), tmp_path, [], MixedTrainer)


def test_norms_reach_what_the_trainer_reports_to(llama: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    class Reporter(hf.TrainerCallback):
        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append(logs)

    made = TaskVectorCallback(tmp_path / "vector.safetensors", validate_every=2)
    make_trainer(load(llama), tmp_path, [Reporter(), made], MixedTrainer).train()
    assert sum("taskvec/norm" in logs for logs in seen) == 2
