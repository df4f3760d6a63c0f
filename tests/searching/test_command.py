"""Candidates measured by a command of the user's."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from searching.worlds import World, make
from taskvec.errors import InputError, TaskvecError
from taskvec.searching.command import CommandScore, filled
from taskvec.searching.figures import less_is_better, printed_figures, returned_figures
from taskvec.weights import open_weights

PYTHON = sys.executable


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make("encoder", tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("0.5", {"score": 0.5}),
        ("loading 12 files\nacc: 0.81\n\n", {"score": 0.81}),
        ("accuracy 87.3%", {"score": 87.3}),
        ("loss=-1.5e-3 after 20s", {"score": -1.5e-3}),
        ("took 1.5s, v2.1b, .75.", {"score": 0.75}),
        ("score: nan", {"score": pytest.approx(float("nan"), nan_ok=True)}),
        ("-inf", {"score": float("-inf")}),
        ('{"acc": 0.5, "n": 12, "name": "x", "ok": true}', {"acc": 0.5, "n": 12.0}),
        ('noise {\nmore 3\n{"arc": {"acc": 0.5},\n "ppl": 7}\n', {"arc.acc": 0.5, "ppl": 7.0}),
        ('{"only": "text"} 4', {"score": 4.0}),
        ("{broken 7", {"score": 7.0}),
        ('{"acc": 0.5, "n": 12}\nwritten to out.json\ndone in 3s', {"acc": 0.5, "n": 12.0}),
        ('{"acc": 0.5, "n": 12}\nscore 0.7', {"score": 0.7}),
        ('{\n "acc": 0.5,\n "by": [\n  {\n   "x": 1\n  }\n ]\n}\n', {"acc": 0.5}),
        ('{"step": 1}\n{"acc": 0.5}\n', {"acc": 0.5}),
    ],
)
def test_what_is_printed_last_counts(text: str, figures: dict[str, float]) -> None:
    assert printed_figures(text, "x") == figures


@pytest.mark.parametrize("text", ["", "\n", "done in 12s", "version2"])
def test_no_number_is_said(text: str) -> None:
    with pytest.raises(
        TaskvecError, match=r"^x: printed no number, .*; expected the score, or a JSON object"
    ):
        printed_figures(text, "x")


@pytest.mark.parametrize(
    ("name", "less"),
    [
        ("perplexity", True),
        ("val_loss", True),
        ("wiki/word_perplexity", True),
        ("accuracy", False),
        ("glossy", False),
    ],
)
def test_less_is_better_by_name(name: str, less: bool) -> None:
    assert less_is_better(name) == less


def test_functions_return_numbers() -> None:
    assert returned_figures(2, "f") == {"score": 2.0}
    assert returned_figures({"a": 1, "b": 0.5}, "f") == {"a": 1.0, "b": 0.5}
    wrongs: tuple[object, ...] = ({}, "text", None, {"a": []})
    for wrong in wrongs:
        with pytest.raises(TaskvecError, match=r"^f: "):
            returned_figures(wrong, "f")


def test_the_command_reads_the_edited_model(world: World, tmp_path: Path) -> None:
    code = (
        "import sys; from safetensors.torch import load_file; "
        "print(float(load_file(sys.argv[1] + '/model.safetensors')['pooler.dense.bias'].double().sum()))"
    )
    scratch = tmp_path / "with space's"
    scratch.mkdir()
    score = CommandScore(f'{PYTHON} -c "{code}" {{model}}')
    merge = world.merge("0.5*a - b")
    wanted = float(merge.weights["pooler.dense.bias"].double().sum())
    assert score.evaluate(merge, "search", scratch) == {"score": pytest.approx(wanted)}
    assert not (scratch / "model").exists() and not score.parts


def test_the_part_and_the_shell(world: World, tmp_path: Path) -> None:
    """Braces other than the two placeholders, pipes and quotes are the shell's."""
    score = CommandScore("test -d {model} && echo '{part} 1 2' | awk '{print $1, $3}' >&2; echo {part}: 0.5")
    assert score.parts
    assert score.evaluate(world.merge(), "holdout", tmp_path) == {"score": 0.5}
    assert (tmp_path / "stderr").read_text() == "holdout 2\n"


def test_failures_say_what_the_command_said_last(world: World, tmp_path: Path) -> None:
    for command, message in {
        "ls {model}; echo 0.5; echo 'no\x1bGPU' >&2; exit 3": "failed with exit status 3: no.*GPU",
        "kill -9 $$ {model}": "failed with SIGKILL",
        "echo 0.5 > {model}/x": "printed no number, nothing at all",
    }.items():
        with pytest.raises(TaskvecError, match=f"^--score-command: {message}") as caught:
            CommandScore(command).evaluate(world.merge(), "search", tmp_path)
        assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
        assert not (tmp_path / "model").exists()


def test_a_command_without_a_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--score-command: './score.sh' has no \{model\}"):
        CommandScore("./score.sh")


def test_less_can_be_better(world: World, tmp_path: Path) -> None:
    score = CommandScore("echo {model} 3", minimise=True)
    assert score.lower_is_better("score") and not CommandScore("{model}").lower_is_better("score")
    named = CommandScore("echo '{\"loss\": 1}' # {model}", minimise=True)
    with pytest.raises(InputError, match=r"^--minimise: .* it prints loss; .*--weigh NAME=-1"):
        named.evaluate(world.merge(), "search", tmp_path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_takes_too_long_or_is_interrupted_ends_with_all_it_started(
    world: World, tmp_path: Path, interrupted: bool
) -> None:
    children = tmp_path / "pids"
    command = f"sleep 60 & echo $! $$ > {children}; wait # {{model}}"
    score = CommandScore(command, timeout=None if interrupted else 0.5)
    if interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background jobs ignore it
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    expected = KeyboardInterrupt if interrupted else TaskvecError
    begun = time.monotonic()
    with pytest.raises(expected) as caught:
        score.evaluate(world.merge(), "search", tmp_path)
    assert time.monotonic() - begun < 10
    if not interrupted:
        assert "took longer than 0.5 seconds" in str(caught.value)
    assert not any(map(_alive, map(int, children.read_text().split())))
    assert not (tmp_path / "model").exists()


def test_inputs_are_left_alone(world: World, tmp_path: Path) -> None:
    before = open_weights(world.base).fingerprint()
    CommandScore("rm -rf {model}; echo 1").evaluate(world.merge(), "search", tmp_path)
    assert open_weights(world.base).fingerprint() == before


@pytest.mark.parametrize(
    "typed",
    [
        "printf %s {model}",
        "printf %s '{model}'",
        'printf %s "{model}"',
        "printf %s%s '' \"{model}\"",
        "printf %s\\\\n \"{model}\" | tr -d '\\n'",
        "sh -c 'printf %s \"$1\"' x {model}",
        "true \\' \\\" ; printf %s '{model}'",
        "true \"'\" '\"' '\\' ; printf %s \"{model}\"",
    ],
)
@pytest.mark.parametrize("name", ["plain", "with space", "it's", 'a "b" $HOME `id`', "{part}\\x"])
def test_a_folder_of_any_name_stands_in_any_quotes(typed: str, name: str, tmp_path: Path) -> None:
    path = str(tmp_path / name)
    command = filled(typed, {"model": path, "part": "search"})
    assert subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout == path
