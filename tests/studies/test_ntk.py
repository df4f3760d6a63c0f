"""Kernel regression, eigenfunctions and local energy: laws and closed forms."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import taskvec as tv
from taskvec.cli import main
from taskvec.errors import InputError
from taskvec.studies.ntk import KernelAnalysis, KernelRecord
from taskvec.studies.numerics.ntk import (
    Eigenfunctions,
    auroc,
    blocks,
    local_energy,
    outputs_of,
    regression_targets,
    solve,
    values_of,
)
from taskvec.tangent.ntk import Mode, ntk

MODES: tuple[Mode, ...] = ("full", "class", "trace")


def explain(
    evaluator: tv.Evaluator, vector: tv.TaskVector | None = None, control: str = "taste", **options: Any
) -> KernelRecord:
    asked = KernelAnalysis(model="tiny", suite="tiny", task="pets", control=control, **options)
    return asked.explain(evaluator, vector)


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 3)).double()


@pytest.mark.parametrize("mode", MODES)
def test_the_kernel_predictor_interpolates(mode: Mode) -> None:
    model, x, y = network(), draws(8, 4), draws(8, 3, seed=1)
    start = model(x).detach()
    kernel = blocks(ntk(model, x, mode=mode), mode, 3)
    moved = values_of(kernel @ solve(kernel, outputs_of(y - start, mode), 1e-10), mode, 3)
    torch.testing.assert_close(start + moved, y, rtol=1e-5, atol=1e-5)


def test_the_kernel_predictor_is_the_linearized_model_trained_to_the_end() -> None:
    """Least squares of least norm in weight space, of the Jacobian itself."""
    model, x, new, y = network(), draws(6, 4), draws(5, 4, seed=2), draws(6, 3, seed=1)
    leaves = list(model.parameters())

    def jacobian(z: Tensor) -> Tensor:
        rows = [torch.autograd.grad(v, leaves, retain_graph=True) for v in model(z).flatten()]
        return torch.stack([torch.cat([slope.flatten() for slope in row]) for row in rows])

    residual = (y - model(x)).detach()
    tau = torch.linalg.lstsq(jacobian(x), residual.flatten(), driver="gelsd").solution
    kernel, cross = blocks(ntk(model, x), "full", 3), blocks(ntk(model, new, x), "full", 3)
    moved = values_of(cross @ solve(kernel, outputs_of(residual, "full"), 1e-12), "full", 3)
    torch.testing.assert_close(moved.flatten(), jacobian(new) @ tau, rtol=1e-6, atol=1e-6)


def test_a_linear_model_gives_ridge_regression() -> None:
    model, x, new, y = nn.Linear(4, 2).double(), draws(9, 4), draws(3, 4, seed=2), draws(9, 2, seed=1)
    kernel, cross = (
        blocks(ntk(model, x, mode="class"), "class", 2),
        blocks(ntk(model, new, x, mode="class"), "class", 2),
    )
    ridge = 0.3
    absolute = ridge * kernel[0].diagonal().mean()
    residual = (y - model(x)).detach()
    moved = values_of(cross @ solve(kernel, outputs_of(residual, "class"), ridge), "class", 2)
    ones = torch.cat([x, torch.ones(9, 1)], 1)
    weights = torch.linalg.solve(ones.T @ ones + absolute * torch.eye(5), ones.T @ residual)
    torch.testing.assert_close(moved, torch.cat([new, torch.ones(3, 1)], 1) @ weights)


def test_a_kernel_of_equal_samples_needs_a_ridge() -> None:
    kernel = torch.ones(1, 4, 4, dtype=torch.float64)
    with pytest.raises(InputError, match="take a larger ridge"):
        solve(kernel, draws(1, 4, 1), 0.0)
    assert solve(kernel, draws(1, 4, 1), 1e-3).isfinite().all()


@pytest.mark.parametrize("mode", MODES)
def test_eigenfunctions_rebuild_kernel_and_solution(mode: Mode) -> None:
    model, x, new, y = network(), draws(7, 4), draws(4, 4, seed=2), draws(7, 3, seed=1)
    kernel, cross = blocks(ntk(model, x, mode=mode), mode, 3), blocks(ntk(model, new, x, mode=mode), mode, 3)
    functions = Eigenfunctions.of(kernel)
    on_data, elsewhere = functions.at(kernel), functions.at(cross)
    torch.testing.assert_close(on_data @ on_data.mT, kernel)
    torch.testing.assert_close(elsewhere @ on_data.mT, cross, rtol=1e-6, atol=1e-6)
    mean_square = (on_data**2).mean(1)
    torch.testing.assert_close(mean_square, functions.values / kernel.shape[-1])
    residual = outputs_of(y, mode)
    coefficients = functions.coefficients(residual, 1e-2)
    torch.testing.assert_close(elsewhere @ coefficients, cross @ solve(kernel, residual, 1e-2))


def test_all_eigenfunctions_together_hold_the_projection_of_a_gradient() -> None:
    """E_loc <= k(x, x), with equality where x's gradients lie in the span of the data's."""
    model, x = network(), draws(7, 4)
    new = torch.cat([x[:2], draws(3, 4, seed=2)])
    functions = Eigenfunctions.of(blocks(ntk(model, x), "full", 3))
    phi = functions.at(blocks(ntk(model, new, x), "full", 3))
    energy = local_energy(phi, torch.ones_like(functions.values, dtype=torch.bool), "full", 3)
    whole = ntk(model, new, mode="trace").diagonal()
    torch.testing.assert_close(energy[:2], whole[:2])
    assert (energy[2:] < whole[2:]).all()


def test_few_eigenfunctions_carry_a_solution_made_of_few() -> None:
    basis = torch.linalg.qr(draws(6, 6)).Q
    values = torch.tensor([9.0, 7.0, 5.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    functions = Eigenfunctions.of((basis * values @ basis.T)[None])
    residual = (2 * basis[:, 1] - basis[:, 4])[None, :, None]
    carried = functions.carrying(functions.coefficients(residual, 0.0))
    assert carried[0].tolist() == [False, True, False, False, True, False]
    alone = functions.carrying(functions.coefficients(residual, 0.0), share=0.5)
    assert alone[0].tolist() == [False, True, False, False, False, False]


class Separable(nn.Module):
    """Two blocks of weights; an input that is zero in one block never meets its weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right = (nn.Linear(3, 5, bias=False) for _ in range(2))
        self.out = nn.Parameter(torch.randn(10, 2))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.cat([self.left(x[:, :3]).tanh(), self.right(x[:, 3:]).tanh()], 1)
        return hidden @ self.out


