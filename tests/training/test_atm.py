"""ATM against what theory says it is: mean merging for one round, gradient descent for one step a round."""

from copy import deepcopy
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

import taskvec as tv
from taskvec.errors import InputError, UnknownName
from taskvec.models.backbone import Backbone
from taskvec.models.functional import encode
from taskvec.models.heads import Head
from taskvec.progress import Watch, unwatched
from taskvec.studies.atm import AtmSettings
from taskvec.training.checkpoint import Checkpoint
from taskvec.training.regimes import REGIMES
from taskvec.training.space import linearized

LORA = REGIMES["lora"]
RECIPE = tv.TrainSettings(lr=3e-3, steps=8, batch_size=16, weight_decay=0.01, validations=0)


def parts(evaluator: tv.Evaluator) -> list[tv.Part]:
    return [evaluator.part(task) for task in evaluator.tasks]


def test_one_round_is_mean_merging_of_single_task_vectors(evaluator: tv.Evaluator) -> None:
    once = tv.atm(evaluator.backbone, parts(evaluator), rounds=1, settings=RECIPE)
    vectors = [tv.finetune(evaluator.backbone, part, settings=RECIPE) for part in parts(evaluator)]
    assert_close(dict(once), dict(tv.combine("mean", vectors)), rtol=0, atol=0)


def test_a_full_batch_step_a_round_is_multi_task_gradient_descent(evaluator: tv.Evaluator) -> None:
    backbone, tasks, rounds, lr = evaluator.backbone, parts(evaluator), 3, 0.05
    sgd = tv.TrainSettings(
        lr=lr, steps=rounds, batch_size=10**6, optimizer="sgd", schedule="constant", warmup=0, clip=None
    )
    displacement = tv.atm(backbone, tasks, rounds=rounds, settings=sgd)

    theta = {name: value.clone() for name, value in evaluator.pretrained.items()}
    for _ in range(rounds):
        leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
        losses = [
            torch.nn.functional.cross_entropy(
                part.head(encode(backbone, leaves, backbone.collate(part.split.inputs))),  # type: ignore[operator]
                part.split.labels,
            )
            for part in tasks
        ]
        slopes = torch.autograd.grad(sum(losses) / len(losses), list(leaves.values()))  # type: ignore[arg-type]
        theta = {name: theta[name] - lr * slope for name, slope in zip(leaves, slopes, strict=True)}
    moved = {name: displacement[name] for name in theta}
    expected = {name: value - evaluator.pretrained[name] for name, value in theta.items()}
    assert_close(moved, expected, rtol=1e-3, atol=2e-6)


def test_scale_and_rule_are_those_asked_for(evaluator: tv.Evaluator) -> None:
    options = {"rounds": 1, "settings": RECIPE, "regime": "attention"}
    mean = tv.atm(evaluator.backbone, parts(evaluator), **options)  # type: ignore[arg-type]
    third = tv.atm(evaluator.backbone, parts(evaluator), rule="sum", scale=1 / 3, **options)  # type: ignore[arg-type]
    assert_close(dict(third), dict(mean), rtol=1e-4, atol=1e-7)


def test_no_rounds_and_unknown_rules_are_refused(evaluator: tv.Evaluator) -> None:
    with pytest.raises(InputError, match="rounds: 0"):
        tv.atm(evaluator.backbone, parts(evaluator), rounds=0)
    with pytest.raises(UnknownName, match="did you mean 'mean'"):
        tv.atm(evaluator.backbone, parts(evaluator), rounds=1, rule="meen", settings=RECIPE)


def test_rounds_share_the_steps_that_there_are(evaluator: tv.Evaluator) -> None:
    taken: list[int] = []

    def count(label: str, done: int, total: int, **facts: float) -> None:
        taken.append(1)

    recipe = RECIPE.model_copy(update={"steps": 7})
    tv.atm(evaluator.backbone, parts(evaluator)[:1], rounds=3, settings=recipe, watch=count)
    assert len(taken) == 7
    with pytest.raises(InputError, match="rounds: 8 is more than the 7 training steps"):
        tv.atm(evaluator.backbone, parts(evaluator), rounds=8, settings=recipe)


