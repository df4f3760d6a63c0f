"""``taskvec analyze similarity``."""

from typing import Annotated

from cyclopts import Parameter

from taskvec.cli._common import Force, Json, Quiet, watching
from taskvec.cli.analyze._output import Output, finish
from taskvec.cli.analyze._vectors import labelled


def similarity(
    vectors: Annotated[tuple[str, ...], Parameter(negative=(), allow_leading_hyphen=False)],
    /,
    *,
    output: Output,
    ranks: bool = True,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare task vectors: angles, norms, sign conflicts and ranks, overall and by layer. Needs no model.

    Example: `taskvec analyze similarity runs/text4/vectors/seed0/full/*.safetensors -o angles`

    Parameters
    ----------
    vectors
        Two or more task-vector files of one base, of any tasks and regimes.
    output
        A folder for record.json, table.md and figure.png.
    ranks
        Effective ranks take the singular values of every matrix, most of the work.
    """
    from taskvec.analysis.similarity import similarity as analysis
    from taskvec.reports.analyses import check_folder
    from taskvec.reports.analysis_figures import similarity_figures
    from taskvec.reports.analysis_tables import similarity_tables

    check_folder(output, force=force)
    found = labelled(vectors)
    with watching(quiet) as watch:
        record = analysis(found, ranks=ranks, watch=watch)
    record["files"] = {label: vector.ref for label, vector in found.items()}
    finish(record, similarity_tables(record), similarity_figures, output, force=force, json=json)
