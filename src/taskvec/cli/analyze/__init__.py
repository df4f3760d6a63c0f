"""``taskvec analyze``: one subcommand an analysis, imported when its help or itself is asked for."""

from cyclopts import App

ANALYSES = ("disentanglement", "linearity", "similarity", "gradients")

analyze = App(name="analyze", help="Explain task vectors: a record, a table and a figure in a folder.")
for _name in ANALYSES:
    analyze.command(f"taskvec.cli.analyze.{_name}:{_name}", name=_name)
