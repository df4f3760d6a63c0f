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
