"""Code of the user's own: found by name, and never run for a file that may not name it."""

import os
import sys
from pathlib import Path

import pytest

from taskvec.code import allowing_code, check_allowed, named_callable, names_code
from taskvec.errors import InputError


def test_a_function_of_a_file_and_of_a_module(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def double(x):\n    return 2 * x\n", encoding="utf-8")
    assert named_callable("mine.py:double", "score", tmp_path)(3) == 6
    assert named_callable(f"{tmp_path}/mine.py:double", "score")(3) == 6
    assert named_callable("mine:double", "score", tmp_path)(3) == 6
    assert named_callable("math:sqrt", "score")(9) == 3


@pytest.mark.parametrize(
    ("ref", "complaint"),
    [
        ("math", "score: 'math' is not of the form module:function"),
        ("math:root", "score: math has no function 'root'"),
        ("math:pi", "score: math has no function 'pi'"),
        ("no_such_module_here:f", r"score: no_such_module_here cannot be imported \(ModuleNotFoundError"),
        ("missing.py:f", r"score: missing.py cannot be imported \(FileNotFoundError"),
        ("math:sqr", "score: math has no function 'sqr'; did you mean 'sqrt'"),
        ("script.py:f", r"score: script.py cannot be imported \(SystemExit: 3\)"),
        ("broken.py:f", r"score: broken.py cannot be imported \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, ref: str, complaint: str) -> None:
    (tmp_path / "script.py").write_text("import sys\nsys.exit(3)\n", encoding="utf-8")
    (tmp_path / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    with pytest.raises(InputError, match=complaint):
        named_callable(ref, "score", tmp_path)


def test_a_file_is_run_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("SEEN = []\n\ndef seen():\n    SEEN.append(1)\n    return len(SEEN)\n", encoding="utf-8")
    assert [named_callable("mine.py:seen", "score", tmp_path)() for _ in range(2)] == [1, 2]
    path.write_text("def seen():\n    return 'new'\n", encoding="utf-8")
    os.utime(path, ns=(1, 1))
    assert named_callable("mine.py:seen", "score", tmp_path)() == "new"


def test_files_of_one_name_in_two_folders_stay_apart(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "mine.py").write_text(
            f"def one():\n    return {number}\n", encoding="utf-8"
        )
    found = [named_callable("mine.py:one", "score", tmp_path / str(number)) for number in (1, 2)]
    assert [function() for function in found] == [1, 2]


def test_a_file_imports_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "words_beside.py").write_text("LIST = ['a']\n", encoding="utf-8")
    code = "from words_beside import LIST\n\ndef first():\n    return LIST[0]\n"
    (tmp_path / "sub" / "mine.py").write_text(code, encoding="utf-8")
    path = list(sys.path)
    assert named_callable("sub/mine.py:first", "score", tmp_path)() == "a"
    assert sys.path == path


def test_a_file_may_name_code_only_where_it_is_allowed() -> None:
    with pytest.raises(InputError, match=r"suite\.yaml: names code to run, 'a:b'.*--allow-code"):
        check_allowed("a:b", "suite.yaml")
    with allowing_code():
        check_allowed("a:b", "suite.yaml")
    with pytest.raises(InputError):
        check_allowed("a:b", "suite.yaml")


def test_what_has_the_form_of_code() -> None:
    assert names_code("a.b:c") and names_code("dir/a.py:c")
    assert not any(map(names_code, ("accuracy", "a:", ":b", "a:b-c", "")))
