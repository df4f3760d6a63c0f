"""One model written in parts by several processes: the bytes of one, whatever happens to the parts."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import yaml

from effort import EFFORT
from forking import Forks
from taskvec.edits.opening import open_recipe, save_merge, save_part
from taskvec.errors import CorruptFile, InputError, NonFinite, OutputExists
from taskvec.vectors import TaskVector
from taskvec.weights import open_weights, save_weights
from taskvec.weights.parts import Part, Progress
from taskvec.weights.plan import share_out
from taskvec.weights.staging import staged
from taskvec.weights.writer import write_part

Files = dict[str, bytes]

SHARD = 5e4
RULES: dict[str, dict[str, Any]] = {
    "linear": {"expression": "0.4*a - 0.3*b"},
    "ties of the whole model": {"rule": "ties", "parameters": {"keep": 0.3, "trim": "global"}},
    "random": {"rule": "dare+ties", "parameters": {"density": 0.5, "seed": 3, "keep": 0.4}},
    "singular vectors": {"rule": "tsv"},
}


def read(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_inputs(place: Path) -> Path:
    """A base with a module of its own, two models made of it, and a recipe for them."""
    shapes = {f"model.layers.{i}.mlp.weight": (60, 200) for i in range(6)} | {"model.norm.weight": (7,)}
    base = {name: torch.randn(shape, generator=torch.manual_seed(0)) for name, shape in shapes.items()}
    for seed, name in enumerate(("base", "a", "b")):
        draw = torch.Generator().manual_seed(seed)
        state = {
            key: value + 0.1 * seed * torch.randn(value.shape, generator=draw) for key, value in base.items()
        }
        save_weights(state, place / name, max_shard_size=1e5)
        (place / name / "config.json").write_text('{"num_hidden_layers": 6}')
    return write_recipe(place, **RULES["linear"])


def write_recipe(place: Path, **keys: object) -> Path:
    recipe = {"base": "base", "models": {"a": "a", "b": "b"}, "max_shard_gb": SHARD / 1e9, **keys}
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return place / "recipe.yaml"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_inputs(tmp_path)
    return tmp_path


def whole(recipe: Path, target: Path) -> Files:
    return read(save_merge(open_recipe(recipe), target))


def part(recipe: Path, target: Path, text: str, *, force: bool = False) -> Progress:
    return save_part(open_recipe(recipe), target, Part.parse(text), force=force)


@pytest.mark.parametrize("rule", RULES)
def test_parts_in_any_order_give_the_bytes_of_one_process(rule: str, place: Path) -> None:
    recipe, draw = write_recipe(place, **RULES[rule]), Random(rule)
    expected = whole(recipe, place / "one" / "out")
    for parts in (1, 3):
        numbers = [*range(1, parts + 1), draw.randint(1, parts)]
        draw.shuffle(numbers)
        target = place / f"in {parts}" / "out"
        for number in numbers:
            progress = part(recipe, target, f"{number}/{parts}")
        assert progress.complete and list(progress.done) == list(range(1, parts + 1))
        assert read(target) == expected and list(target.parent.iterdir()) == [target]


def test_modules_and_side_files_are_there_once(place: Path) -> None:
    base = place / "base"
    (base / "modules.json").write_text('[{"path": ""}, {"path": "1_Dense"}]')
    save_weights({"linear.weight": torch.ones(5, 5)}, base / "1_Dense" / "model.safetensors")
    (base / "1_Dense" / "config.json").write_text("{}")
    recipe = write_recipe(
        place, models={"a": "a"}, expression="a", include=["model.layers"], on_missing="zero"
    )
    expected = whole(recipe, place / "one" / "out")
    assert "1_Dense/model.safetensors" in expected
    for number in (3, 1, 2):
        part(recipe, place / "parts" / "out", f"{number}/3")
    assert read(place / "parts" / "out") == expected


def test_progress_says_what_is_missing(place: Path) -> None:
    target = place / "out"
    assert str(part(place / "recipe.yaml", target, "3/5")) == (
        "1 of 5 parts are done; waiting for 1, 2, 4 and 5"
    )
    with pytest.raises(InputError, match="is being written in parts, and some may be done"):
        whole(place / "recipe.yaml", target)
    for number in (1, 2, 4):
        progress = part(place / "recipe.yaml", target, f"{number}/5")
    assert progress.waiting == [5] and not target.exists()
    assert str(part(place / "recipe.yaml", target, "5/5")).startswith("all 5 parts are done")
    manifest = (target / "taskvec.json").stat().st_mtime_ns
    assert part(place / "recipe.yaml", target, "2/5").complete  # once more, and nothing happens
    assert (target / "taskvec.json").stat().st_mtime_ns == manifest


def test_a_part_without_shards_is_done_from_the_start(place: Path) -> None:
    progress = part(place / "recipe.yaml", place / "out", "9/9")
    assert progress.shards == 0 and not progress.complete and 9 in progress.done
    for number in progress.waiting:
        progress = part(place / "recipe.yaml", place / "out", f"{number}/9")
    assert progress.complete and progress.done == list(range(1, 10))


def touched(place: Path) -> None:
    os.utime(place / "a" / "model-00001-of-00003.safetensors", ns=(1, 1))


def grown(place: Path) -> None:
    (place / "base" / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scale": 0.25}, "recipe.scale is"),
        ({"expression": "0.4*a - 0.2*b"}, "recipe.expression is '0.4*a - 0.3*b', expected '0.4*a - 0.2*b'"),
        ({"max_shard_gb": 4e-5}, "max_shard_gb is"),
        ({"allow_nonfinite": True}, "allow_nonfinite is"),
        (touched, "model-00001-of-00003.safetensors is"),
        (grown, "side files"),
    ],
    ids=["scale", "expression", "shards", "nonfinite", "inputs", "side files"],
)
def test_parts_of_something_else_are_refused_by_what_differs(change: object, said: str, place: Path) -> None:
    recipe, target = place / "recipe.yaml", place / "out"
    part(recipe, target, "1/4")
    before = read(place / ".out.partial")
    if callable(change):
        change(place)
    else:
        assert isinstance(change, dict)
        write_recipe(place, **{**RULES["linear"], **change})
    with pytest.raises(InputError, match="holds parts of another output, whose ") as refused:
        part(recipe, target, "2/4")
    assert said in str(refused.value)
    assert read(place / ".out.partial") == before, "what was finished is gone"


def test_shards_of_another_size_are_refused_in_words(place: Path) -> None:
    part(place / "recipe.yaml", place / "out", "1/4")
    merge = replace(open_recipe(place / "recipe.yaml"), max_shard_size=3e4)
    with pytest.raises(InputError, match=r"whose shards are of another size \(--max-shard-gb\)"):
        save_part(merge, place / "out", "2/4")


def test_another_number_of_parts_is_refused(place: Path) -> None:
    part(place / "recipe.yaml", place / "out", "1/4")
    with pytest.raises(InputError, match="whose parts is 4, expected 8; "):
        part(place / "recipe.yaml", place / "out", "3/8")


def test_where_nothing_is_finished_another_recipe_begins_anew(place: Path) -> None:
    target = place / "out"
    part(place / "recipe.yaml", target, "9/9")  # has no shards
    write_recipe(place, scale=0.5, **RULES["linear"])
    expected = whole(place / "recipe.yaml", place / "one" / "out")
    for number in (1, 2):
        part(place / "recipe.yaml", target, f"{number}/2")
    assert read(target) == expected


def test_copies_of_the_inputs_on_another_machine_will_do(place: Path) -> None:
    expected = whole(place / "recipe.yaml", place / "one" / "out")
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    for name in ("base", "a", "b"):
        shutil.copytree(place / name, elsewhere / name)
    shutil.copy(place / "recipe.yaml", elsewhere)
    part(elsewhere / "recipe.yaml", place / "out", "1/2")
    part(place / "recipe.yaml", place / "out", "2/2")
    assert read(place / "out") == expected


def test_a_finished_shard_that_is_spoilt_is_written_again(place: Path) -> None:
    expected, target = whole(place / "recipe.yaml", place / "one" / "out"), place / "out"
    for number in (1, 2):
        part(place / "recipe.yaml", target, f"{number}/3")
    work = place / ".out.partial" / "out"
    spoilt = max(work.iterdir())
    content = bytearray(spoilt.read_bytes())
    content[-1] ^= 1
    spoilt.write_bytes(content)
    progress = part(place / "recipe.yaml", target, "3/3")
    assert not progress.complete and len(progress.waiting) == 1 and not target.exists()
    assert part(place / "recipe.yaml", target, f"{progress.waiting[0]}/3").complete
    assert read(target) == expected


def test_one_part_at_a_time_and_not_beside_the_whole(place: Path) -> None:
    target = place / "out"
    with staged(target, folder=True, force=False) as work:
        with pytest.raises(OutputExists, match="another process is writing it, and not in parts"):
            part(place / "recipe.yaml", target, "1/2")
        (work / "x").touch()
    shutil.rmtree(target)
    made = open_recipe(place / "recipe.yaml")

    def meanwhile(label: str, done: int, total: int, **facts: float) -> None:
        if done > 1:
            return
        with pytest.raises(OutputExists, match="another process is writing part 1/2"):
            part(place / "recipe.yaml", target, "1/2")
        with pytest.raises(OutputExists, match="another process is writing it in parts"):
            whole(place / "recipe.yaml", target)
        other = part(place / "recipe.yaml", target, "2/2")
        assert other.waiting == [1]

    assert save_part(made, target, Part(1, 2), watch=meanwhile).complete


def test_what_exists_is_replaced_only_by_force(place: Path) -> None:
    target = place / "out"
    old = whole(write_recipe(place, scale=2.0, **RULES["linear"]), target)
    recipe = write_recipe(place, **RULES["linear"])
    with pytest.raises(OutputExists, match="exists already; --force"):
        part(recipe, target, "1/2")
    part(recipe, target, "1/2", force=True)
    assert read(target) == old
    assert part(recipe, target, "2/2", force=True).complete
    assert read(target) == whole(recipe, place / "one" / "out")


def test_nonfinite_values_are_refused_in_the_part_that_has_them(place: Path) -> None:
    bad = torch.full((60, 200), torch.nan)
    state = {**open_weights(place / "a"), "model.layers.0.mlp.weight": bad}
    save_weights(state, place / "a", force=True, max_shard_size=1e5, allow_nonfinite=True)
    (place / "a" / "config.json").write_text('{"num_hidden_layers": 6}')
    refused = 0
    for number in (1, 2, 3):
        try:
            part(place / "recipe.yaml", place / "out", f"{number}/3")
        except NonFinite as error:
            assert str(error).count(f"part {number}/3 was not written") == 1
            refused += 1
    assert refused == 1 and not (place / "out").exists()
    expected = whole(write_recipe(place, allow_nonfinite=True, **RULES["linear"]), place / "one" / "out")
    shutil.rmtree(place / ".out.partial")
    for number in (1, 2, 3):
        part(place / "recipe.yaml", place / "out", f"{number}/3")
    assert read(place / "out") == expected


def test_what_has_no_parts_is_refused(place: Path) -> None:
    made = open_recipe(place / "recipe.yaml")
    with pytest.raises(InputError, match="one file, which has no parts"):
        save_part(made, place / "out.safetensors", Part(1, 2))
    with pytest.raises(InputError, match="weights of this process alone"):
        write_part({"w": torch.ones(3)}, place / "out", Part(1, 2))
    for text in ("", "3", "0/3", "4/3", "-1/3", "1/0", "a/b", "1/2/3", "1/100000", "１/２", "1.0/2"):
        with pytest.raises(InputError, match="expected NUMBER/PARTS such as 3/8"):
            Part.parse(text)


def test_an_input_that_changes_meanwhile_is_noticed(place: Path) -> None:
    def change(label: str, done: int, total: int, **facts: float) -> None:
        touched(place)

    with pytest.raises(CorruptFile, match="was written to while it was read"):
        save_part(open_recipe(place / "recipe.yaml"), place / "out", Part(1, 2), watch=change)
    assert not (place / "out").exists()


def test_foreign_files_in_the_hidden_folder_are_left_alone(place: Path) -> None:
    hidden = place / ".out.partial"
    hidden.mkdir()
    (hidden / "thesis.txt").write_text("text")
    with pytest.raises(InputError, match=r"holds 'thesis.txt', which taskvec did not write"):
        part(place / "recipe.yaml", place / "out", "1/2")
    assert read(hidden) == {"thesis.txt": b"text"}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"shards": 3}', '{"key": "x", "shards": {"a": {"w": "zz"}}}']
)
@pytest.mark.parametrize("file", ["parts.json", "part-1.json"])
def test_damaged_journals_are_no_finished_parts(text: str, file: str, place: Path) -> None:
    expected, target = whole(place / "recipe.yaml", place / "one" / "out"), place / "out"
    part(place / "recipe.yaml", target, "1/2")
    (place / ".out.partial" / file).write_text(text)
    try:
        progress = part(place / "recipe.yaml", target, "2/2")
    except InputError as error:
        assert file == "parts.json" and "remove this folder to begin anew" in str(error)
        return
    assert not progress.complete and progress.waiting == [1] and not target.exists()
    assert part(place / "recipe.yaml", target, "1/2").complete
    assert read(target) == expected


def test_shares_have_about_as_many_bytes_each() -> None:
    draw = Random(0)
    for parts in (1, 2, 7, 30):
        sizes = [draw.randint(1, 100) for _ in range(25)]
        shares = share_out(sizes, parts)
        assert sorted(place for share in shares for place in share) == list(range(25))
        loads = [sum(sizes[place] for place in share) for share in shares]
        assert max(loads) - min(loads) <= max(sizes)


class Crowd:
    """Several processes at once, and a model that they write."""

    def __init__(self, place: Path, workers: int) -> None:
        self.place, self.recipe = place, make_inputs(place)
        logs = [place / f"log {number}" for number in range(workers)]
        for log in logs:
            log.mkdir()
        self.forks = [Forks(log) for log in logs]
        self.expected = whole(self.recipe, place / "one" / "out")
        self.target = place / "work" / "out"

    def run(self, worker: int, text: str, **ends: float) -> int:
        words = ["merge", self.recipe, "-o", self.target, "--part", text, "-q"]
        return self.forks[worker]([*map(str, words)], **ends)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    made = Crowd(tmp_path_factory.mktemp("crowd"), 3)
    yield made
    for forks in made.forks:
        forks.close()


@pytest.mark.parametrize("seed", range(2 * EFFORT))
def test_parts_at_once_that_are_killed_give_the_bytes_of_one_process(seed: int, crowd: Crowd) -> None:
    draw = Random(seed)
    shutil.rmtree(crowd.target.parent, ignore_errors=True)
    ends = [draw.choice(["time", "change"]) for _ in range(6)]

    def disturb(worker: int) -> None:
        for number in draw.sample(range(1, 6), 5):
            trouble: dict[str, object] = {}
            if ends and ends.pop() == "time":
                trouble = {"send": signal.SIGKILL, "after": draw.uniform(0, 0.4)}
            elif ends:
                trouble = {"trouble": {"die_before_change": draw.randint(1, 40)}}
            code = crowd.run(worker, f"{number}/5", **trouble)  # type: ignore[arg-type]
            assert code in (0, -9, 2), crowd.forks[worker].said  # 2: another is at this part
            assert not crowd.target.exists() or read(crowd.target) == crowd.expected

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(disturb, range(3)))
    for number in range(1, 6):
        assert crowd.run(0, f"{number}/5") == 0, crowd.forks[0].said
    assert read(crowd.target) == crowd.expected
    assert list(crowd.target.parent.iterdir()) == [crowd.target]


def test_a_full_disk_ends_one_part_in_words_and_leaves_the_others_alone(crowd: Crowd) -> None:
    shutil.rmtree(crowd.target.parent, ignore_errors=True)
    assert crowd.run(0, "2/2") == 0
    kept = read(crowd.target.parent / ".out.partial" / "out")
    words = ["merge", crowd.recipe, "-o", crowd.target, "--part", "1/2", "-q"]
    assert crowd.forks[1]([*map(str, words)], {"fill_after": 110_000}) == 1
    said = crowd.forks[1].errors
    assert said.count("\n") == 1 and "no space left" in said and "--part 1/2 again goes on with them" in said
    now = read(crowd.target.parent / ".out.partial" / "out")
    assert kept.items() < now.items(), "the shard that was finished stays"
    assert crowd.run(0, "1/2") == 0
    assert read(crowd.target) == crowd.expected


def test_the_command_says_how_far_the_model_is(crowd: Crowd) -> None:
    shutil.rmtree(crowd.target.parent, ignore_errors=True)
    words = ["merge", str(crowd.recipe), "-o", str(crowd.target), "-q", "--json", "--part"]
    assert crowd.forks[0]([*words, "2/9"]) == 0
    facts = json.loads(crowd.forks[0].out)
    assert (facts["part"], facts["complete"]) == ("2/9", False)
    assert set(facts["done"]) | set(facts["waiting"]) == set(range(1, 10)) and 2 in facts["done"]
    assert crowd.forks[0]([*words, "9/9"]) == 0 and "part 9/9 has nothing to write" in crowd.forks[0].errors
    for number in facts["waiting"]:
        assert crowd.forks[0]([*words, f"{number}/9"]) == 0
    last = json.loads(crowd.forks[0].out)
    assert last["complete"] and last["waiting"] == [] and last["edited_tensors"] == 7


def test_apply_writes_parts_too(crowd: Crowd) -> None:
    shutil.rmtree(crowd.target.parent, ignore_errors=True)
    vector = TaskVector.between(crowd.place / "base", crowd.place / "a").save(crowd.place / "a.safetensors")
    words = ["apply", str(crowd.place / "base"), "-v", f"a={vector}", "--scale", "0.5", "-q", "-o"]
    one = crowd.place / "applied" / "out"
    assert crowd.forks[0]([*words, str(one), "--max-shard-gb", "5e-5"]) == 0, crowd.forks[0].said
    options = [str(crowd.target), "--max-shard-gb", "5e-5", "--part"]
    for number in (2, 1):
        assert crowd.forks[0]([*words, *options, f"{number}/2"]) == 0, crowd.forks[0].said
    assert read(crowd.target) == read(one)
