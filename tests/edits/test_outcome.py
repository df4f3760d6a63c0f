"""What is said of an edit once it is written: how much changed, and whether anything did."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from taskvec.cli import main
from taskvec.edits.outcome import summarize_change
from taskvec.vectors import TaskVector, apply
from taskvec.weights import open_weights, save_weights

SHAPES = {"embed.weight": (40, 8), "layers.0.weight": (8, 8), "layers.1.weight": (8, 8), "norm.weight": (8,)}
TYPES = [torch.float32, torch.bfloat16, torch.float16]


def state(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    floats = {name: torch.randn(shape, generator=g) for name, shape in SHAPES.items()}
    return {**floats, "position_ids": torch.arange(4)}


def tuned(seed: int) -> dict[str, Tensor]:
    """The base, of which the second layer and half of the embedding stay as they are."""
    step, model = state(seed), state(0)
    for name in ("embed.weight", "layers.0.weight", "norm.weight"):
        model[name] = model[name] + 0.05 * step[name]
    model["embed.weight"][20:] = state(0)["embed.weight"][20:]
    return model


def cast(model: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in model.items()}


@pytest.fixture(params=TYPES, ids=str)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, two fine-tuned models, the vector of one, and recipes."""
    monkeypatch.chdir(tmp_path)
    save_weights(cast(state(0), request.param), "base")
    for seed, name in enumerate("ab", start=1):
        save_weights(cast(tuned(seed), request.param), name)
    TaskVector.between("base", "a").save("v.safetensors")
    recipe("sum", expression="0.3*a - 0.6*b")
    recipe("zero", expression="0.3*a - 0.6*b", scale=0)
    recipe("one", expression="a + 0*b")
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in ("base", "a", "b")]
    Path("linear.yaml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    return tmp_path


def recipe(name: str, **more: Any) -> None:
    content = {"base": "base", "models": {"a": "a", "b": "b"}, **more}
    Path(f"{name}.yaml").write_text(yaml.safe_dump(content))


Run = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command that ends well; its facts, and what it said besides."""

    def ended(*words: str) -> tuple[dict[str, Any], str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main([*words, "--json", "-q"])
        assert done.value.code == 0
        out, said = capsys.readouterr()
        return json.loads(out), said

    return ended


def counted(before: str, after: dict[str, Tensor]) -> tuple[int, float, float]:
    """Tensors that changed, share of entries, relative norm, from the tensors themselves."""
    start = open_weights(before)
    pairs = [(start[name].double(), after[name].double()) for name in SHAPES]
    steps = torch.cat([(end - own).flatten() for own, end in pairs])
    norm = torch.cat([own.flatten() for own, _ in pairs]).norm()
    return (
        sum(bool((own != end).any()) for own, end in pairs),
        float(steps.count_nonzero() / len(steps)),
        float(steps.norm() / norm),
    )


EDITS = {
    "a recipe": ["merge", "sum.yaml", "-o", "out"],
    "weights of mergekit": ["merge", "linear.yaml", "-o", "out"],
    "apply": ["apply", "base", "-v", "v=v.safetensors", "-e", "0.7*v", "-o", "out"],
    "one file": ["apply", "base", "-v", "v=v.safetensors", "-e", "-v", "-o", "out/model.safetensors"],
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_says_how_much_it_changed(edit: str, place: Path, run: Run) -> None:
    facts, said = run(*EDITS[edit])
    tensors, share, norm = counted("base", dict(open_weights("out")))
    assert facts["changed_tensors"] == tensors
    assert facts["changed_share"] == pytest.approx(share, rel=1e-5)
    assert facts["relative_norm"] == pytest.approx(norm, rel=1e-5)
    assert "byte-identical" not in said
    if edit != "one file":
        assert json.loads(Path("out/taskvec.json").read_text())["change"] == {
            "changed tensors": tensors,
            "changed share": facts["changed_share"],
            "relative norm": facts["relative_norm"],
        }


def test_diff_says_how_far_the_vector_leads(place: Path, run: Run) -> None:
    facts, _ = run("diff", "base", "a", "-o", "w.safetensors")
    tensors, share, norm = counted("base", dict(open_weights("a")))
    assert (facts["changed_tensors"], facts["unchanged_tensors"]) == (tensors, 1)
    assert facts["changed_share"] == pytest.approx(share, rel=1e-5)
    assert facts["relative_norm"] == pytest.approx(norm, rel=1e-5)
    assert facts["norm"] == pytest.approx(TaskVector.load("w.safetensors").norm())


@pytest.mark.parametrize(
    ("edit", "same"),
    [
        (["merge", "zero.yaml"], "base"),
        (["apply", "base", "-v", "v=v.safetensors", "--scale", "0"], "base"),
        (["apply", "base", "-v", "v=v.safetensors", "-e", "1e-30*v"], "base"),
        (["merge", "one.yaml"], "a"),
    ],
    ids=["a scale of 0", "a scale of 0 in apply", "a coefficient too small to matter", "one whole model"],
)
@pytest.mark.parametrize("out", ["out", "out.safetensors"])
def test_an_output_that_is_an_input_once_more_is_said_loudly(
    edit: list[str], same: str, out: str, place: Path, run: Run
) -> None:
    facts, said = run(*edit, "-o", out)
    assert said.count("\n") == 1 and said.startswith(f"note: the output is byte-identical to {same}: ")
    assert facts["changed_tensors"] == (0 if same == "base" else 3)
    assert open_weights(out).fingerprint() == open_weights(same).fingerprint()


def test_a_model_like_its_base_gives_a_vector_that_is_said_to_be_zero(place: Path, run: Run) -> None:
    save_weights(open_weights("base"), "copy.safetensors")
    facts, said = run("diff", "base", "copy.safetensors", "-o", "w.safetensors")
    assert said == "note: copy.safetensors: the same weights as base: the task vector is zero\n"
    assert (facts["changed_tensors"], facts["changed_share"], facts["relative_norm"]) == (0, 0.0, 0.0)


@pytest.mark.parametrize("processes", [1, 2])
def test_what_changed_comes_back_from_all_workers(place: Path, processes: int) -> None:
    edited = apply("base", 0.5 * TaskVector.between("base", "a"))
    save_weights(edited, "out", max_shard_size=300, processes=processes, threads=2)
    tensors, share, norm = counted("base", dict(open_weights("out")))
    assert summarize_change(edited.changes) == pytest.approx(
        {"changed tensors": tensors, "changed share": share, "relative norm": norm}, rel=1e-5
    )
    assert edited.fingerprint() == open_weights("out").fingerprint()


def test_a_norm_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    edited = apply(
        {"w": torch.zeros(4)}, TaskVector.from_tensors({"w": torch.ones(4)}, {"w": torch.zeros(4)})
    )
    save_weights(edited, tmp_path / "out.safetensors")
    assert summarize_change(edited.changes) == {"changed tensors": 1, "changed share": 1.0}
    assert summarize_change(None) == {}
