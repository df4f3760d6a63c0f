"""diff, apply, inspect and rules, as a user types them."""
# ruff: noqa: E501  # the table of bad input reads best with a case on a line

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from taskvec.cli import main
from taskvec.rules import RULES
from taskvec.vectors import TaskVector
from taskvec.weights import Weights, open_weights, save_weights

SHAPES = {"emb.weight": (6, 4), "layer.0.weight": (4, 4), "layer.0.bias": (4,), "layer.1.weight": (4, 4)}


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    floats = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {**floats, "position_ids": torch.arange(4)}


def tuned(seed: int) -> dict[str, Tensor]:
    """The base, moved; layer.1 stays."""
    step = state(seed)
    held = {"layer.1.weight", "position_ids"}
    return {name: value if name in held else value + 0.1 * step[name] for name, value in state(0).items()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, two fine-tuned models and their vectors."""
    monkeypatch.chdir(tmp_path)
    save_weights(state(0), "base")
    Path("base/config.json").write_text('{"model_type": "tiny"}')
    for seed, name in enumerate(("a", "b"), start=1):
        save_weights(tuned(seed), f"tuned-{name}", max_shard_size=100)
        TaskVector.between("base", f"tuned-{name}").save(f"{name}.safetensors", task=name)
    return tmp_path


_ELSEWHERE = '{"format": 1, "base": {"ref": "far", "fingerprint": "00"}, "tuned": "far-tuned"}'


class Run:
    """What a command printed and how it ended."""

    def __init__(self, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main(arguments)
        self.code = int(done.value.code or 0)
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> dict[str, object]:
        return dict(json.loads(self.out))


Runner = Callable[..., Run]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return lambda *arguments: Run(capsys, arguments)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_diff_writes_a_vector_and_says_what_changed(place: Path, run: Runner) -> None:
    done = run("diff", "base", "tuned-a", "-o", "new", "--task", "sst2", "--json")
    assert done.code == 0
    assert (done.json["changed_tensors"], done.json["unchanged_tensors"]) == (3, 1)
    assert done.json["base_fingerprint"] == open_weights("base").fingerprint()
    vector = TaskVector.load("new")
    assert vector.info.task == "sst2"
    assert done.json["norm"] == pytest.approx(vector.norm())
    assert torch.allclose(vector["layer.0.bias"], tuned(1)["layer.0.bias"] - state(0)["layer.0.bias"])


def test_diff_says_which_integer_tensors_stay_with_the_base(place: Path, run: Runner) -> None:
    save_file({**tuned(1), "position_ids": torch.arange(4) + 1}, "other.safetensors")
    done = run("diff", "base", "other.safetensors", "-o", "v.safetensors", "--json")
    assert done.json["integer_tensors_left_to_the_base"] == ["position_ids"]
    assert "position_ids" in run("diff", "base", "other.safetensors", "-o", "w.safetensors").out


def test_diff_can_store_halves_and_leave_out_what_only_one_model_has(place: Path, run: Runner) -> None:
    smaller = {name: value for name, value in tuned(1).items() if name != "layer.1.weight"}
    save_file({**smaller, "head": torch.ones(2)}, "headed.safetensors")
    options = ("--dtype", "bfloat16", "--on-extra", "drop", "--on-missing", "zero")
    assert run("diff", "base", "headed.safetensors", "-o", "v.safetensors", *options).code == 0
    assert {value.dtype for value in load_file("v.safetensors").values()} == {torch.bfloat16}


def expected(coefficients: dict[int, float]) -> dict[str, Tensor]:
    base = {name: value.double() for name, value in state(0).items()}
    return {
        name: value + sum(c * (tuned(seed)[name].double() - value) for seed, c in coefficients.items())
        for name, value in base.items()
    }


def assert_model(path: str, want: dict[str, Tensor]) -> None:
    edited = open_weights(path)
    assert set(edited) == set(want)
    for name, value in want.items():
        torch.testing.assert_close(edited[name].double(), value, rtol=0, atol=5e-7)


def test_apply_writes_the_sum(place: Path, run: Runner) -> None:
    vectors = ("-v", "a=a.safetensors", "-v", "b=b.safetensors")
    done = run("apply", "base", *vectors, "-e", "0.4*a - 0.3*b", "-o", "out", "--json")
    assert (done.code, done.json["edited_tensors"], done.json["copied_tensors"]) == (0, 3, 2)
    assert_model("out", expected({1: 0.4, 2: -0.3}))
    assert Path("out/config.json").read_text() == Path("base/config.json").read_text()
    assert run("apply", "base", *A, "-e", "-a", "--scale", "-0.5", "-o", "one.safetensors").code == 0
    assert_model("one.safetensors", expected({1: 0.5}))


def test_apply_takes_one_vector_without_an_expression(place: Path, run: Runner) -> None:
    assert run("apply", "base", "-v", "a=a.safetensors", "-o", "out", "--quiet").err == ""
    assert_model("out", expected({1: 1.0}))


def test_the_manifest_holds_what_it_takes_to_do_it_again(place: Path, run: Runner) -> None:
    vectors = ("-v", "a=a.safetensors", "-v", "b=b.safetensors")
    run("apply", "base", *vectors, "--rule", "ties", "--param", "keep=0.5", "--scale", "0.8", "-o", "out")
    manifest = json.loads(Path("out/taskvec.json").read_text())
    assert manifest["inputs"]["base"]["fingerprint"] == open_weights("base").fingerprint()
    assert manifest["vectors"]["a"]["task"] == "a" and manifest["vectors"]["b"]["path"] == "b.safetensors"
    assert manifest["rule"] == {
        "name": "ties", "keep": 0.5, "trim": "tensor", "elect": "mass", "merge": "mean", "weights": None,
        "weigh": "before",
    }  # fmt: skip
    assert manifest["recipe"]["scale"] == 0.8


def test_apply_writes_what_the_recipe_in_its_model_card_writes(place: Path, run: Runner) -> None:
    run("apply", "base", *AB, "--rule", "ties", "-p", "keep=0.5", "--scale", "0.8", "-o", "out", "-q")
    card = Path("out/README.md").read_text()
    Path("again.yaml").write_text(card.split("```yaml\n")[1].split("```")[0])
    run("merge", "again.yaml", "-o", "again", "-q")
    out, again = (json.loads(Path(folder, "taskvec.json").read_text()) for folder in ("out", "again"))
    assert out == again
    assert out["inputs"]["a"]["fingerprint"] == open_weights("a.safetensors").fingerprint()
    assert out["inputs"]["a"]["fingerprint"] in card


def test_the_model_card_of_apply_holds_no_absolute_path(place: Path, run: Runner) -> None:
    base, vector = place / "base", place / "a.safetensors"
    assert run("apply", str(base), "-v", f"a={vector}", "-o", "edited").code == 0
    card = Path("edited/README.md").read_text()
    assert str(place) not in card
    assert "base: base" in card
    recipe = json.loads(Path("edited/taskvec.json").read_text())["recipe"]
    assert recipe["base"] == str(base)


@pytest.fixture
def unread(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no weights may be read as a whole."""

    def fail(self: Weights) -> dict[str, bytes]:
        pytest.fail(f"{self.ref} is read as a whole")

    monkeypatch.setattr(Weights, "digests", fail)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "base/inside"], "base"),
        (["-o", "there"], "--force"),
        (["-o", "new", "--memory", "much"], "--memory"),
        (["-o", "new", "-v", "b=other.safetensors", "-e", "a+b"], "was it taken from another model"),
    ],
)
def test_what_can_be_refused_by_headers_is_refused_before_anything_is_read(
    options: list[str], message: str, place: Path, run: Runner
) -> None:
    Path("there").write_text("")
    save_file({"elsewhere": torch.zeros(2)}, "other.safetensors", {"taskvec": _ELSEWHERE})
    result = run("apply", "base", "-v", "a=a.safetensors", *options)
    assert result.code == 2
    assert message in result.err


