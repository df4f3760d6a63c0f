"""The same commands on machines that are set up oddly, side by side, and with traps where they work."""

import json
import shlex
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load

from attacks.editing import statistics
from attacks.writings import WRITINGS, Bench, files
from effort import EFFORT
from forking import Forks
from taskvec.rules import RULES
from taskvec.vectors import TaskVector
from taskvec.weights import save_weights

every_command = pytest.mark.parametrize("name", WRITINGS)


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory, bench: Bench) -> Iterator[Forks]:
    """Another process, of another language, with another order of hashes."""
    bench.expected("stats")
    folder = tmp_path_factory.mktemp("foreign")
    server = Forks(folder, bench.forks.learned, LC_ALL="C", LANG="C", PYTHONHASHSEED="1")
    yield server
    server.close()


NO_HOME = {"HOME": None, "XDG_CACHE_HOME": None, "USERPROFILE": None, "HF_HOME": None}
SURROUNDINGS: dict[str, dict[str, Any]] = {
    "no home": {"environment": NO_HOME},
    "a home that is not there": {"environment": {**NO_HOME, "HOME": "/nowhere"}},
    "no place to keep compiled code": {"keep_no_code": None},
    "32 open files": {"limit_handles": 32},
    "no shared memory": {"hide_shared_memory": None, "share_out": 2},
    "nobody else may read": {"umask": 0o077},
    "one processor": {"one_processor": None},
}
SOME = ("apply", "apply ties", "merge slices", "diff", "compress int8", "mask tall")


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_odd_surroundings_do_not_change_what_is_written(surroundings: str, bench: Bench) -> None:
    for name in SOME:
        expected = bench.expected(name)
        bench.clear()
        assert bench.run(WRITINGS[name].command, **SURROUNDINGS[surroundings]) == 0, bench.forks.said
        assert bench.written(name) == expected, name


def test_a_model_of_more_files_than_may_be_open_is_written_or_refused_in_one_line(bench: Bench) -> None:
    bench.clear()
    many = {f"layers.{i}.weight": torch.full((10,), float(i)) for i in range(60)}
    save_weights(many, bench.place / "many", max_shard_size=50)
    save_weights({key: value + 1 for key, value in many.items()}, bench.place / "more", max_shard_size=50)
    code = bench.run("diff many more -o out.safetensors -q", limit_handles=32)
    assert code == 0 or (code in (1, 2) and bench.forks.errors.count("\n") == 1), bench.forks.said
    assert "internal error" not in bench.forks.errors
    assert code == 0 or "handles" in bench.forks.errors or "open files" in bench.forks.errors


READING = ("inspect base a.safetensors", "rules", "tasks", "--help", "merge ties.yaml -o out --dry-run")


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize(
    "trouble",
    [{"close_handles": [1]}, {"close_handles": [2]}, {"close_handles": [0, 1, 2]}, {"break_pipe": 1}],
    ids=["output closed", "errors closed", "all closed", "nobody reads"],
)
def test_a_closed_output_is_no_traceback(command: str, trouble: dict[str, Any], bench: Bench) -> None:
    bench.clear()
    code = bench.run(command, **trouble)
    assert code in (0, 1), bench.forks.said
    assert "Traceback" not in bench.forks.said and "internal error" not in bench.forks.said, bench.forks.said
    assert "Exception ignored" not in bench.forks.said, bench.forks.said


@pytest.mark.parametrize("name", ["apply", "compress int8", "mask emr"])
def test_a_written_model_is_the_same_though_nobody_hears_of_it(name: str, bench: Bench) -> None:
    expected = bench.expected(name)
    for trouble in ({"close_handles": [1]}, {"close_handles": [1, 2]}, {"break_pipe": 1}):
        bench.clear()
        code = bench.run(WRITINGS[name].command, **trouble)
        assert code in (0, 1) and "Traceback" not in bench.forks.said, bench.forks.said
        assert bench.written(name) in ({}, expected)


@pytest.mark.parametrize("command", [*READING, WRITINGS["train"].command])
def test_a_terminal_that_knows_only_ascii_is_written_to(command: str, bench: Bench) -> None:
    bench.clear()
    assert bench.forks(shlex.split(command), {"only_ascii": None}, place=bench.place) == 0, bench.forks.said


def test_another_language_and_order_of_hashes_give_the_same_bytes(bench: Bench, foreign: Forks) -> None:
    for name in (*SOME, "stats"):
        expected = bench.expected(name)
        bench.clear()
        assert foreign(shlex.split(WRITINGS[name].command), place=bench.place) == 0, foreign.said
        assert bench.written(name) == expected, name


