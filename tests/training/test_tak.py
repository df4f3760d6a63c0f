"""TAK and the diagonal: quadratic forms against Kronecker products, and what they do to a training."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

import taskvec as tv
from taskvec.errors import InputError, TaskvecError
from taskvec.models.selection import selected
from taskvec.progress import unwatched
from taskvec.statistics.blocks import Block, blocks
from taskvec.training.penalties.penalty import Given, Penalty
from taskvec.training.penalties.quadratic import Energy, Kronecker, Scaled, Turned, energy
from taskvec.training.penalties.settings import Diagonal, Tak
from taskvec.training.penalties.tak import bind, bind_diagonal
from taskvec.training.regimes import Regime, regime_called
from taskvec.training.space import Moved, move
from taskvec.vectors.statistics import read_statistics

Kind = dict[str, Any]
KINDS: list[Kind] = [{"kind": "tak"}, {"kind": "tak", "factors": "ekfac"}, {"kind": "diagonal"}]
RECIPE: Kind = {"lr": 1e-3, "steps": 10, "batch_size": 16, "weight_decay": 0, "validations": 0}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def number(value: Tensor) -> float:
    return float(value.detach())


def positive(size: int, seed: int) -> Tensor:
    root = drawn(size, size, seed=seed)
    return root @ root.T


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("bias", [None, "b"])
def test_a_form_is_that_of_the_kronecker_product(bias: str | None, flipped: bool) -> None:
    block = Block("w", bias, torch.Size([4, 3] if flipped else [3, 4]), flipped)
    rows, columns = block.sides
    a, b = positive(columns, 1), positive(rows, 2)
    tau = {
        "w": drawn(*block.shape).requires_grad_(),
        **({"b": drawn(3, seed=3).requires_grad_()} if bias else {}),
    }
    flat = block.joined(tau["w"], tau.get("b")).flatten()
    expected = flat @ torch.kron(b, a) @ flat
    found = energy([Energy(block, [Kronecker(a, b)])], tau)
    assert_close(found, expected)
    for name in tau:
        assert_close(
            *(torch.autograd.grad(one, tau[name], retain_graph=True)[0] for one in (found, expected))
        )


def test_a_form_along_eigenvectors_is_that_of_their_product() -> None:
    block, w = Block("w", None, torch.Size([3, 4])), drawn(3, 4).requires_grad_()
    ua, ub, d = torch.linalg.qr(drawn(4, 4))[0], torch.linalg.qr(drawn(3, 3))[0], drawn(3, 4).square()
    basis = torch.kron(ub, ua)
    found = energy([Energy(block, [Turned(ua, ub, d), Turned(ua, ub, d)])], {"w": w})
    assert_close(found, 2 * w.flatten() @ (basis * d.flatten() @ basis.T) @ w.flatten())


def test_gradients_agree_with_finite_differences() -> None:
    block = Block("w", "b", torch.Size([2, 3]))
    terms = [
        Energy(block, [Kronecker(positive(4, 1), positive(2, 2))] * 2),
        Energy("v", [Scaled(drawn(5).square())]),
    ]
    leaves = [drawn(2, 3, seed=1), drawn(2, seed=2), drawn(5, seed=3)]
    names = ["w", "b", "v"]
    torch.autograd.gradcheck(
        lambda *given: energy(terms, dict(zip(names, given, strict=True))),
        [leaf.requires_grad_() for leaf in leaves],
    )


def test_parameters_that_stay_count_as_zero() -> None:
    block, a, b = Block("w", "b", torch.Size([2, 3])), positive(4, 1), positive(2, 2)
    for name, shape in (("w", (2, 3)), ("b", (2,))):
        tau = {"w": torch.zeros(2, 3).double(), "b": torch.zeros(2).double(), name: drawn(*shape)}
        term = [Energy(block, [Kronecker(a, b)])]
        assert_close(energy(term, {name: tau[name]}), energy(term, tau))


def given(
    evaluator: tv.Evaluator,
    regime: str = "tangent",
    references: Sequence[str] = ("taste", "number"),
    keep: Path | None = None,
) -> Given:
    """A training whose displacement is random."""
    kind, backbone = regime_called(regime), evaluator.backbone
    assert isinstance(kind, Regime)
    moved: Moved = move(backbone, selected(backbone, kind.selection), kind.evaluated_in, kind.lora, 0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for leaf in moved.leaves.values():
            leaf += 0.02 * torch.randn(leaf.shape, generator=draw)
    parts = [evaluator.part(task) for task in references]
    return Given(backbone, moved, parts, tv.TrainSettings(), keep, unwatched, ["pets"])


def bound(settings: Kind, of: Given) -> Penalty:
    rest = {"examples": 8, **{key: value for key, value in settings.items() if key != "kind"}}
    return bind(Tak(**rest), of) if settings["kind"] == "tak" else bind_diagonal(Diagonal(**rest), of)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "regime", ["full", "tangent", "attention", "tangent-attention-biases", "lora", "tangent-lora"]
)
def test_it_is_a_quadratic_form_of_the_displacement_in_every_space(
    evaluator: tv.Evaluator, kind: Kind, regime: str
) -> None:
    of = given(evaluator, regime)
    penalty = bound(kind, of)
    value = penalty(0)
    assert float(value.detach()) > 0 and value.requires_grad
    slopes = torch.autograd.grad(value, list(of.moved.tau().values()), allow_unused=True)
    work = (
        sum(
            number((slope * step).sum())
            for slope, step in zip(slopes, of.moved.tau().values(), strict=True)
            if slope is not None
        )
        if "lora" not in regime and regime not in ("full", "attention")
        else 2 * float(value.detach())
    )
    assert work == pytest.approx(2 * float(value.detach()), rel=1e-4)  # Euler's theorem
    with torch.no_grad():
        for name, leaf in of.moved.leaves.items():
            leaf.copy_(
                of.moved._start[name]
                if name in of.moved._start and regime in ("full", "attention")
                else 0 * leaf
            )
    assert number(penalty(1)) == pytest.approx(0, abs=1e-12)


def test_equal_factors_make_merging_exact_and_tasks_add_up(evaluator: tv.Evaluator) -> None:
    """One task alone is what it is merged; twice the same task is twice that."""
    values = {
        (merge, count): number(
            bound({"kind": "tak", "merge": merge}, given(evaluator, references=["taste"] * count))(0)
        )
        for merge in ("merged", "one-a-task")
        for count in (1, 2)
    }
    assert values["merged", 1] == pytest.approx(values["one-a-task", 1], rel=1e-5)
    assert values["merged", 2] == pytest.approx(2 * values["merged", 1], rel=1e-5)
    assert values["one-a-task", 2] == pytest.approx(2 * values["merged", 1], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_other_tasks_does_not_matter(evaluator: tv.Evaluator, kind: Kind) -> None:
    one, other = (
        bound(kind, given(evaluator, references=order))(0)
        for order in (("taste", "number"), ("number", "taste"))
    )
    assert torch.equal(one, other)


def test_merged_factors_are_the_mean_and_the_sum(evaluator: tv.Evaluator, tmp_path: Path) -> None:
    of = given(evaluator, keep=tmp_path)
    value = number(bound({"kind": "tak"}, of)(0))
    files = [load_file(path) for path in sorted(tmp_path.glob("kfac-*.safetensors"))]
    assert len(files) == 2
    tau = {name: leaf.detach() for name, leaf in of.moved.tau().items()}
    total, held = 0.0, set()
    for block in blocks(of.backbone, list(tau)):
        a = sum((file[f"{block.weight}#A"] for file in files), torch.zeros(())) / 2
        b = sum((file[f"{block.weight}#B"] for file in files), torch.zeros(()))
        w = block.joined(tau[block.weight], None if block.bias is None else tau[block.bias])
        total += number(torch.trace(b @ w @ a @ w.T))
        held |= set(block.names)
    total += sum(number((file[name] * tau[name] ** 2).sum()) for file in files for name in tau.keys() - held)
    assert value == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_measured_is_kept_and_read(evaluator: tv.Evaluator, tmp_path: Path, kind: Kind) -> None:
    first = bound(kind, given(evaluator, keep=tmp_path / "kept"))(0)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert len(files) == 2 and all(path.suffix == ".safetensors" for path in files)
    info = read_statistics(tv.open_weights(next(iter(files))))
    assert info is not None and info.model.fingerprint and info.data and info.examples == 8
    again = bound(kind, given(evaluator, keep=tmp_path / "kept"))(0)
    assert torch.equal(first, again) and torch.equal(first, bound(kind, given(evaluator))(0))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()} == files
    bound(kind, given(evaluator, "tangent-attention", keep=tmp_path / "kept"))
    assert len(list((tmp_path / "kept").iterdir())) == 4


def tuned(evaluator: tv.Evaluator, regime: str = "tangent", penalty: Any = (), **more: Any) -> tv.TaskVector:
    recipe = tv.TrainSettings.parse("", {**RECIPE, "penalty": penalty})
    others = [evaluator.part(task) for task in ("taste", "number", "pets")]
    return tv.finetune(
        evaluator.backbone, evaluator.part("pets"), regime=regime, settings=recipe, references=others, **more
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("regime", ["full", "tangent", "lora"])
def test_training_moves_less_where_other_tasks_would_notice(
    evaluator: tv.Evaluator, kind: Kind, regime: str
) -> None:
    logs: list[dict[str, float]] = []
    free = tuned(evaluator, regime)
    tight = tuned(
        evaluator,
        regime,
        {**kind, "strength": 1e3, "examples": 8},
        log=lambda _, facts: logs.append(dict(facts)),
    )
    assert logs[-1]["penalty"] > 0
    penalty = bound({"kind": "diagonal"}, of := given(evaluator))

    def size(vector: tv.TaskVector) -> float:
        with torch.no_grad():
            for name, leaf in of.moved.leaves.items():
                leaf.copy_(vector[name])
        return number(penalty(0))

    assert size(tight) < 0.9 * size(free)


@pytest.fixture(scope="module")
def files(evaluator: tv.Evaluator, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Factors of every task, as a training keeps them."""
    folder = tmp_path_factory.mktemp("factors")
    bound({"kind": "tak"}, given(evaluator, references=("pets", "taste", "number"), keep=folder))
    return {task: next(folder.glob(f"kfac-{task}-*")) for task in ("pets", "taste", "number")}