def test_provenance_is_recorded_without_another_pass_over_the_base(
    place: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[bool] = []
    digests = Weights.digests

    def count(self: Weights) -> dict[str, bytes]:
        passes.append(self.tally is None)
        return digests(self)

    monkeypatch.setattr(Weights, "digests", count)
    options = ("-v", "a=a.safetensors", "--allow-other-base", "-o", "edited")
    assert run("apply", "base", *options).code == 0
    assert not any(passes)


def test_null_leaves_a_parameter_to_the_rule(place: Path, run: Runner) -> None:
    vectors = ("-v", "a=a.safetensors", "-v", "b=b.safetensors", "--rule", "sum")
    assert run("apply", "base", *vectors, "-o", "plain").code == 0
    assert run("apply", "base", *vectors, "-p", "weights=null", "-o", "nothing").code == 0
    plain, nothing = (load_file(f"{folder}/model.safetensors") for folder in ("plain", "nothing"))
    assert all(torch.equal(plain[name], nothing[name]) for name in plain)


def test_a_parameter_that_is_a_mapping_may_be_an_empty_one(place: Path, run: Runner) -> None:
    vectors = ("-v", "a=a.safetensors", "-v", "b=b.safetensors", "--rule", "knots", "-p", "inner=ties")
    assert run("apply", "base", *vectors, "-p", "options={}", "-o", "edited").code == 0


def test_apply_shows_the_plan_of_a_dry_run(place: Path, run: Runner) -> None:
    before = snapshot(place)
    apply = ("apply", "base", *AB, "-e", "a - b", "-o", "out", "--dry-run")
    planned = run(*apply, "--json").json
    assert (planned["edited"], planned["copied"], planned["passes"]) == (3, 2, 1)
    assert "Nothing was written" in run(*apply).out
    assert snapshot(place) == before


def test_a_parameter_may_be_nothing_or_a_mapping(place: Path, run: Runner) -> None:
    for rule, parameter in (("della", "rescale=null"), ("knots", "options={keep: 0.3}")):
        assert run("apply", "base", *AB, "--rule", rule, "-p", parameter, "-o", rule, "-q").code == 0
    assert json.loads(Path("della/taskvec.json").read_text())["rule"]["rescale"] is None
    assert json.loads(Path("knots/taskvec.json").read_text())["rule"]["options"] == {"keep": 0.3}


@pytest.mark.parametrize(("rule", "share"), [("sum", 1.0), ("mean", 0.5)])
def test_apply_combines_by_a_rule(rule: str, share: float, place: Path, run: Runner) -> None:
    vectors = ("-v", "a=a.safetensors", "-v", "b=b.safetensors")
    assert run("apply", "base", *vectors, "--rule", rule, "-o", "out").code == 0
    assert_model("out", expected({1: share, 2: share}))
    weights = ("--rule", rule, "-p", "weights=[3, 1]", "-o", "weighed")
    assert run("apply", "base", *vectors, *weights).code == 0
    total = 1 if rule == "sum" else 4
    assert_model("weighed", expected({1: 3 / total, 2: 1 / total}))


def test_apply_runs_a_chain_of_rules_and_records_it(place: Path, run: Runner) -> None:
    vectors = ("-v", "a=a.safetensors", "-v", "b=b.safetensors")
    chain = ("--rule", "dare+ties", "-p", "density=0.5", "-p", "keep=1", "-p", "seed=3")
    for out in ("out", "again"):
        assert run("apply", "base", *vectors, *chain, "-o", out).code == 0
    assert open_weights("out").fingerprint() == open_weights("again").fingerprint()
    rule = json.loads(Path("out/taskvec.json").read_text())["rule"]
    assert (rule["name"], rule["density"], rule["seed"], rule["keep"]) == ("dare+ties", 0.5, 3, 1.0)


def test_rules_on_weights_read_those_of_the_base(place: Path, run: Runner) -> None:
    vectors = ("-v", "a=a.safetensors", "-v", "b=b.safetensors")
    for t, seed in ((0, 1), (1, 2)):
        out = f"out{t}"
        assert run("apply", "base", *vectors, "--rule", "slerp", "-p", f"t={t}", "-o", out).code == 0
        assert_model(out, expected({seed: 1.0}))
    foreign = run("apply", "tuned-b", *vectors, "--rule", "slerp", "-o", "out")
    assert foreign.code == 2 and open_weights("tuned-b").fingerprint() in foreign.err


def test_another_base_is_refused_unless_it_is_meant(place: Path, run: Runner) -> None:
    apply = ("apply", "tuned-b", "-v", "a=a.safetensors", "-o", "out")
    refused = run(*apply)
    assert refused.code == 2
    for base in ("base", "tuned-b"):
        assert open_weights(base).fingerprint() in refused.err
    assert run(*apply, "--allow-other-base").code == 0
    assert_model(
        "out", {n: tuned(2)[n].double() + tuned(1)[n].double() - state(0)[n].double() for n in state(0)}
    )


def test_inspect_shows_kinds_norms_and_angles(place: Path, run: Runner) -> None:
    shown = run("inspect", "base", "a.safetensors", "b.safetensors", "--json")
    files = shown.json["files"]
    assert isinstance(files, list)
    assert [entry["kind"] for entry in files] == ["weights", "task vector", "task vector"]
    a, b = TaskVector.load("a.safetensors"), TaskVector.load("b.safetensors")
    assert files[1]["norm"] == pytest.approx(a.norm())
    assert set(files[1]["norms_by_layer"]) == {"emb", "layer.0", "layer.1"}
    assert files[0]["fingerprint"] == files[1]["base_fingerprint"] == open_weights("base").fingerprint()
    cosines = shown.json["cosines"]
    assert isinstance(cosines, list) and cosines[0][1] == pytest.approx(a.cosine(b))
    text = run("inspect", "a.safetensors", "b.safetensors").out
    assert "cosines" in text and "layer.0" in text and "task vector" in text
    assert "norm" not in run("inspect", "base", "--headers", "--json").json["files"][0]  # type: ignore[index]


def test_rules_are_listed_and_explained(run: Runner) -> None:
    assert [line.split()[0] for line in run("rules").out.splitlines()] == ["rule", *RULES]
    assert "arXiv:2306.01708" in run("rules", "ties").out
    shown = run("rules", "ties", "--json").json
    assert shown["parameters"] == {
        "keep": 0.2, "trim": "tensor", "elect": "mass", "merge": "mean", "weights": None, "weigh": "before",
    }  # fmt: skip
    assert run("rules", "tise").code == 2


def truncated(name: str) -> None:
    path = Path(name)
    path.write_bytes(path.read_bytes()[:-5])


def corrupt() -> None:
    Path("x.safetensors").write_bytes(b"\0" * 99)


def hostile() -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.mkdir, ("sprung",))

    torch.save({"emb.weight": Trap()}, "evil.bin")


