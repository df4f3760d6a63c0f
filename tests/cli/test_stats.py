"""``taskvec stats``: what it stores, and what the rules make of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import BertConfig, BertModel

import taskvec as tv
from checkpoints import SHAPE
from taskvec.cli import main
from taskvec.errors import InputError, KeyMismatch
from taskvec.vectors.statistics import read_statistics

TASKS = ("pets", "taste")
LAYER = "encoder.layer.0.output.dense.weight"


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(map(str, arguments)))
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tiny_suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two vectors with their statistics, of eight examples; and a wider model."""
    place = tmp_path_factory.mktemp("stats")
    shutil.copytree(tiny_model, place / "wide")
    BertModel(
        BertConfig(vocab_size=18, max_position_embeddings=32, **{**SHAPE, "intermediate_size": 48})
    ).save_pretrained(place / "wide")
    model = tv.load_backbone(tiny_model)
    for seed, task in enumerate(TASKS):
        draw = torch.Generator().manual_seed(seed)
        deltas = {
            n: 0.1 * torch.randn(p.shape, generator=draw) for n, p in model.encoder_parameters().items()
        }
        tv.TaskVector.from_tensors(deltas, base=model.ref, task=task).save(place / f"{task}.safetensors")
        given = ["-s", tiny_suite, "-t", task, "-v", place / f"{task}.safetensors", "--examples", 8]
        assert command("stats", tiny_model, *given, "-o", place / task, "--quiet") == 0
    return place


@pytest.fixture
def opened(folder: Path) -> Callable[[str], tuple[list[tv.TaskVector], list[tv.Weights]]]:
    """Vectors, and their statistics of a kind."""

    def found(kind: str) -> tuple[list[tv.TaskVector], list[tv.Weights]]:
        vectors = [tv.TaskVector.load(folder / f"{task}.safetensors") for task in TASKS]
        return vectors, [tv.open_weights(folder / task / f"{kind}.safetensors") for task in TASKS]

    return found


def test_both_kinds_are_stored_with_their_origin(folder: Path, tiny_model: Path) -> None:
    assert sorted(path.name for path in (folder / "pets").iterdir()) == [
        "fisher.safetensors",
        "gram.safetensors",
    ]
    start = tv.open_weights(tiny_model)
    moved = tv.apply(start, tv.TaskVector.load(folder / "pets.safetensors"))
    for kind in ("fisher", "gram"):
        stored = tv.open_weights(folder / "pets" / f"{kind}.safetensors")
        info = read_statistics(stored)
        assert info is not None
        assert (info.kind, info.task, info.examples, info.split, info.seed) == (kind, "pets", 8, "train", 0)
        assert info.labels == ("all" if kind == "fisher" else None)
        assert info.model.fingerprint == moved.fingerprint()
        assert info.base is not None
        assert info.base.fingerprint == start.fingerprint()
        names = {*stored, *stored.tied}
        assert LAYER in names
        assert names <= set(start)
    assert stored.spec(LAYER).shape == (start.spec(LAYER).shape[1],) * 2


def test_what_is_stored_is_what_the_functions_give(folder: Path, tiny_model: Path, tiny_suite: Path) -> None:
    model, task = tv.load_backbone(tiny_model), tv.load_suite(tiny_suite).task("pets")
    head = tv.Evaluator(model, [task]).head("pets")
    with torch.no_grad():
        vector = tv.TaskVector.load(folder / "pets.safetensors")
        moved = tv.load_backbone(tiny_model)
        for name, parameter in moved.encoder_parameters().items():
            parameter.add_(vector[name])
    for kind, found in {
        "fisher": tv.fisher(moved, task, 8, head=head),
        "gram": tv.gram(moved, task, 8),
    }.items():
        stored = tv.open_weights(folder / "pets" / f"{kind}.safetensors")
        assert {*stored, *stored.tied} == found.keys()
        assert all(torch.equal(stored[name], value) for name, value in found.items())


@pytest.mark.parametrize("name", ["fisher", "gram"])
def test_a_written_model_has_the_statistics_of_base_and_vector(
    folder: Path, tiny_model: Path, tiny_suite: Path, tmp_path: Path, name: str
) -> None:
    given = ["-v", f"a={folder / 'pets.safetensors'}", "-o", tmp_path / "tuned", "--quiet"]
    assert command("apply", tiny_model, *given) == 0
    options = ["-s", tiny_suite, "-t", "pets", "--examples", 8, "--kind", name, "--quiet"]
    out = tmp_path / "tuned" / f"{name}.safetensors"
    assert command("stats", tmp_path / "tuned", "--heads-from", tiny_model, *options, "-o", out) == 0
    one, other = tv.open_weights(out), tv.open_weights(folder / "pets" / f"{name}.safetensors")
    infos = [read_statistics(weights) for weights in (one, other)]
    assert infos[0] and infos[1]
    assert infos[0].model.fingerprint == infos[1].model.fingerprint
    assert infos[0].base == infos[1].base
    assert all(torch.equal(one[tensor], other[tensor]) for tensor in other)
    assert set(tv.open_weights(tmp_path / "tuned")) == set(tv.open_weights(tiny_model))


