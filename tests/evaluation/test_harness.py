"""lm-evaluation-harness on edited models: by the package where it is installed, else by a small stand-in."""

import json
import random
import re
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import taskvec as tv
from language_models import CAUSAL, TEXT, WITH_ENCODER, save_language_model
from taskvec.cli import main
from taskvec.code import allowing_code
from taskvec.errors import InputError, MissingExtra, TaskvecError, UnknownName
from taskvec.evaluation.harness import HarnessSettings, harness
from taskvec.models.backbone import Backbone
from taskvec.models.loading import load_backbone
from taskvec.runs.experiment import load_experiment
from taskvec.runs.report import tables_of
from taskvec.runs.runner import Runner
from taskvec.studies.lm_eval import Harnessed
from taskvec.studies.store import Store

QUESTIONS = [
    {"question": "the cat sat on the", "choices": ["mat", "cake"], "gold": 0},
    {"question": "the dog ate the", "choices": ["mat", "cake"], "gold": 1},
    {"question": "two men and one", "choices": ["ox", "tête", "home"], "gold": 0},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_language_model(tmp_path_factory.mktemp("gpt"), "gpt2")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task of one's own, as the harness reads it."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    (folder / "own.yaml").write_text(TASK.format(name="own", data=folder / "data.jsonl"))
    return folder


class Model:
    """The harness's model: it ties weights when it takes one, as the real one does."""

    def __init__(self, pretrained: Any, tokenizer: Any, backend: str, batch_size: int) -> None:
        self.network, self.tokenizer, self.backend, self.batch_size = (
            pretrained,
            tokenizer,
            backend,
            batch_size,
        )
        self.network.tie_weights()
        tokenizer.pad_token = "<pad>"


class Manager:
    """Its index of tasks."""

    all_tasks = ("arc_easy", "own")

    def __init__(self, include_path: str | None, include_defaults: bool = True) -> None:
        known = self.all_tasks[:1] if include_defaults else ()
        self.known = {*known, *(("own",) if include_path else ())}

    def match_tasks(self, names: list[str]) -> list[str]:
        return [name for name in names if name in self.known]


def simple_evaluate(**given: Any) -> dict[str, Any]:
    """The sum of all weights, in place of an accuracy."""
    print("noise")  # noqa: T201
    random.seed(given["random_seed"])
    np.random.seed(given["numpy_random_seed"])  # noqa: NPY002
    torch.manual_seed(given["torch_random_seed"])
    if given["tasks"] == ["arc_easy"]:
        raise ConnectionError("no\nroute")
    total = sum(float(weight.detach().double().sum()) for weight in given["model"].network.parameters())
    found = {
        "alias": "own",
        "acc,none": total,
        "acc_stderr,none": 0.5,
        "f1,strict": 0.25,
        "f1_stderr,strict": "N/A",
    }
    count = {"own": {"original": 3, "effective": given["limit"] or 3}}
    return {"results": {"own": found, "group": {"alias": "group"}}, "n-samples": count}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    package, index, models = (
        ModuleType(name) for name in ("lm_eval", "lm_eval.tasks", "lm_eval.models.huggingface")
    )
    package.simple_evaluate, index.TaskManager, models.HFLM = simple_evaluate, Manager, Model  # type: ignore[attr-defined]
    for module in (package, index, ModuleType("lm_eval.models"), models):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def asked(folder: Path, **given: Any) -> HarnessSettings:
    return HarnessSettings(**{"tasks": ("own",), "include": str(folder), **given})


def weights_of(backbone: Backbone) -> dict[str, Any]:
    return {name: value.clone() for name, value in backbone.network.state_dict().items()}


def moved(backbone: Backbone, by: float) -> dict[str, Any]:
    return {name: value.detach() + by for name, value in backbone.encoder_parameters().items()}


@pytest.mark.usefixtures("stand_in")
def test_the_edited_model_is_measured_and_the_own_one_comes_back(
    gpt: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = load_backbone(gpt, "tokens")
    before, state = weights_of(backbone), random.getstate()
    start = harness(backbone, asked(tasks, limit=2))["own"]
    found = harness(backbone, asked(tasks), moved(backbone, 0.5))
    count = sum(value.numel() for value in backbone.encoder_parameters().values())
    assert found["own"].metrics["acc"].value == pytest.approx(start.metrics["acc"].value + 0.5 * count)
    assert found["own"].metrics["acc"].stderr == 0.5 and found["own"].metrics["f1,strict"].stderr is None
    assert (found["own"].examples, start.examples, list(found)) == (3, 2, ["own"])
    after = backbone.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert backbone.tokenizer.pad_token != "<pad>"  # type: ignore[union-attr]
    assert random.getstate() == state and capsys.readouterr().out == ""


@pytest.mark.usefixtures("stand_in")
def test_weights_that_the_harness_ties_are_refused_and_untied_again(tasks: Path, tmp_path: Path) -> None:
    folder = save_language_model(tmp_path / "model", "tied")
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"] + 0.1
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    backbone = load_backbone(folder, "tokens")
    before = weights_of(backbone)
    with pytest.raises(
        TaskvecError, match=r"lm-eval changed 'lm_head.weight'.*'tie_word_embeddings' to false"
    ):
        harness(backbone, asked(tasks))
    assert all(torch.equal(before[name], value) for name, value in weights_of(backbone).items())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert harness(load_backbone(folder, "tokens"), asked(tasks))["own"].examples == 3


@pytest.mark.usefixtures("stand_in")
def test_what_cannot_be_measured_is_one_line(gpt: Path, tiny_model: Path, tasks: Path) -> None:
    backbone = load_backbone(gpt, "tokens")
    with pytest.raises(UnknownName, match="lm-eval: no task called 'owm'; did you mean 'own'"):
        harness(backbone, asked(tasks, tasks=("owm",)))
    with pytest.raises(InputError, match="nowhere: no such folder, expected one with task files of lm-eval"):
        harness(backbone, asked(tasks, include="nowhere"))
    with pytest.raises(TaskvecError, match="lm-eval: arc_easy: ConnectionError: no route"):
        harness(backbone, asked(tasks, tasks=("arc_easy",)))
    with pytest.raises(InputError, match="runs language models of transformers; this is none"):
        harness(load_backbone(tiny_model), asked(tasks))


def test_without_the_package_there_is_the_command_that_installs_it(
    gpt: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtra, match=r"pip install 'taskvec\[lm-eval\]'"):
        harness(load_backbone(gpt, "tokens"), asked(tasks))


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["eval", *map(str, arguments), "--quiet"])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.mark.usefixtures("stand_in")
def test_the_command_measures_an_edit_without_a_suite(
    gpt: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tv.open_weights(gpt)
    delta = {"transformer.wte.weight": torch.ones(base.spec("transformer.wte.weight").shape)}
    tv.TaskVector.from_tensors(delta, base).save(tmp_path / "v.safetensors")
    given = [gpt, "--lm-eval", "own", "--lm-eval-include", tasks]
    values = []
    for edit in ([], ["-v", f"a={tmp_path / 'v.safetensors'}", "-e", "2*a"]):
        assert command(*given, *edit, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert ("space" in found) == bool(edit) and "scores" not in found
        values.append(found["lm_eval"]["own"]["metrics"]["acc"]["value"])
    assert values[1] - values[0] == pytest.approx(2 * delta["transformer.wte.weight"].numel())
    assert command(*given) == 0
    assert "own" in capsys.readouterr().out


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "nothing to measure; give a suite (-s SUITE), tasks of lm-eval (--lm-eval), or both"),
        (["--lm-eval-include", "x"], "for tasks of --lm-eval, and none is given"),
        (["--lm-eval", "own", "-t", "pets"], "--task: names tasks of a suite, and none is given"),
        (["--lm-eval", "own", "--limit", "0"], "--limit"),
        (["--lm-eval", "own", "--lm-eval-fewshot", "-1"], "--lm-eval-fewshot"),
    ],
)
def test_requests_that_make_no_sense_are_one_line(
    words: list[str], complaint: str, gpt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(gpt, *words) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1


EXPERIMENT = """
experiment: talk
model: {model}
suite: {suite}
training: {{lr: 1e-2, steps: 3, batch_size: 4, validations: 0}}
regimes: {{full: {{}}, tangent: {{}}}}
search: {{step: 0.5, limit: 1}}
addition: {{subsets: whole}}
lm_eval: {{tasks: [own], include: {include}}}
"""


@pytest.fixture
def experiment(gpt: Path, tasks: Path, tmp_path: Path) -> Path:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(TEXT)
    blocks = [
        f"  {name}: {{kind: language, data: {{source: text, path: {name}.txt}}, context: 16}}"
        for name in "ab"
    ]
    (tmp_path / "talk.yaml").write_text("suite: talk\ntasks:\n" + "\n".join(blocks))
    path = tmp_path / "experiment.yaml"
    path.write_text(EXPERIMENT.format(model=gpt, suite="talk.yaml", include=tasks))
    return path


@pytest.mark.usefixtures("stand_in")
def test_an_experiment_measures_the_model_those_of_tasks_and_their_sum(
    experiment: Path, tmp_path: Path
) -> None:
    with allowing_code():
        loaded, suite = load_experiment(experiment)
    store = Store(tmp_path / "out")
    with store.locked():
        results = Runner(loaded, suite, store).run()
    found = results.of(Harnessed, "full", 0)
    assert [model.model for model in (*results.of(Harnessed), *found)] == ["pre-trained", "a", "b", "sum"]
    assert results.of(Harnessed, "tangent", 0) == []
    [table] = [table for table in tables_of(results) if table.title == "lm-evaluation-harness"]
    assert table.columns == ("", "own acc", "own f1,strict") and len(table.rows) == 4
    # The stand-in sums all weights, so the sum's figure follows from those of its parts.
    start, one, two, both = (model.values()["own", "acc"] for model in (*results.of(Harnessed), *found))
    coefficient = found[-1].coefficient
    assert coefficient is not None
    assert both - start == pytest.approx(coefficient * (one + two - 2 * start), abs=1e-3)


@pytest.mark.usefixtures("stand_in")
def test_cells_know_what_task_files_say_and_not_where_they_are(
    experiment: Path, tasks: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tasks, folder)
    text = experiment.read_text()
    store = Store(folder / "out")  # a run inside the folder is no task file

    def measured(include: Path) -> int:
        experiment.write_text(text.replace(str(tasks), str(include)))
        with allowing_code():
            loaded, suite = load_experiment(experiment)
        with store.locked():
            Runner(loaded, suite, store).run()
        lines = (store.folder / "records.jsonl").read_text().splitlines()
        return sum(json.loads(line)["cell"] == "lm_eval" for line in lines)

    assert [measured(tasks), measured(folder)] == [4, 4]
    (folder / "data.jsonl").write_text(json.dumps(QUESTIONS[0]))
    assert measured(folder) == 8
    (folder / "own.yaml").write_text((folder / "own.yaml").read_text() + "\n# anew")
    assert measured(folder) == 12


def test_an_experiment_that_names_a_folder_with_code_says_so(experiment: Path) -> None:
    with pytest.raises(
        InputError, match=r"experiment.yaml: lm_eval.include: names code to run.*--allow-code"
    ):
        load_experiment(experiment)


needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed")


def brute_force(folder: Path) -> float:
    """Accuracy by the summed log-probabilities of the choices, in a loop over tokens."""
    backbone: Any = load_backbone(folder, "tokens")
    hits = []
    for row in QUESTIONS:
        scores = []
        for choice in row["choices"]:  # type: ignore[attr-defined]
            context = backbone.tokenizer(row["question"])["input_ids"]
            whole = backbone.tokenizer(f"{row['question']} {choice}")["input_ids"]
            with torch.no_grad():
                logits = backbone.network(torch.tensor([whole])).logits[0].log_softmax(-1)
            scores.append(sum(float(logits[at - 1, whole[at]]) for at in range(len(context), len(whole))))
        hits.append(int(np.argmax(scores)) == row["gold"])
    return float(np.mean(hits))


@needs_harness
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", [CAUSAL[0], CAUSAL[1], WITH_ENCODER[0]])
def test_the_package_measures_an_edit_as_the_model_that_is_written(
    kind: str, tasks: Path, tmp_path: Path
) -> None:
    folder = save_language_model(tmp_path / "model", kind)
    backbone = load_backbone(folder, "tokens")
    draw = torch.Generator().manual_seed(0)
    deltas = {
        name: torch.randn(value.shape, generator=draw)
        for name, value in backbone.encoder_parameters().items()
    }
    vector = tv.TaskVector.from_tensors(deltas, base=backbone.source)
    point = tv.Evaluator(backbone, []).points({"a": vector}).at({"a": 0.5})
    found = harness(backbone, asked(tasks), point)["own"]
    tv.save_weights(tv.apply(folder, 0.5 * vector), tmp_path / "written")
    for file in folder.glob("*token*"):
        (tmp_path / "written" / file.name).write_bytes(file.read_bytes())
    assert found == harness(load_backbone(tmp_path / "written", "tokens"), asked(tasks))["own"]
    if kind != "t5":
        assert found.metrics["acc"].value == pytest.approx(brute_force(tmp_path / "written"))
    assert found.examples == 3 and found.metrics["acc"].stderr is not None


@needs_harness
@pytest.mark.filterwarnings("default")
def test_the_page_on_lm_eval_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = tv.open_weights(save_language_model(tmp_path / "llama", "llama"))
    moved = {name: torch.ones_like(base[name]) for name in ("model.norm.weight",)}
    tv.TaskVector.from_tensors(moved, base).save("chat.safetensors")
    page = (Path(__file__).parents[2] / "docs" / "lm-eval.md").read_text()
    row = {"question": "the cat sat on the", "choices": ["mat", "cake"], "gold": 0}
    Path("my_tasks").mkdir()
    Path("my_tasks/capitals.jsonl").write_text(json.dumps(row))
    [file] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    Path("my_tasks/capitals.yaml").write_text(file)
    names: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(snippet, names)
    assert names["scores"]["capitals"].examples == 1
    for words in re.findall(r"^    taskvec (.*--lm-eval-include.*)", page, re.MULTILINE):
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(words), "--quiet"])
        assert ended.value.code == 0, words