@pytest.mark.parametrize("mode", MODES)
def test_localization_is_exact_where_blocks_are_separate(mode: Mode) -> None:
    model = Separable().double()
    empty = torch.zeros(6, 3, dtype=torch.float64)
    task, control = torch.cat([draws(6, 3), empty], 1), torch.cat([empty, draws(6, 3, seed=1)], 1)
    held_out = torch.cat([draws(6, 3, seed=2), empty], 1)
    kernel = blocks(ntk(model, task, mode=mode), mode, 2)
    functions = Eigenfunctions.of(kernel)
    carried = functions.carrying(functions.coefficients(outputs_of(draws(6, 2, seed=3), mode)))
    energies = [
        local_energy(functions.at(blocks(ntk(model, x, task, mode=mode), mode, 2)), carried, mode, 2)
        for x in (held_out, control)
    ]
    assert (energies[0] > 1e-3).all() and not energies[1].any()
    assert auroc(*energies) == 1.0


def test_auroc_counts_ties_as_half() -> None:
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])) == pytest.approx(3.5 / 4)


def test_targets_are_as_large_as_the_logits_and_name_the_label() -> None:
    start, labels = draws(5, 4), torch.tensor([0, 3, 1, 2, 2])
    targets = regression_targets(labels, start)
    assert targets.argmax(-1).tolist() == labels.tolist()
    torch.testing.assert_close(targets.mean(-1), start.mean(-1))


def test_the_analysis_of_two_tasks_says_all_that_decides_it(evaluator: tv.Evaluator, tmp_path: Path) -> None:
    delta = {name: 0.01 * torch.randn_like(value) for name, value in evaluator.pretrained.items()}
    vector = tv.TaskVector.from_tensors(delta, tv.open_weights(evaluator.backbone.ref))
    record = explain(evaluator, vector, samples=12, mode="full", ridge=1e-6)
    again = explain(evaluator, vector, samples=12, mode="full", ridge=1e-6)
    assert record == again
    assert record.examples.model_dump() == {"train": 12, "task": 12, "control": 12}
    assert set(record.numbers) == {"local_energy", "movement", "score"}
    assert record.accuracy["kernel"].train == 1.0
    assert len(record.spectrum) == 1 and len(record.spectrum[0]) == 24
    tables = record.tables()
    assert [len(table.rows) for table in tables] == [3, 3]
    record.figures()["figure"].savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_cheap_score_is_the_square_of_a_finite_difference(evaluator: tv.Evaluator) -> None:
    delta = {name: 1e-3 * torch.ones_like(value) for name, value in evaluator.pretrained.items()}
    vector = tv.TaskVector.from_tensors(delta, tv.open_weights(evaluator.backbone.ref))
    record = explain(evaluator, vector, samples=6)
    points = evaluator.points({"v": vector})
    ahead, _ = evaluator.features(points.at({"v": 0.5}), "pets", "test")
    behind, _ = evaluator.features(points.at({"v": -0.5}), "pets", "test")
    exact = {round(float(value), 6) for value in ((ahead - behind).double() ** 2).sum(-1)}
    for score in record.numbers["score"].task:
        assert min(abs(score - value) for value in exact) < 1e-2 * score + 1e-6


def test_attention_weights_alone_are_fewer(evaluator: tv.Evaluator) -> None:
    record = explain(evaluator, samples=4, params="attention")
    assert record.parameters == 2 * 4 * 16 * 16
    assert "score" not in record.numbers


def test_a_task_is_no_control_of_its_own(evaluator: tv.Evaluator) -> None:
    with pytest.raises(InputError, match="pets: is task and control"):
        explain(evaluator, control="pets")


def test_the_command_writes_record_table_and_figure(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "kernel"
    command = ["analyze", "ntk", str(tiny_model), "-s", str(tiny_suite), "-t", "pets", "--control", "taste"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--samples", "6", "-o", str(out), "-q"])
    assert ended.value.code == 0
    assert {path.name for path in out.iterdir()} == {"record.json", "table.md", "figure.png"}
    assert "local energy" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([*command, "-o", str(out)])
    assert ended.value.code == 2
    assert "--force" in capsys.readouterr().err
