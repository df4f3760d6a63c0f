"""What every command owes its user before it does anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import taskvec
from taskvec.cli import COMMANDS, main


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_taskvec_does_not_import_torch() -> None:
    assert run("import sys, taskvec; print('torch' in sys.modules)").strip() == "False"


def test_everything_public_can_be_had() -> None:
    assert all(getattr(taskvec, name) is not None for name in taskvec.__all__)


def test_no_help_imports_torch() -> None:
    code = (
        "import sys\nfrom taskvec.cli import main\n"
        f"for command in {['', *COMMANDS]!r}:\n"
        "    try: main([command, '--help'] if command else ['--help'])\n"
        "    except SystemExit as stop: assert stop.code == 0, command\n"
        "    assert 'torch' not in sys.modules, command\n"
    )
    shown = run(code)
    for purpose in ("what fine-tuning changed", "Fine-tune a model on a task", "List the tasks there are"):
        assert purpose in shown


def test_help_imports_no_libraries_but_those_that_print_it() -> None:
    code = (
        "import sys, cyclopts, docstring_parser, rich.markdown, rich.progress, rich.table\n"
        "known, own = set(sys.modules), sys.stdlib_module_names | {'taskvec'}\n"
        "from taskvec.cli import main\n"
        "for command in ([], ['diff']):\n"
        "    try: main([*command, '--help'])\n"
        "    except SystemExit: pass\n"
        "    found = {name.split('.')[0] for name in set(sys.modules) - known} - own\n"
        "    assert not found - {'cyclopts', 'docstring_parser', 'rich'}, (command, found)\n"
    )
    assert "taskvec diff" in run(code)


HEAVY = ("torch", "numba", "scipy", "sklearn", "pandas", "transformers", "matplotlib", "jinja2")
"""What work on files alone has no use for."""


def imported_by(*words: str | Path) -> set[str]:
    """The libraries of ``HEAVY`` that a command has imported when it is done."""
    code = (
        "import sys\nfrom taskvec.cli import main\n"
        f"try: main({list(map(str, words))!r})\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        f"print('heavy', *(name for name in {HEAVY!r} if name in sys.modules))"
    )
    return set(run(code).splitlines()[-1].split()[1:])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of several element types, in a file and in shards, and a task vector."""
    import torch

    folder = tmp_path_factory.mktemp("files")
    made = {}
    for kind in ("bfloat16", "float16", "float32", "float64"):
        for place in ("base", "tuned"):
            torch.manual_seed(len(place))
            tensors = {
                f"layers.{n}.w": torch.randn(70 + n, 9, dtype=torch.float64).to(getattr(torch, kind))
                for n in range(3)
            }
            made[f"{place} {kind}"] = folder / f"{place}-{kind}"
            taskvec.save_weights(
                {**tensors, "steps": torch.arange(4)}, made[f"{place} {kind}"], max_shard_size=4000
            )
    made["vector"] = folder / "vector.safetensors"
    taskvec.TaskVector.between(made["base bfloat16"], made["tuned bfloat16"]).save(made["vector"])
    return made


@pytest.mark.parametrize("name", ["base bfloat16", "base float16", "base float32", "base float64", "vector"])
@pytest.mark.parametrize("options", [[], ["--headers"], ["--json"]])
def test_inspecting_a_file_imports_no_torch(files: dict[str, Path], name: str, options: list[str]) -> None:
    assert imported_by("inspect", files[name], *options) == set()


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_a_difference_of_files_imports_no_torch(files: dict[str, Path], kind: str, tmp_path: Path) -> None:
    models = (files[f"base {kind}"], files[f"tuned {kind}"])
    assert imported_by("diff", *models, "-o", tmp_path / "vector.safetensors", "-q") <= {"jinja2"}


@pytest.mark.parametrize("edit", [[], ["-e", "0.3*v"], ["-e", "-v", "--scale", "0.5"]])
def test_a_linear_edit_of_files_imports_no_torch(
    files: dict[str, Path], edit: list[str], tmp_path: Path
) -> None:
    words: list[str | Path] = [
        "apply",
        files["base bfloat16"],
        "-v",
        f"v={files['vector']}",
        *edit,
        "-o",
        tmp_path / "out",
    ]
    assert not imported_by(*words, "-q") & {"torch", "transformers", "sklearn", "pandas"}


