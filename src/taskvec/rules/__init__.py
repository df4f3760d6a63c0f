"""Several task vectors -> one. A rule a file: a pure function on stacked tensors; here is the list.

A new rule is a file beside this one, a line below and, in the same order, a section in ``docs/rules.md``.
What it declares and the laws that it is tested against are in :mod:`taskvec.rules.rule`.
"""

from taskvec.rules.chain import Rules
from taskvec.rules.rule import Rule

RULES = Rules(
    "rule",
    {
        "sum": "taskvec.rules.sum:SUM",
        "mean": "taskvec.rules.mean:MEAN",
        "ties": "taskvec.rules.ties:TIES",
        "dare": "taskvec.rules.dare:DARE",
        "breadcrumbs": "taskvec.rules.breadcrumbs:BREADCRUMBS",
        "della": "taskvec.rules.della:DELLA",
        "tsv": "taskvec.rules.tsv:TSV",
        "iso_c": "taskvec.rules.iso:ISO_C",
        "iso_cts": "taskvec.rules.iso:ISO_CTS",
        "wudi": "taskvec.rules.wudi:WUDI",
        "actmat": "taskvec.rules.actmat:ACTMAT",
        "dc_merge": "taskvec.rules.dc_merge:DC_MERGE",
        "cart": "taskvec.rules.cart:CART",
        "knots": "taskvec.rules.knots:KNOTS",
        "magmax": "taskvec.rules.magmax:MAGMAX",
        "consensus": "taskvec.rules.consensus:CONSENSUS",
        "tatr": "taskvec.rules.tatr:TATR",
        "localize_stitch": "taskvec.rules.localize_stitch:LOCALIZE_STITCH",
        "emr": "taskvec.rules.emr:EMR",
        "pcb": "taskvec.rules.pcb:PCB",
        "metagpt": "taskvec.rules.metagpt:METAGPT",
        "lines": "taskvec.rules.lines:LINES",
        "svc": "taskvec.rules.svc:SVC",
        "model_stock": "taskvec.rules.model_stock:MODEL_STOCK",
        "slerp": "taskvec.rules.slerp:SLERP",
        "nuslerp": "taskvec.rules.slerp:NUSLERP",
        "multislerp": "taskvec.rules.slerp:MULTISLERP",
        "karcher": "taskvec.rules.slerp:KARCHER",
        "sce": "taskvec.rules.sce:SCE",
        "nearswap": "taskvec.rules.nearswap:NEARSWAP",
        "arcee_fusion": "taskvec.rules.arcee_fusion:ARCEE_FUSION",
        "passthrough": "taskvec.rules.passthrough:PASSTHROUGH",
        "pcgrad": "taskvec.rules.combiners:PCGRAD",
        "wpcgrad": "taskvec.rules.combiners:WPCGRAD",
        "mgda": "taskvec.rules.combiners:MGDA",
        "upgrad": "taskvec.rules.combiners:UPGRAD",
        "dualproj": "taskvec.rules.combiners:DUALPROJ",
        "cagrad": "taskvec.rules.combiners:CAGRAD",
        "nash_mtl": "taskvec.rules.combiners:NASH_MTL",
        "aligned_mtl": "taskvec.rules.combiners:ALIGNED_MTL",
        "imtl_g": "taskvec.rules.combiners:IMTL_G",
        "config": "taskvec.rules.combiners:CONFIG",
        "cosine": "taskvec.rules.combiners:COSINE",
        "graddrop": "taskvec.rules.combiners:GRADDROP",
        "fisher": "taskvec.rules.fisher:FISHER",
        "regmean": "taskvec.rules.regmean:REGMEAN",
    },
)

__all__ = ["RULES", "Rule"]