@pytest.mark.parametrize("part", range(max(1, EFFORT // 8)))
@every_command
def test_of_two_writers_to_one_output_one_wins_and_the_other_says_so(
    name: str, part: int, bench: Bench, foreign: Forks
) -> None:
    writing, draw = WRITINGS[name], Random(f"{name} {part}")
    expected = bench.expected(name)
    bench.clear()
    words = shlex.split(writing.command) + (["--force"] if writing.again and draw.random() < 0.5 else [])
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(forks, words, place=bench.place) for forks in (bench.forks, foreign)]
        codes = sorted(end.result() for end in ends)
    assert codes[0] == 0 and codes[1] in (0, 2), bench.forks.said + foreign.said
    for forks, end in zip((bench.forks, foreign), ends, strict=True):
        assert end.result() == 0 or forks.errors.count("\n") == 1, forks.errors
    assert bench.written(name) == expected
    assert not [path for path in bench.place.iterdir() if path.name.startswith(f".{writing.out}")]
    bench.check_inputs()


def traps(name: str, bench: Bench) -> list[Path]:
    """Where a command might follow a link to a folder that is not its own."""
    out = WRITINGS[name].out
    hidden = bench.place / f".{out}.partial"
    if name == "train":
        return [hidden, bench.place / f".{out}.training.pt", bench.place / f"..{out}.training.pt.partial"]
    if name == "run":
        return [bench.place / out / file for file in (".lock", "vectors", "partial", "results.json")]
    return [hidden, hidden / out, hidden / "replaced", hidden / "journal.json", hidden / "journal.new"]


@pytest.mark.parametrize("part", range(min(EFFORT, 8)))
@every_command
def test_a_link_where_a_command_works_never_leads_it_out_of_its_folder(
    name: str, part: int, bench: Bench, tmp_path: Path
) -> None:
    writing, draw = WRITINGS[name], Random(f"{name} {part}")
    bench.expected(name)
    first, *others = traps(name, bench)
    for trap in (first, draw.choice(others)):
        options = draw.choice(("", writing.again))
        bench.clear()
        shutil.rmtree(tmp_path / "precious", ignore_errors=True)
        (tmp_path / "precious" / "inner").mkdir(parents=True)
        for file in ("one", "inner/two", "journal.json"):
            (tmp_path / "precious" / file).write_text("of somebody")
        trap.parent.mkdir(exist_ok=True)
        if name == "run":
            (bench.place / "out").mkdir(exist_ok=True)
            (bench.place / "out" / "records.jsonl").touch()  # so that it is the folder of a run
        trap.unlink(missing_ok=True)
        a_file = trap.suffix in (".json", ".new", ".pt", ".jsonl", ".md") or trap.name.endswith(".lock")
        trap.symlink_to(tmp_path / "precious" / ("one" if a_file else ""))
        before = files(tmp_path / "precious")
        code = bench.run(f"{writing.command} {options}")
        assert files(tmp_path / "precious") == before, f"{name}: followed {trap.name}"
        assert code == 0 or bench.forks.errors.count("\n") == 1, bench.forks.said
        bench.check_inputs()
        if code == 0:
            bench.check_whole_or_absent(name)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three vectors with statistics, of tensors large enough for several blocks."""
    place = tmp_path_factory.mktemp("rules")
    statistics(place)
    shapes = {"layers.0.mlp.weight": (300, 200), "layers.1.mlp.weight": (200, 300), "layers.1.bias": (50,)}
    draws = [torch.Generator().manual_seed(seed) for seed in range(4)]
    base, *steps = [
        {key: torch.randn(shape, generator=one) for key, shape in shapes.items()} for one in draws
    ]
    shutil.rmtree(place / "base")
    save_weights(base, place / "base", max_shard_size=1e5)
    for name, step in zip("abc", steps, strict=True):
        moved = {key: base[key] + 0.1 * step[key] for key in shapes}
        TaskVector.between(place / "base", moved).save(place / f"{name}.safetensors", force=True)
        for kind in ("fisher", "gram"):
            info = {"format": 1, "kind": kind, "model": {"ref": name}, "task": name, "data": "0" * 32}
            said = {**info, "split": "train", "examples": 8, "seed": 0, "labels": "all"}
            own = {key: value**2 for key, value in step.items()}
            if kind == "gram":
                own = {key: value.T @ value for key, value in step.items() if value.dim() == 2}
            file = place / f"{kind}-{name}.safetensors"
            save_weights(own, file, metadata={"taskvec_statistics": json.dumps(said)})
    return place


WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "much memory": ("--memory 2GB", {}),
    "little memory and two threads": ("--memory 1MB --max-shard-gb 2e-4", {"threads": 2}),
    "two processes": ("--memory 1MB --max-shard-gb 3e-4", {"share_out": 2}),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_gives_the_same_bytes_however_it_is_computed(
    rule: str, vectors: Path, bench: Bench, foreign: Forks
) -> None:
    least, most = RULES[rule].tasks
    names = "abc"[: max(least, min(3, most or 3))]
    words = ["apply", "base", "--rule", rule, "-o", "out", "-q", "--force"]
    words += [word for name in names for word in ("-v", f"{name}={name}.safetensors")]
    if kind := {"fisher": "fisher", "regmean": "gram"}.get(rule):
        words += [word for name in names for word in ("--stats", f"{name}={kind}-{name}.safetensors")]
    found: dict[str, dict[str, torch.Tensor]] = {}
    for way, (options, trouble) in WAYS.items():
        forks = foreign if "threads" in trouble else bench.forks
        code = forks([*words, *options.split()], trouble, place=vectors, learn=not found)
        assert code == 0, f"{way}: {forks.said}"
        found[way] = {}
        for file in sorted((vectors / "out").glob("*.safetensors")):
            found[way] |= load(file.read_bytes())
    first = next(iter(found.values()))
    for way, tensors in found.items():
        same = {name: torch.equal(tensors[name], value) for name, value in first.items()}
        assert tensors.keys() == first.keys() and all(same.values()), f"{rule}, {way}: {same}"