def test_a_linear_merge_of_files_imports_no_torch(files: dict[str, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "merge.yaml"
    models = f"- {{model: {files['tuned bfloat16']}, parameters: {{weight: 0.3}}}}"
    recipe.write_text(
        f"merge_method: task_arithmetic\nbase_model: {files['base bfloat16']}\nmodels:\n{models}\n"
        "dtype: bfloat16\n"
    )
    found = imported_by("merge", recipe, "-o", tmp_path / "out", "-q")
    assert not found & {"torch", "transformers", "sklearn", "pandas"}


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "float64"])
def test_what_inspect_shows_is_what_torch_computes(
    files: dict[str, Path], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = files[f"base {kind}"]
    with pytest.raises(SystemExit):
        main(["inspect", str(folder), "--json"])
    [facts] = json.loads(capsys.readouterr().out)["files"]
    with taskvec.open_weights(folder) as weights:
        assert facts["fingerprint"] == taskvec.open_weights(dict(weights)).fingerprint()
        norms = {name: float(weights[name].double().norm()) for name in weights if name != "steps"}
    assert facts["dtypes"] == sorted([kind, "int64"])
    assert facts["norm"] == pytest.approx(sum(norm**2 for norm in norms.values()) ** 0.5, rel=1e-14)
    assert facts["norms_by_layer"] == pytest.approx(
        {name.removesuffix(".w"): norm for name, norm in norms.items()}, rel=1e-14
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["aply"], 'Did you mean "apply"?'),
        (["diff", "--outptu", "x"], "--outptu"),
        (["diff"], "BASE"),
    ],
)
def test_a_request_that_cannot_be_read_is_one_line_and_exit_code_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error


def test_the_help_of_a_command_holds_its_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "eval", "run"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert (
            f"taskvec {command} "
            in capsys.readouterr().out.replace("taskvec COMMAND", "").split("Example", 1)[1]
        )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_result_that_cannot_be_written_is_one_line_and_exit_code_1() -> None:
    command = [sys.executable, "-m", "taskvec", "suites"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"), [(["rules", "--json"], 0), (["rules", "nope"], 2), (["inspect", "nope"], 2)]
)
def test_a_process_ends_at_once_and_loses_nothing(arguments: list[str], code: int) -> None:
    before = (
        "import atexit, sys\nfrom taskvec.cli import command\n"
        "atexit.register(lambda: sys.stderr.write('left in order'))\n"
        "class Held: __del__ = lambda self: sys.stderr.write('taken apart')\n"
        "held = Held()\n"
        f"sys.argv = ['taskvec', *{arguments!r}]\ncommand()\nsys.stderr.write('not reached')\n"
    )
    done = subprocess.run([sys.executable, "-c", before], capture_output=True, text=True)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert done.returncode == stopped.value.code == code
    assert done.stderr.endswith("left in order")
    assert (json.loads(done.stdout) != []) if code == 0 else not done.stdout


def test_a_message_that_a_library_leaves_with_is_written_and_means_failure() -> None:
    code = "import sys, taskvec.cli as cli\ncli.main = lambda: sys.exit('a message')\ncli.command()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "a message\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("arguments", "code"), [("rules --json", 0), ("rules nope", 2)])
def test_closed_streams_change_nothing_else(closed: str, arguments: str, code: int, tmp_path: Path) -> None:
    command = f"{sys.executable} -m taskvec {arguments} {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == code
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == (code == 2 and "2>" not in closed)
    assert (json.loads(done.stdout) != []) if code == 0 and ">&-" not in closed.split() else not done.stdout
    assert not list(tmp_path.iterdir())


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = f"{sys.executable} -m taskvec rules | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert not done.stderr


@pytest.mark.parametrize("name", ["x" * 250, "x" * 300, "é" * 140])
def test_a_name_that_is_too_long_is_bad_input(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["inspect", name],
        ["train", "-m", "builtin", "-t", "gabor", "-o", str(tmp_path / name)],
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_names_in_files_never_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import save_file

    names = ["a\x1b[2J\x07.0.weight", "b\u202e.0.weight", "c\r\x9b1A.0.weight"]
    for place, file in enumerate(("base", "tuned", "other")):
        tensors = {name: torch.full((2, 2 + place // 2), float(place)) for name in names}
        save_file(tensors, tmp_path / f"{file}.safetensors")
    base, tuned, other, vector = (str(tmp_path / f"{n}.safetensors") for n in ("base", "tuned", "other", "v"))
    for arguments, code in (
        (["diff", base, tuned, "-o", vector], 0),
        (["inspect", vector, tuned], 0),
        (["inspect", vector, tuned, "--json"], 0),
        (["diff", base, other, "-o", f"{vector}2.safetensors"], 2),
        (["apply", other, "-v", f"v={vector}", "--allow-other-base", "-o", str(tmp_path / "out")], 2),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == code
        shown = "".join(capsys.readouterr())
        assert not set(shown) & {"\x1b", "\x07", "\u202e", "\r", "\x9b"}