def test_options_say_what_is_measured(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-s", tiny_suite, "-t", "taste", "--kind", "fisher", "--examples", 1000, "--labels", "sampled"]
    out = tmp_path / "one.safetensors"
    assert (
        command("stats", tiny_model, *options, "--split", "validation", "--seed", 3, "-o", out, "--json") == 0
    )
    [shown] = json.loads(capsys.readouterr().out)
    info = read_statistics(tv.open_weights(out))
    assert info is not None
    assert (info.labels, info.split, info.seed, info.base) == ("sampled", "validation", 3, None)
    assert shown["examples"] == info.examples == 48
    assert shown["bytes"] == out.stat().st_size


def test_inspect_tells_statistics_from_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("inspect", folder / "pets" / "fisher.safetensors", "--json") == 0
    [facts] = json.loads(capsys.readouterr().out)["files"]
    assert facts["kind"] == "statistics (fisher)"
    assert (facts["task"], facts["examples"], facts["labels"]) == ("pets", 8, "all")
    assert command("inspect", folder / "pets" / "gram.safetensors", "--headers") == 0
    assert "statistics (gram)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--kind", "both", "-o", "x.safetensors"], "x.safetensors is one file, for one --kind"),
        (["-o", "pets"], "pets/fisher.safetensors: exists already; --force"),
        (["-o", "x", "-t", "pts"], "no task called 'pts'"),
        (
            ["-o", "x", "-v", "taste.safetensors"],
            "taste.safetensors: a vector of 'taste', expected one of 'pets'",
        ),
        (
            ["-o", "x", "-v", "pets.safetensors", "--heads-from", "m"],
            "--heads-from: given together with --vector",
        ),
        (["-o", "x", "--heads-from", "builtin"], "pets: a task on texts, and"),
        (["-o", "x", "--heads-from", "wide"], "its encoder has other parameters than 'wide'"),
        (["-o", "wide/vocab.txt"], "wide/vocab.txt is a file, expected a folder"),
        (["-o", "x", "--examples", "0"], "--examples"),
        (["-o", "x", "--kind", "fish"], "--kind"),
    ],
)
def test_a_request_that_makes_no_sense_is_one_line_and_writes_nothing(
    folder: Path,
    tiny_model: Path,
    tiny_suite: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    task = [] if "-t" in options else ["-t", "pets"]
    assert command("stats", tiny_model, "-s", tiny_suite, *task, *options, "--quiet") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert sorted(folder.rglob("*")) == before


Opened = Callable[[str], tuple[list[tv.TaskVector], list[tv.Weights]]]


def test_rules_weigh_by_what_is_stored(opened: Opened, tiny_model: Path) -> None:
    vectors, stats = opened("fisher")
    found = tv.combine("fisher", vectors, stats=stats)[LAYER]
    weights = [own[LAYER] + 1e-6 for own in stats]
    above = sum(w * vector[LAYER] for w, vector in zip(weights, vectors, strict=True))
    assert_close(found, above / sum(weights))
    grams = opened("gram")[1]
    merged = tv.combine("regmean", vectors, stats=grams)
    mean = tv.combine("mean", vectors)
    assert not torch.allclose(merged[LAYER], mean[LAYER], atol=1e-3)
    assert_close(merged["embeddings.LayerNorm.weight"], mean["embeddings.LayerNorm.weight"])
    edited = tv.apply(tiny_model, merged.with_base(tv.open_weights(tiny_model)))
    assert all(bool(value.isfinite().all()) for value in edited.values())


def relabelled(path: Path, out: Path, tensors: dict[str, Tensor] | None = None, **fields: Any) -> Path:
    """A copy of statistics with other tensors, or another origin."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    info = {**json.loads(metadata["taskvec_statistics"]), **fields}
    aliases = (
        {} if tensors else {k: v for k, v in metadata.items() if k not in ("format", "taskvec_statistics")}
    )
    header = {"format": "pt", "taskvec_statistics": json.dumps(info), **aliases}
    save_file(tensors or load_file(path), out, metadata=header)
    return out


def refused(opened: Opened, rule: str, stats: Any, match: str, error: type[Exception] = InputError) -> None:
    vectors, _ = opened("fisher")
    with pytest.raises(error, match=match) as raised:
        tv.combine(rule, vectors, stats=stats)
    assert "\n" not in str(raised.value)


def test_statistics_that_do_not_belong_are_refused_from_headers(
    folder: Path, opened: Opened, tiny_model: Path, tmp_path: Path
) -> None:
    _, (pets, taste) = opened("fisher")
    _, grams = opened("gram")
    refused(
        opened, "fisher", None, "rule 'fisher' needs statistics, one file for each vector .* taskvec stats"
    )
    refused(opened, "mean", [pets, taste], "rule 'mean' uses no statistics; leave them out")
    refused(opened, "fisher", [pets], "statistics: 1 files, expected 2, one for each task vector")
    refused(opened, "fisher", grams, "gram.safetensors: statistics of kind 'gram', expected 'fisher'")
    refused(opened, "regmean+lines", [pets, taste], "statistics of kind 'fisher', expected 'gram'")
    refused(
        opened, "fisher", [taste, pets], "statistics of task 'taste', expected 'pets'.*order of the vectors"
    )
    weights = tv.open_weights(tiny_model)
    refused(opened, "fisher", [weights, taste], "holds no statistics .*taskvec stats")
    path = folder / "pets" / "fisher.safetensors"
    other = relabelled(path, tmp_path / "base.safetensors", base={"ref": "other", "fingerprint": "f" * 32})
    refused(
        opened, "fisher", [tv.open_weights(other), taste], f"of base other .fingerprint {'f' * 32}., expected"
    )


def test_tensors_that_do_not_fit_are_refused_from_headers(
    folder: Path, opened: Opened, tmp_path: Path
) -> None:
    _, (_, taste) = opened("fisher")
    path, out = folder / "pets" / "fisher.safetensors", tmp_path / "x.safetensors"
    whole = load_file(path)

    def given(tensors: dict[str, Tensor]) -> list[tv.Weights]:
        return [tv.open_weights(relabelled(path, out, tensors)), taste]

    missing = given({name: value for name, value in whole.items() if name != LAYER})
    refused(opened, "fisher", missing, f"x.safetensors: lacks '{LAYER}', which .* has", KeyMismatch)
    wrong = given({**whole, LAYER: torch.ones(3, 3)})
    refused(opened, "fisher", wrong, f"'{LAYER}' has shape .3, 3., expected .16, 32.", KeyMismatch)
    unknown = given({**whole, "extra": torch.ones(3)})
    refused(opened, "fisher", unknown, "statistics of 'extra', which .* lacks", KeyMismatch)


def test_statistics_of_models_that_changed_places_are_noticed(
    folder: Path, opened: Opened, tmp_path: Path
) -> None:
    """Vectors that name no task still say which weights they come from."""
    path = folder / "pets" / "fisher.safetensors"
    stats = [
        tv.open_weights(relabelled(path, tmp_path / f"{name}.safetensors", model={"ref": name}))
        for name in "ab"
    ]
    base = {name: torch.zeros(tensor.shape) for name, tensor in stats[0].items()}
    vectors = []
    for name in "ab":
        deltas = {key: torch.ones_like(value) for key, value in base.items()}
        vector = tv.TaskVector.from_tensors(deltas, base=None, tuned=name)
        vectors.append(vector)
    assert tv.combine("fisher", vectors, stats=stats)[LAYER].isfinite().all()
    with pytest.raises(InputError, match="statistics of b, expected those of a"):
        tv.combine("fisher", vectors, stats=stats[::-1])


@pytest.mark.parametrize("kind", ["kfac", "ekfac", "ggn"])
def test_curvature_is_stored_for_a_penalty(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, kind: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out, made = tmp_path / "taste.safetensors", tmp_path / "pets.safetensors"
    options = ["-s", tiny_suite, "-t", "taste", "--kind", kind, "--examples", 8]
    assert command("stats", tiny_model, *options, "-o", out, "--json", "--quiet") == 0
    [row] = json.loads(capsys.readouterr().out)
    model, task = tv.load_backbone(str(tiny_model)), tv.load_suite(tiny_suite).task("taste")
    stored, expected = load_file(out), tv.curvature(model, task, 8, kind=kind)
    assert stored.keys() == expected.keys() and row["tensors"] == len(expected)
    assert all(torch.equal(stored[name], value) for name, value in expected.items())
    info = read_statistics(tv.open_weights(out))
    assert info is not None
    assert (info.kind, info.task, info.examples, info.available, info.probes) == (kind, "taste", 8, 96, 1)
    assert info.model.fingerprint == tv.open_weights(tiny_model).fingerprint()
    penalty = {"kfac": "tak", "ekfac": "tak:factors=ekfac", "ggn": "diagonal"}[kind]
    penalty += f"{',' if ':' in penalty else ':'}files={out}"
    train = ["train", "-m", tiny_model, "-s", tiny_suite, "--steps", 2, "--lr", 1e-3, "--quiet"]
    assert command(*train, "-t", "pets", "--penalty", penalty, "-o", made) == 0
    training = tv.TaskVector.load(made).info.training or {}
    assert training["statistics"][str(out)]["task"] == "taste" and "references" not in training
    assert command(*train, "-t", "taste", "--penalty", penalty, "-o", tmp_path / "x.safetensors") == 2
    assert "all are of tasks that are trained (taste)" in capsys.readouterr().err


def test_labels_are_not_of_curvature(
    tiny_model: Path, tiny_suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-s", tiny_suite, "-t", "taste", "--kind", "kfac", "--labels", "sampled"]
    assert command("stats", tiny_model, *options, "-o", tmp_path / "x") == 2
    assert "--labels: of Fisher information" in capsys.readouterr().err
