"""The measures of the house: counted by hand on a small package, circles of every kind of import included."""

from pathlib import Path

import pytest

from measure_house import measure

FILES = {
    "__init__.py": '"""A package."""\n',
    "first.py": '"""Doc."""\n\n# Why.\nfrom typing import TYPE_CHECKING\n\n\ndef go(a: int, b) -> int:\n'
    '    """What."""\n    from . import second\n\n    return a\n\n\n_HIDDEN = 1\nSHOWN = 2\n',
    "second.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from small.first import go\n",
    "third.py": "import small.first\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def test_the_measures_are_those_of_a_count_by_hand(package: Path) -> None:
    assert measure(package) == {
        "files": "4",
        "lines": "21",
        "code lines": "10",
        "longest file": "15",
        "function length, median / p90": "4 / 4",
        "public top-level names": "2",
        "full-line comments, %": "4.8",
        "annotated arguments, %": "50",
        "import circles (files)": "2",
    }


def test_without_the_import_for_type_checkers_there_is_no_circle(package: Path) -> None:
    (package / "second.py").write_text("")
    assert measure(package)["import circles (files)"] == "0"
