"""A page a command, from the same docstrings that ``--help`` shows."""

import re
from pathlib import PurePosixPath

from taskvec.cli import COMMANDS, app_of

FOLDER = PurePosixPath("commands")


def page(command: str) -> str:
    """The page of a command, as Markdown."""
    text = app_of(command)[command].generate_docs(output_format="markdown", usage_name=f"taskvec {command}")
    text = re.sub(r"^# .*", f"# taskvec {command}", text)
    text = re.sub(r"^```console\n(?:taskvec )?", "```sh\ntaskvec ", text, flags=re.MULTILINE)
    return re.sub(r"\bdocs/([\w-]+)\.md", r"[\1](../\1.md)", text)


def overview() -> str:
    """The list of commands, as Markdown."""
    rows = "\n".join(f"| [`taskvec {name}`]({name}.md) | {line} |" for name, line in COMMANDS.items())
    intro = "`taskvec --help` lists the commands, `taskvec COMMAND --help` explains one."
    return f"# Command line\n\n{intro}\n\n| command | what it does |\n| --- | --- |\n{rows}\n"
