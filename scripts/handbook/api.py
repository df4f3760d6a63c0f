"""The pages of the Python interface: directives that mkdocstrings fills from docstrings."""

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

import taskvec

FOLDER = PurePosixPath("python")

GROUPS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "edit": ("Task vectors and weights", ("weights", "vectors", "edits", "rules")),
    "models": ("Models and tasks", ("models", "tasks")),
    "train": ("Training", ("training",)),
    "tangent": ("Tangent space", ("tangent",)),
    "coefficients": ("Coefficients and evaluation", ("evaluation", "coefficients", "merging", "searching")),
    "statistics": ("Statistics", ("statistics",)),
    "studies": ("Studies", ("studies",)),
}
"""Page -> its title, and the packages whose public names it shows."""

INSIDE: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "rules": ("What a rule is", ("taskvec.rules.rule", "taskvec.rules")),
    "combiners": ("What a combiner is", ("taskvec.combiners.combiner", "taskvec.combiners")),
    "penalties": ("Settings of penalties", ("taskvec.training.penalties.settings",)),
    "experiment": ("Settings of an experiment", ("taskvec.studies.experiment",)),
    "methods": ("What a method is", ("taskvec.merging.method",)),
    "study": ("What a study is", ("taskvec.studies.study",)),
    "errors": ("Errors", ("taskvec.errors",)),
}
"""Page -> its title, and modules for those who add to the package."""


def pages() -> dict[PurePosixPath, str]:
    """Every page, by its place on the site."""
    made = {FOLDER / "index.md": _overview()}
    for name, (title, packages) in GROUPS.items():
        made[FOLDER / f"{name}.md"] = _page(
            title, (f"taskvec.{home(each)}.{each}" for each in shown(packages))
        )
    for name, (title, modules) in INSIDE.items():
        made[FOLDER / f"inside-{name}.md"] = _page(title, modules)
    return made


def home(name: str) -> str:
    """The module below ``taskvec`` that a public name comes from."""
    return taskvec._HOME[name]


def shown(packages: Iterable[str]) -> list[str]:
    """The public names that come from these packages."""
    wanted = set(packages)
    return [name for name in taskvec.__all__ if name in taskvec._HOME and home(name).split(".")[0] in wanted]


def _page(title: str, names: Iterable[str]) -> str:
    return f"# {title}\n\n" + "\n".join(f"::: {name}\n" for name in names)


def _overview() -> str:
    lines = [
        f"| [{title}]({name}.md) | {', '.join(f'`{each}`' for each in shown(packages))} |"
        for name, (title, packages) in GROUPS.items()
    ]
    more = ", ".join(f"[{title}](inside-{name}.md)" for name, (title, _) in INSIDE.items())
    return (
        "# Python\n\n"
        "`import taskvec as tv` gives all that is public; a name is imported when it is first used.\n\n"
        "| | |\n| --- | --- |\n" + "\n".join(lines) + f"\n\nFor those who add to the package: {more}.\n"
    )