def wide(evaluator: tv.Evaluator) -> tuple[Backbone, list[tv.Part]]:
    """The same in float64: what is equal up to rounding is equal to 1e-12."""
    backbone = deepcopy(evaluator.backbone)
    backbone.network.double()
    return backbone, [replace(part, head=deepcopy(part.head).double()) for part in parts(evaluator)]  # type: ignore[union-attr]


@pytest.mark.parametrize("regime", ["attention", "tangent-attention", "lora"])
def test_one_round_is_mean_merging_bit_for_bit(evaluator: tv.Evaluator, regime: str) -> None:
    once = tv.atm(evaluator.backbone, parts(evaluator), rounds=1, settings=RECIPE, regime=regime)
    vectors = [tv.finetune(evaluator.backbone, p, settings=RECIPE, regime=regime) for p in parts(evaluator)]
    merged = tv.combine("mean", vectors)
    assert all(torch.equal(once[name], merged[name]) for name in once if merged.terms_at(name))
    assert once.info.space == vectors[0].info.space


@pytest.mark.parametrize(
    ("regime", "state"), [("full", "fresh"), ("tangent", "kept"), ("tangent-attention", "fresh")]
)
def test_full_batch_steps_are_gradient_descent_on_the_mean_loss(
    evaluator: tv.Evaluator, regime: str, state: Any
) -> None:
    backbone, tasks = wide(evaluator)
    rounds, lr = 4, 0.05
    sgd = tv.TrainSettings(
        lr=lr, steps=rounds, batch_size=10**6, optimizer="sgd", schedule="constant", warmup=0, clip=None
    )
    found = tv.atm(backbone, tasks, rounds=rounds, settings=sgd, regime=regime, state=state)

    names = tv.select(backbone, "attention" if regime.endswith("attention") else "full")
    everything = {name: value.detach() for name, value in backbone.encoder_parameters().items()}
    theta0 = {name: everything[name] for name in names}

    def features(tau: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> torch.Tensor:
        def there(params: dict[str, torch.Tensor]) -> torch.Tensor:
            return encode(backbone, {**everything, **params}, batch)

        if regime == "full":
            return there({name: theta0[name] + tau[name] for name in names})
        with sdpa_kernel(SDPBackend.MATH):  # the only one with forward derivatives
            value, slope, *_ = torch.func.jvp(there, (theta0,), (tau,))
        return torch.add(value, slope)

    tau = {name: torch.zeros_like(value) for name, value in theta0.items()}
    for _ in range(rounds):
        leaves = {name: value.clone().requires_grad_() for name, value in tau.items()}
        losses = [
            cross_entropy(p.head(features(leaves, backbone.collate(p.split.inputs))), p.split.labels)  # type: ignore[operator]
            for p in tasks
        ]
        slopes = torch.autograd.grad(torch.stack(losses).mean(), list(leaves.values()), allow_unused=True)
        for name, slope in zip(leaves, slopes, strict=True):
            tau[name] = tau[name] - lr * slope if slope is not None else tau[name]
    assert_close({name: found[name] for name in names}, tau, rtol=0, atol=1e-12)
    assert found.norm() > 1e-3


@pytest.mark.parametrize(
    ("regime", "schedule"), [("full", "constant"), ("full", "cosine"), ("tangent-attention", "cosine")]
)
def test_kept_state_over_the_budget_is_training_without_interruption(
    evaluator: tv.Evaluator, regime: str, schedule: Any
) -> None:
    backbone, tasks = wide(evaluator)
    recipe = RECIPE.model_copy(update={"schedule": schedule, "warmup": 0.2})
    rounds = tv.atm(
        backbone, tasks[:1], rounds=4, settings=recipe, regime=regime, state="kept", schedule="budget"
    )
    at_once = tv.finetune(backbone, tasks[0], settings=recipe, regime=regime)
    assert_close(dict(rounds), dict(at_once), rtol=0, atol=1e-12)
    fresh = tv.atm(backbone, tasks[:1], rounds=4, settings=recipe, regime=regime, schedule="budget")
    assert (fresh - at_once).norm() > 1e-3 * at_once.norm()


def test_the_tangent_point_stays(evaluator: tv.Evaluator) -> None:
    """Rounds of one task in tangent space go on in the same linear model: the second begins at tau."""
    backbone, tasks = evaluator.backbone, parts(evaluator)
    losses: list[float] = []

    def watch(label: str, done: int, total: int, **facts: float) -> None:
        losses.append(facts["loss"])

    full = RECIPE.model_copy(
        update={"batch_size": 10**6, "schedule": "constant", "optimizer": "sgd", "clip": None}
    )
    tv.atm(backbone, tasks[:1], rounds=4, settings=full, regime="tangent", watch=watch)
    in_rounds, losses = losses, []
    tv.finetune(
        backbone, tasks[0], settings=full.model_copy(update={"warmup": 0}), regime="tangent", watch=watch
    )
    assert in_rounds == pytest.approx(losses, rel=1e-5)


def test_a_start_is_where_the_rounds_begin_and_without_rounds_the_result(evaluator: tv.Evaluator) -> None:
    backbone, tasks = evaluator.backbone, parts(evaluator)
    start = 0.3 * tv.combine("sum", [tv.finetune(backbone, part, settings=RECIPE) for part in tasks])
    none = tv.atm(backbone, tasks, rounds=0, settings=RECIPE, start=start)
    assert_close(dict(none), dict(start), rtol=1e-4, atol=1e-6)
    some = tv.atm(backbone, tasks, rounds=2, settings=RECIPE, start=start)
    away = tv.atm(backbone, tasks, rounds=2, settings=RECIPE)
    assert (some - start).norm() > 0 and (some - away).norm() > 0.1 * away.norm()
    with pytest.raises(InputError, match=r"start: moves '.*', which regime 'attention' does not train"):
        tv.atm(backbone, tasks, rounds=1, settings=RECIPE, start=start, regime="attention")


@pytest.mark.parametrize(("participation", "count"), [(2, 2), (0.5, 2), (0.1, 1), (None, 3)])
def test_tasks_that_take_part_are_drawn_by_the_seed(
    evaluator: tv.Evaluator, participation: float | None, count: int
) -> None:
    names = list(evaluator.tasks)
    runs = [
        tv.atm(
            evaluator.backbone,
            parts(evaluator),
            rounds=6,
            settings=RECIPE.model_copy(update={"seed": seed}),
            regime="attention",
            participation=participation,
        )
        for seed in (0, 0, 5)
    ]
    drawn = [[record["tasks"] for record in history(run)] for run in runs]
    assert drawn[0] == drawn[1] and all(len(tasks) == count for tasks in drawn[0])
    assert all(tasks == [name for name in names if name in tasks] for tasks in drawn[0])
    if count < 3:
        assert drawn[0] != drawn[2] and len({tuple(tasks) for tasks in drawn[0]}) > 1
    assert ("participation" in (runs[0].info.training or {})) == (participation is not None)


def history(vector: tv.TaskVector) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = (vector.info.training or {})["history"]
    return records


def test_every_round_leaves_a_record(evaluator: tv.Evaluator, tmp_path: Path) -> None:
    backbone, tasks = evaluator.backbone, parts(evaluator)
    recipe, steps = RECIPE.model_copy(update={"validations": 2}), list[dict[str, float]]()
    vector = tv.atm(
        backbone,
        tasks,
        rounds=4,
        settings=recipe,
        regime="attention",
        validate=lambda vector: {"validation": vector.norm()},
        log=lambda step, facts: steps.append({**facts, "step": step}),
    )
    vector.save(tmp_path / "v.safetensors")
    records = history(tv.TaskVector.load(tmp_path / "v.safetensors"))
    assert [record["round"] for record in records] == [1, 2, 3, 4]
    assert ["validation" in record for record in records] == [False, True, False, True]
    size = 4 * sum(value.numel() for value in vector.values() if bool(value.any()))
    assert sum(record["bytes"] for record in records) == 4 * 3 * size * 2  # K x T x |tau|, both ways
    assert records[-1]["norm"] == pytest.approx(vector.norm()) == records[-1]["validation"]
    for record in records:
        cosines = torch.tensor(record["cosines"])
        assert cosines.shape == (3, 3) and cosines.diagonal().allclose(torch.ones(3))
        assert record["cosine"] == pytest.approx((cosines.sum() - 3).item() / 6, abs=1e-6)
    assert [facts["step"] for facts in steps] == list(range(1, 25))
    assert [facts["step"] for facts in steps if "cosine" in facts] == [6, 12, 18, 24]
    assert steps[11]["loss_of_mean"] == records[1]["loss_of_mean"]


def test_the_loss_of_the_mean_is_bounded_by_the_mean_of_losses_in_tangent_space(
    evaluator: tv.Evaluator,
) -> None:
    """Behind a head that does not normalise the loss is convex in tau, so that the bound holds."""
    backbone = evaluator.backbone
    draw = torch.Generator().manual_seed(0)
    tasks = [
        replace(
            part,
            head=Head(
                torch.randn(2, backbone.dim, generator=draw),
                None,
                normalize=False,
                classes=["a", "b"],
                kind="linear-probe",
            ),
        )
        for part in parts(evaluator)
    ]
    recipe = RECIPE.model_copy(update={"lr": 2e-2, "validations": 4})
    records = history(tv.atm(backbone, tasks, rounds=4, settings=recipe, regime="tangent"))
    assert all(record["loss_of_mean"] < record["mean_of_losses"] for record in records)
    first = tv.atm(
        backbone, tasks, rounds=1, settings=recipe.model_copy(update={"steps": 2}), regime="tangent"
    )
    lin = linearized(backbone)
    tau = {name: first[name] for name in lin.theta0}
    losses = []
    for part in tasks:
        logits = part.head(lin(tau, backbone.collate(part.split.first(16).inputs)))  # type: ignore[operator]
        losses.append(cross_entropy(logits, part.split.labels[:16]))
    assert history(first)[0]["loss_of_mean"] == pytest.approx(float(sum(losses)) / 3, rel=1e-5)


class Killed(BaseException):
    """Stands for a signal: nothing in between catches it."""


@pytest.mark.parametrize("killed_at", [2, 9, 12])
@pytest.mark.parametrize(
    "options",
    [
        {"state": "kept"},
        {"regime": "tangent-attention", "state": "kept", "schedule": "budget", "participation": 2},
        {"regime": "lora", "rule": "dare", "density": 0.5},
    ],
    ids=["kept", "tangent", "lora"],
)
def test_a_killed_training_goes_on_to_the_same_bits(
    evaluator: tv.Evaluator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    killed_at: int,
) -> None:
    monkeypatch.setattr(Checkpoint, "every", 0.0)
    state, recipe = tmp_path / "state.pt", RECIPE.model_copy(update={"steps": 6})
    common = {"rounds": 3, "settings": recipe, **options}
    whole = tv.atm(evaluator.backbone, parts(evaluator), **common)
    seen: list[int] = []

    def kill(label: str, done: int, total: int, **facts: float) -> None:
        seen.append(1)
        if len(seen) == killed_at - ("participation" in options):
            raise Killed

    with pytest.raises(Killed):
        tv.atm(evaluator.backbone, parts(evaluator), **common, checkpoint=state, watch=kill)
    assert state.exists() or killed_at == 2
    steps: list[int] = []
    again = tv.atm(
        evaluator.backbone,
        parts(evaluator),
        **common,
        checkpoint=state,
        log=lambda step, facts: steps.append(step),
    )
    assert dict(again).keys() == dict(whole).keys()
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert history(again) == history(whole)
    assert steps == list(range(steps[0], steps[-1] + 1))
    assert not list(tmp_path.iterdir())


def test_the_file_of_another_training_is_refused(
    evaluator: tv.Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "every", 0.0)
    state, seen = tmp_path / "state.pt", list[int]()

    def kill(label: str, done: int, total: int, **facts: float) -> None:
        seen.append(1)
        if len(seen) == 6:
            raise Killed

    options = {"rounds": 2, "regime": "attention", "settings": RECIPE}
    with pytest.raises(Killed):
        tv.atm(evaluator.backbone, parts(evaluator), **options, checkpoint=state, watch=kill)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"state\.pt: the checkpoint is of another training"):
        tv.atm(evaluator.backbone, parts(evaluator), **{**options, "rule": "sum"}, checkpoint=state)  # type: ignore[arg-type]
    one = tv.atm(evaluator.backbone, parts(evaluator), rounds=1, regime="attention", settings=RECIPE)
    with pytest.raises(InputError, match=r"state\.pt: the checkpoint is of another training"):
        tv.atm(evaluator.backbone, parts(evaluator), **options, start=one, checkpoint=state)  # type: ignore[arg-type]
    state.write_bytes(state.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"state\.pt: damaged training checkpoint"):
        tv.atm(evaluator.backbone, parts(evaluator), **options, checkpoint=state)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "others"),
    [
        ({"start": 1.0}, {"start": -1.0}),  # of the same length
        ({"regime": LORA}, {"regime": replace(LORA, rank=2)}),
    ],
    ids=["start", "rank"],
)
def test_what_decides_a_training_is_in_its_file(
    evaluator: tv.Evaluator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    others: dict[str, Any],
) -> None:
    monkeypatch.setattr(Checkpoint, "every", 0.0)
    some = parts(evaluator)
    moved = tv.finetune(evaluator.backbone, some[0], settings=RECIPE.model_copy(update={"steps": 1}))

    def run(given: dict[str, Any], watch: Watch = unwatched) -> None:
        ready = dict(given)
        if "start" in ready:
            ready["start"] = ready["start"] * moved
        recipe = RECIPE.model_copy(update={"steps": 2})
        tv.atm(
            evaluator.backbone,
            some[:2],
            rounds=2,
            settings=recipe,
            checkpoint=tmp_path / "s.pt",
            watch=watch,
            **ready,
        )

    def kill(label: str, done: int, total: int, **facts: float) -> None:
        if label.startswith("atm round 2"):
            raise Killed

    with pytest.raises(Killed):
        run(options, kill)
    with pytest.raises(InputError, match="the checkpoint is of another training"):
        run(others)
    run(options)


