"""``python -m taskvec``."""

from taskvec.cli import command

command()
