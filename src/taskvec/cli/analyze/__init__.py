"""``taskvec analyze``: one subcommand an analysis."""

from cyclopts import App

from taskvec.cli.analyze.disentanglement import disentanglement
from taskvec.cli.analyze.gradients import gradients
from taskvec.cli.analyze.linearity import linearity
from taskvec.cli.analyze.similarity import similarity

ANALYSES = {one.__name__: one for one in (disentanglement, linearity, similarity, gradients)}
"""Imported together, for the list to show what each is for; none imports torch before it runs."""

analyze = App(name="analyze", help="Explain task vectors: a record, a table and a figure in a folder.")
for _analysis in ANALYSES.values():
    analyze.command(_analysis)
analyze.command(
    "taskvec.cli.analyze.ntk:ntk",
    name="ntk",
    help="The neural tangent kernel of a model, and what it predicts.",
)
