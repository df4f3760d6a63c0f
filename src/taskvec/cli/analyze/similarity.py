"""``taskvec analyze similarity``."""

from taskvec.cli._common import Force, Json, Quiet, watching
from taskvec.cli.analyze._options import Vectors
from taskvec.cli.analyze._output import Output, check_folder, finish
from taskvec.cli.analyze._vectors import labelled


def similarity(
    vectors: Vectors,
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
    ranks
        Effective ranks take the singular values of every matrix, most of the work.
    """
    from taskvec.analysis.similarity import similarity as analysis
    from taskvec.reports.analysis_figures import similarity_figures
    from taskvec.reports.analysis_tables import similarity_tables

    check_folder(output, force=force)
    found = labelled(vectors)
    with watching(quiet) as watch:
        record = analysis(found, ranks=ranks, watch=watch)
    record["files"] = {label: vector.ref for label, vector in found.items()}
    finish(record, similarity_tables(record), similarity_figures, output, force=force, json=json)