def lying_index() -> None:
    path = Path("tuned-a/model.safetensors.index.json")
    content = json.loads(path.read_text())
    content["weight_map"]["ghost"] = next(iter(content["weight_map"].values()))
    path.write_text(json.dumps(content))


def variant(name: str, change: dict[str, Tensor | None]) -> Callable[[], None]:
    def make() -> None:
        model = {key: value for key, value in {**tuned(1), **change}.items() if value is not None}
        save_file(model, name)

    return make


def broken_vector() -> None:
    save_file(
        {"layer.0.bias": torch.full((4,), float("nan"))}, "v.safetensors", metadata=header("a.safetensors")
    )


def foreign_vector() -> None:
    save_file({"wte": torch.ones(4)}, "v.safetensors", metadata=header("a.safetensors"))


def unmarked_vector() -> None:
    save_file({"layer.0.bias": torch.ones(4)}, "v.safetensors", metadata={"taskvec": '{"format": 1}'})


def header(path: str) -> dict[str, str]:
    content = json.loads(open_weights(path).metadata["taskvec"])
    return {"taskvec": json.dumps({**content, "unchanged": {}})}


def nothing() -> None:
    pass


A, AB = ["-v", "a=a.safetensors"], ["-v", "a=a.safetensors", "-v", "b=b.safetensors"]
BAD: dict[str, tuple[Callable[[], None], list[str], str]] = {
    "missing key": (variant("m.safetensors", {"emb.weight": None}), ["diff", "base", "m.safetensors"], "m.safetensors: 'emb.weight' is missing"),
    "foreign key": (variant("m.safetensors", {"head": torch.ones(1)}), ["diff", "base", "m.safetensors"], "m.safetensors: 'head' found"),
    "shape": (variant("m.safetensors", {"layer.0.bias": torch.ones(5)}), ["diff", "base", "m.safetensors"], "'layer.0.bias' has shape (5,), expected (4,)"),
    "dtype": (variant("m.safetensors", {"layer.0.bias": torch.ones(4).to(torch.float8_e5m2)}), ["diff", "base", "m.safetensors"], "'layer.0.bias' has dtype float8_e5m2, expected float32"),
    "vocabulary": (variant("m.safetensors", {"emb.weight": torch.ones(8, 4)}), ["diff", "base", "m.safetensors"], "vocabularies of 8 and 6 tokens"),
    "another base": (nothing, ["apply", "tuned-b", *A], "a.safetensors: base base (fingerprint"),
    "non-finite weights": (variant("m.safetensors", {"layer.0.bias": torch.full((4,), float("inf"))}), ["diff", "base", "m.safetensors", "-q"], "m.safetensors - base: 'layer.0.bias' holds 4 values that are NaN or infinite"),
    "non-finite vector": (broken_vector, ["apply", "base", "-v", "a=v.safetensors", "-q"], "'layer.0.bias' holds 4 values that are NaN"),
    "non-finite coefficient": (nothing, ["apply", "base", *A, "--scale", "nan"], "scale: nan"),
    "infinite coefficient": (nothing, ["apply", "base", *A, "-e", "1e999*a"], "number too large"),
    "truncated base": (lambda: truncated("base/model.safetensors"), ["apply", "base", *A], "base/model.safetensors: holds"),
    "truncated vector": (lambda: truncated("a.safetensors"), ["apply", "base", *A], "a.safetensors: holds"),
    "corrupt file": (corrupt, ["diff", "base", "x.safetensors"], "x.safetensors: "),
    "missing shard": (lambda: sorted(Path("tuned-a").glob("*.safetensors"))[0].unlink(), ["diff", "base", "tuned-a"], "tuned-a/model.safetensors.index.json: shard 'model-00001"),
    "an index that lies": (lying_index, ["diff", "base", "tuned-a"], "tuned-a/model.safetensors.index.json: 'ghost' is not in"),
    "a name given twice": (nothing, ["apply", "base", "-v", "a=a.safetensors", "-v", "a=b.safetensors"], "--vector: the name 'a' is given twice"),
    "a name twice in the expression": (nothing, ["apply", "base", *A, "-e", "a + a"], "'a' stands 2 times"),
    "unknown name": (nothing, ["apply", "base", *AB, "-e", "a + c"], "no vector called 'c'; known: a, b"),
    "no expression": (nothing, ["apply", "base", *AB, "-e", "a +"], "expression 'a +': invalid syntax"),
    "unused vector": (nothing, ["apply", "base", *AB, "-e", "a"], "--vector: 'b' is not in the expression"),
    "the same vector twice": (nothing, ["apply", "base", "-v", "a=a.safetensors", "-v", "b=./a.safetensors", "-e", "a+b"], "'b' and 'a' are the same vector, ./a.safetensors"),
    "several vectors and no expression": (nothing, ["apply", "base", *AB], "several vectors need an expression"),
    "an expression and a rule": (nothing, ["apply", "base", *AB, "-e", "a+b", "--rule", "sum"], "--rule: given together with"),
    "unknown rule": (nothing, ["apply", "base", *AB, "--rule", "tise"], "no rule called 'tise'; did you mean 'ties'?"),
    "unknown parameter": (nothing, ["apply", "base", *AB, "--rule", "ties", "-p", "kep=1"], "unknown parameter 'kep'; did you mean 'keep'?"),
    "parameter out of range": (nothing, ["apply", "base", *AB, "--rule", "ties", "-p", "keep=2"], "rule 'ties': keep is 2"),
    "a chain in another order": (nothing, ["apply", "base", *AB, "--rule", "ties+dare"], "rule 'ties+dare': ties (merge), dare (each), expected"),
    "a fraction that empties tensors": (nothing, ["apply", "base", *AB, "--rule", "dare", "-p", "density=0"], "rule 'dare': density is 0"),
    "parameters that do not go together": (nothing, ["apply", "base", *AB, "--rule", "breadcrumbs", "-p", "density=1"], "rule 'breadcrumbs': density 1 and gamma 0.01"),
    "too many vectors for a rule": (nothing, ["apply", "base", *AB, "--rule", "passthrough"], "rule 'passthrough': 2 task vectors, expected 1"),
    "no blocks for depth": (nothing, ["apply", "base", *AB, "--rule", "lines", "-p", "blocks='none(.)'"], "rule 'lines': no tensor name matches blocks 'none(.)'"),
    "parameter without a rule": (nothing, ["apply", "base", *A, "-p", "keep=2"], "--param: given without --rule"),
    "no such vector": (nothing, ["apply", "base", "-v", "a=nowhere"], "nowhere: no such file"),
    "no such base": (nothing, ["apply", "nowhere", *A], "nowhere: no such file"),
    "weights for a vector": (nothing, ["apply", "base", "-v", "a=tuned-a"], "tuned-a: holds weights, expected a task vector"),
    "a vector for a base": (nothing, ["apply", "b.safetensors", *A], "b.safetensors: holds a task vector, expected the weights"),
    "foreign tensors in a vector": (foreign_vector, ["apply", "base", "-v", "a=v.safetensors"], "v.safetensors: 'wte' found, expected a tensor of the base"),
    "no fingerprint": (unmarked_vector, ["apply", "base", "-v", "a=v.safetensors"], "v.safetensors: base unknown (fingerprint unknown)"),
    "a pickle with code": (hostile, ["diff", "base", "evil.bin"], "evil.bin: holds more than tensors"),
    "not a pair": (nothing, ["apply", "base", "-v", "a.safetensors"], "--vector: 'a.safetensors' is not of the form name=value"),
    "shards of no size": (nothing, ["apply", "base", *A, "--max-shard-gb", "nan"], "--max-shard-gb. expected a number above 0"),
    "inspect nothing": (nothing, ["inspect", "nowhere"], "nowhere: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_changes_nothing(case: str, place: Path, run: Runner) -> None:
    prepare, arguments, words = BAD[case]
    prepare()
    before = snapshot(place)
    done = run(*arguments, *(() if arguments[0] == "inspect" else ("-o", "out")))
    assert done.code == 2
    assert words in done.err and done.err.count("\n") == 1 and done.out == ""
    assert snapshot(place) == before
    assert not Path("sprung").exists()


@pytest.mark.parametrize("target", ["base", "base/model.safetensors", ".", "a.safetensors"])
def test_an_output_that_is_an_input_is_refused_even_with_force(target: str, place: Path, run: Runner) -> None:
    before = snapshot(place)
    done = run("apply", "base", *A, "-o", target, "--force")
    assert done.code == 2 and "is an input" in done.err
    assert snapshot(place) == before


def test_an_output_that_exists_needs_force(place: Path, run: Runner) -> None:
    run("apply", "base", *A, "-o", "out")
    before = snapshot(place)
    refused = run("apply", "base", *AB, "-e", "a-b", "-o", "out")
    assert refused.code == 2 and "out: exists already; --force" in refused.err
    assert snapshot(place) == before
    assert run("apply", "base", *AB, "-e", "a-b", "-o", "out", "--force").code == 0
    assert_model("out", expected({1: 1.0, 2: -1.0}))


def test_a_full_disk_is_said_before_work_starts(
    place: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(place)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    for arguments in (["apply", "base", *A], ["diff", "base", "tuned-a"]):
        done = run(*arguments, "-o", "out")
        assert done.code == 2 and "out: needs 0.0 MB" in done.err and done.err.count("\n") == 1
    assert snapshot(place) == before


def test_an_interrupted_edit_leaves_nothing(
    place: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = snapshot(place)
    monkeypatch.setattr("taskvec.weights.writer.stream", interrupted)
    assert run("apply", "base", *A, "-o", "out").code == 130
    monkeypatch.undo()
    assert snapshot(place) == before and not list(place.glob(".*"))


def test_a_second_interrupt_disturbs_nothing(place: Path) -> None:
    code = (
        "import atexit, os, signal, time, taskvec.weights.writer as writer\n"
        "from taskvec.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where tests run in the background
        "def interrupt(*_, **__): os.kill(os.getpid(), signal.SIGINT); time.sleep(1)\n"
        "writer.stream, remove = interrupt, writer.staged._leave\n"
        "writer.staged._leave = lambda self: (interrupt(), remove(self))\n"
        "atexit.register(interrupt)\n"
        "main(['apply', 'base', '-v', 'a=a.safetensors', '-o', 'out'])\n"
    )
    before = snapshot(place)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        130,
        "taskvec: interrupted; nothing half-written was left behind\n",
    )
    assert snapshot(place) == before and not list(place.glob(".*"))