def test_the_log_has_every_step_after_a_kill_behind_the_last(
    evaluator: tv.Evaluator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "every", 0.0)
    seen = dict[int, Any]()

    def measure(vector: tv.TaskVector, alive: bool = True) -> dict[str, float]:
        if not alive:
            raise Killed
        return {"validation": 0.5}

    def run(alive: bool) -> None:
        tv.atm(
            evaluator.backbone,
            parts(evaluator)[:2],
            rounds=2,
            settings=RECIPE.model_copy(update={"steps": 4, "validations": 2}),
            checkpoint=tmp_path / "state.pt",
            validate=partial(measure, alive=alive),
            log=lambda step, facts: seen.update({step: facts}),
        )

    with pytest.raises(Killed):
        run(alive=False)
    assert list(seen) == [1, 2, 3]  # the fourth waits for the figures of the round
    run(alive=True)
    assert list(seen) == list(range(1, 9))
    assert [step for step, facts in seen.items() if "validation" in facts] == [4, 8]


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["a", "a"], "parts: two are called 'a', expected one or more tasks"),
        ([], "parts: none, expected one or more tasks"),
        (["team/a", "n" * 300], None),
    ],
)
def test_names_of_parts_are_distinct_and_may_be_no_names_of_files(
    evaluator: tv.Evaluator, tmp_path: Path, names: list[str], complaint: str | None
) -> None:
    named = [replace(part, name=name) for part, name in zip(parts(evaluator), names, strict=False)]
    recipe = RECIPE.model_copy(update={"steps": 1})
    if complaint is None:
        tv.atm(evaluator.backbone, named, rounds=1, settings=recipe, checkpoint=tmp_path / "state.pt")
        assert not list(tmp_path.iterdir())
        return
    with pytest.raises(InputError, match=complaint):
        tv.atm(evaluator.backbone, named, rounds=1, settings=recipe)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"scale": float("nan")}, "scale: nan, expected a finite number"),
        ({"rule": "fisher"}, "rule 'fisher' needs statistics of every task's model, which no round measures"),
        ({"rule": "regmean"}, "rule 'regmean' needs statistics"),
        ({"rule": "slerp"}, "rule 'slerp': 3 task vectors"),
        ({"state": "keep"}, "state: 'keep', expected fresh or kept; did you mean 'kept'"),
        ({"schedule": "rounds"}, "schedule: 'rounds', expected round or budget"),
        ({"state": "kept", "regime": "lora"}, "state: kept, and the factors of regime 'lora' begin anew"),
        ({"participation": 4}, "participation: 4 tasks a round, expected 1 to 3"),
        ({"participation": 0}, "participation: 0 tasks a round"),
        ({"participation": 1.5}, "participation: 1.5, expected a share between 0 and 1"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_round(
    evaluator: tv.Evaluator, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        tv.atm(evaluator.backbone, parts(evaluator), **{"rounds": 2, "settings": RECIPE, **options})


@pytest.mark.parametrize(
    ("rule", "regime"),
    [("ties", "tangent-attention"), ("tsv", "attention"), ("pcgrad", "attention"), ("dare+ties", "lora")],
)
def test_any_rule_merges_the_rounds(evaluator: tv.Evaluator, rule: str, regime: str) -> None:
    options = {"rounds": 2, "settings": RECIPE, "regime": regime}
    vector = tv.atm(evaluator.backbone, parts(evaluator), rule=rule, **options)  # type: ignore[arg-type]
    mean = tv.atm(evaluator.backbone, parts(evaluator), **options)  # type: ignore[arg-type]
    assert vector.norm() > 0 and (vector - mean).norm() > 0


def test_a_function_of_ones_own_merges_the_rounds(evaluator: tv.Evaluator) -> None:
    def middle(deltas: torch.Tensor) -> torch.Tensor:
        return deltas.mean(0)

    options = {"rounds": 2, "settings": RECIPE, "regime": "attention"}
    own = tv.atm(evaluator.backbone, parts(evaluator), rule=middle, **options)  # type: ignore[arg-type]
    mean = tv.atm(evaluator.backbone, parts(evaluator), **options)  # type: ignore[arg-type]
    assert_close(dict(own), dict(mean), rtol=1e-4, atol=1e-7)
    assert (own.info.training or {})["rule"] == "middle"


@pytest.mark.parametrize("regime", ["attention", "tangent-attention"])
def test_a_penalty_is_of_the_whole_displacement(evaluator: tv.Evaluator, regime: str) -> None:
    """So strong that nothing else counts: rounds do not walk away from the pre-trained model."""
    free = tv.atm(evaluator.backbone, parts(evaluator), rounds=4, settings=RECIPE, regime=regime)
    strong = tv.TrainSettings.parse(
        "", {**RECIPE.model_dump(), "penalty": {"kind": "decay", "strength": 1e3}}
    )
    tied = tv.atm(
        evaluator.backbone, parts(evaluator), rounds=4, settings=strong, regime=regime, state="kept"
    )
    assert tied.norm() < 0.5 * free.norm()


def test_what_a_rule_drops_at_random_is_drawn_anew_in_every_round(evaluator: tv.Evaluator) -> None:
    """Else the entries that it dropped in the first round would never move."""
    options = {"settings": RECIPE, "regime": "attention", "rule": "dare", "density": 0.5}
    once, thrice = (
        tv.atm(evaluator.backbone, parts(evaluator)[:1], rounds=rounds, **options)  # type: ignore[arg-type]
        for rounds in (1, 3)
    )
    names = tv.select(evaluator.backbone, "attention")
    still = [float(torch.cat([v[n].flatten() == 0 for n in names]).float().mean()) for v in (once, thrice)]
    assert still == pytest.approx([0.5, 0.125], abs=0.05)


def test_options_of_yesterday_make_the_keys_of_yesterday() -> None:
    assert AtmSettings(rounds=(2,)).options() == {"rule": "mean", "scale": 1.0}
    assert AtmSettings(rounds=(2,), state="kept").options().keys() == {"rule", "scale", "state"}


def test_no_parameter_of_a_rule_is_taken_for_an_option() -> None:
    """``scale`` is an option by its name since there is ATM; files refuse it as a parameter of the rule."""
    options = set(signature(tv.atm).parameters) - {"params", "scale"}
    assert not [name for name, rule in tv.RULES.items() if options & rule.parameters().keys()]


def test_gates_begin_anew_in_every_round(evaluator: tv.Evaluator) -> None:
    vector = tv.atm(evaluator.backbone, parts(evaluator), rounds=2, settings=RECIPE, regime="gated")
    assert vector.norm() > 0 and vector.info.space == "ordinary"
    with pytest.raises(InputError, match="state: kept, and the gates of regime 'gated' begin anew"):
        tv.atm(evaluator.backbone, parts(evaluator), rounds=2, settings=RECIPE, regime="gated", state="kept")