def test_files_stand_for_the_inputs_and_the_own_task_is_left_out(
    evaluator: tv.Evaluator, files: dict[str, Path]
) -> None:
    names = [str(path) for path in files.values()]
    read = bound({"kind": "tak", "files": names}, given(evaluator, references=()))(0)
    assert_close(read, bound({"kind": "tak"}, given(evaluator))(0))
    some = bound({"kind": "tak", "files": names}, given(evaluator, "tangent-attention", references=()))(0)
    assert_close(some, bound({"kind": "tak"}, given(evaluator, "tangent-attention"))(0), rtol=1e-4, atol=0)


def spoilt(path: Path, out: Path, tensors: dict[str, Tensor], **info: Any) -> Path:
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["taskvec_statistics"])
    save_file(
        {**load_file(path), **tensors}, out, metadata={"taskvec_statistics": json.dumps({**said, **info})}
    )
    return out


LAYER = "encoder.layer.0.output.dense.weight"
SPOILT: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], dict[str, Any], str]] = {
    "another model": (
        lambda _: {},
        {"model": {"ref": "other", "fingerprint": "f" * 32}},
        rf"at other \(fingerprint {'f' * 32}\), expected .* \(fingerprint [0-9a-f]{{32}}\)",
    ),
    "another kind": (lambda _: {}, {"kind": "ekfac"}, "statistics of kind 'ekfac', expected kind 'kfac'"),
    "shape": (lambda _: {f"{LAYER}#A": torch.eye(3)}, {}, r"has shape \(3, 3\), expected \(33, 33\)"),
    "nan": (lambda old: {f"{LAYER}#A": old[f"{LAYER}#A"] * torch.nan}, {}, "holds NaN or infinity"),
    "negative": (lambda old: {f"{LAYER}#B": -old[f"{LAYER}#B"]}, {}, "negative directions"),
    "no examples": (lambda _: {}, {"available": 0}, "measured on 0 examples"),
    "negative weight": (lambda _: {}, {"available": -9}, "measured on -9 examples"),
    "own task": (lambda _: {}, {"task": "pets"}, r"all are of tasks that are trained \(pets\)"),
    "lopsided": (lambda old: {f"{LAYER}#B": old[f"{LAYER}#B"].triu()}, {}, "not symmetric"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_files_that_cannot_be_right_are_refused_before_anything_is_trained(
    evaluator: tv.Evaluator, files: dict[str, Path], tmp_path: Path, fault: str
) -> None:
    change, info, match = SPOILT[fault]
    bad = spoilt(files["taste"], tmp_path / "x.safetensors", change(load_file(files["taste"])), **info)
    with pytest.raises(TaskvecError, match=match) as raised:
        bound({"kind": "tak", "files": [str(bad)]}, given(evaluator, references=()))
    assert "\n" not in str(raised.value) and raised.value.exit_code == 2


def test_a_task_is_not_counted_twice(evaluator: tv.Evaluator, files: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(files["taste"], tmp_path / "again.safetensors")
    twice = [str(files["taste"]), str(files["number"]), str(tmp_path / "again.safetensors")]
    with pytest.raises(TaskvecError, match="are both of task 'taste', expected one a task"):
        bound({"kind": "tak", "files": twice}, given(evaluator, references=()))


def test_provenance_tells_files_from_inputs(evaluator: tv.Evaluator, files: dict[str, Path]) -> None:
    paths = [str(path) for path in files.values()]
    training = tuned(evaluator, penalty={"kind": "tak", "files": paths}).info.training or {}
    assert "references" not in training
    assert {told["task"] for told in training["statistics"].values()} == {"taste", "number"}
    assert training["consumed"] == "train inputs of other tasks, in files of statistics"
    assert all(told["fingerprint"] and told["split"] == "train" for told in training["statistics"].values())


def test_a_checkpoint_is_of_what_files_hold(
    evaluator: tv.Evaluator, files: dict[str, Path], tmp_path: Path
) -> None:
    path, checkpoint = tmp_path / "taste.safetensors", tmp_path / "training.pt"
    shutil.copy(files["taste"], path)

    def killed(_: str, done: int, __: int, **___: float) -> None:
        if done == 5:
            raise KeyboardInterrupt

    penalty = {"kind": "tak", "files": str(path)}
    with pytest.raises(KeyboardInterrupt):
        tuned(evaluator, penalty=penalty, checkpoint=checkpoint, watch=killed)
    whole = {name: 3 * value for name, value in load_file(path).items()}
    spoilt(files["taste"], path, whole)
    try:
        gone_on = tuned(evaluator, penalty=penalty, checkpoint=checkpoint)
    except TaskvecError:
        return  # said, as for other settings
    anew = tuned(evaluator, penalty=penalty)
    assert all(torch.equal(gone_on[name], anew[name]) for name in anew)


def test_trainings_at_once_share_a_folder(tiny_model: Path, tiny_suite: Path, tmp_path: Path) -> None:
    """Each sees whole files, whoever wrote them."""
    tasks = list(tv.load_suite(tiny_suite).tasks.values())

    def train(_: int) -> tv.TaskVector:
        own = tv.Evaluator(tv.load_backbone(str(tiny_model)), tasks)
        return tuned(own, "full", {"kind": "diagonal", "examples": 8}, keep=tmp_path / "kept")

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(train, range(3))
    assert all(torch.equal(first[name], other[name]) for other in others for name in first)
    assert len(list((tmp_path / "kept").iterdir())) == 2


def measured(told: Sequence[str]) -> int:
    return sum(label.startswith("curvature of ") for label in told)


@pytest.mark.parametrize("lr", [1e-3, "auto"])
def test_measuring_is_no_step_of_a_log(evaluator: tv.Evaluator, lr: Any) -> None:
    steps: list[int] = []
    recipe = tv.TrainSettings.parse(
        "", {**RECIPE, "steps": 2, "lr": lr, "penalty": {"kind": "tak", "examples": 1}}
    )
    of, other = (evaluator.part(task) for task in ("pets", "taste"))

    def log(step: int, values: Mapping[str, float]) -> None:
        assert "loss" in values and ("lr_found" in values) == (lr == "auto" and step == 1)
        steps.append(step)

    tv.finetune(evaluator.backbone, of, settings=recipe, references=[other], log=log)
    assert steps == [1, 2]


def test_a_penalty_that_explodes_is_named(evaluator: tv.Evaluator) -> None:
    with pytest.raises(TaskvecError, match="weaken the penalty or train in float32"):
        tuned(evaluator, "full", {"kind": "tak", "examples": 4, "strength": 1e38})


@pytest.mark.parametrize("way", ["lr: auto", "atm"])
def test_curvature_is_measured_once_a_task(evaluator: tv.Evaluator, way: str) -> None:
    told: list[str] = []

    def watch(label: str, done: int, total: int, **_: float) -> None:
        told.extend([label] if done == total else [])

    penalty = {"kind": "diagonal", "examples": 8}
    recipe = tv.TrainSettings.parse("", {**RECIPE, "steps": 4, "penalty": penalty})
    parts = [evaluator.part(task) for task in ("pets", "taste", "number")]
    if way == "atm":
        tv.atm(evaluator.backbone, parts, rounds=2, settings=recipe, watch=watch)
        assert measured(told) == 3
    else:
        auto = recipe.model_copy(update={"lr": "auto"})
        tv.finetune(evaluator.backbone, parts[0], settings=auto, references=parts[1:], watch=watch)
        assert measured(told) == 2


def test_a_penalty_without_other_tasks_is_refused(evaluator: tv.Evaluator) -> None:
    with pytest.raises(TaskvecError, match="penalty tak: no references"):
        bound({"kind": "tak"}, given(evaluator, references=()))


def test_factors_that_are_of_nothing_trained_are_said(
    evaluator: tv.Evaluator, files: dict[str, Path], tmp_path: Path
) -> None:
    kept = {name: value for name, value in load_file(files["taste"]).items() if "layer.0" in name}
    with safe_open(files["taste"], "pt") as file:
        metadata = file.metadata()
    save_file(kept, tmp_path / "some.safetensors", metadata=metadata)
    some = {"kind": "tak", "files": [str(tmp_path / "some.safetensors")]}
    with pytest.warns(UserWarning, match="penalty tak: no factors for embeddings"):
        assert number(bound(some, given(evaluator, references=()))(0)) > 0


def test_a_damaged_file_of_a_run_is_named_with_what_helps(evaluator: tv.Evaluator, tmp_path: Path) -> None:
    of = given(evaluator, keep=tmp_path)
    first = bound({"kind": "tak"}, of)(0)
    damaged = min(tmp_path.iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"remove {damaged.name}, and what it held is measured again"):
        bound({"kind": "tak"}, of)
    damaged.unlink()
    assert bound({"kind": "tak"}, of)(0) == first
